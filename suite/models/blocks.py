"""Building blocks that the model families share: norms, rotary positions, attention, MLPs. Single-device code.

Written so that a tensor dies when its last reader has run (rebinding and expressions, no long-lived locals):
the operator ledger counts on it.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from suite.models.alibi import Alibi
from suite.models.decoder import RopeScaling
from suite.models.sight import may_see
from suite.spec import AttentionKernel

#: what blocks are given of positions: cosines and sines of rotations, or what is added to scores, [a, s, s]
Places = tuple[Tensor, Tensor] | Tensor | None


def compute_dtype(x: Tensor) -> torch.dtype:
    """The type that matrix work on `x` will run in: autocast's where it is on, else x's own."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


def rope_frequencies(rotary_dim: int, theta: float, scaling: RopeScaling | None) -> Tensor:
    """Radians a position for each rotated pair, [rotary_dim / 2] in fp32 (arXiv:2104.09864, section 3.2.2).

    With `scaling`, Llama 3.1's rule: wavelengths longer than original / low_freq_factor are stretched by
    `factor`, those shorter than original / high_freq_factor are left alone, those between are blended.
    """
    frequencies = 1.0 / theta ** (torch.arange(0, rotary_dim, 2, dtype=torch.float32) / rotary_dim)
    if scaling is None:
        return frequencies
    turns = scaling.original_max_positions * frequencies / (2 * math.pi)
    blend = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    blend = blend.clamp(0.0, 1.0)
    return frequencies * (blend + (1 - blend) / scaling.factor)


def turns_of(places: Tensor, frequencies: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines and sines of the rotations at `places` [...], [..., 1, rotary_dim / 2] in fp32 each."""
    angles = places.float().unsqueeze(-1) * frequencies
    return angles.cos().unsqueeze(-2), angles.sin().unsqueeze(-2)


class Rope(nn.Module):
    """Rotary positions: cosines and sines of every position, [max_positions, 1, rotary_dim / 2] in fp32 each."""

    def __init__(self, max_positions: int, rotary_dim: int, theta: float, scaling: RopeScaling | None) -> None:
        super().__init__()
        self.cos: Tensor
        self.sin: Tensor
        self.settings = (max_positions, rotary_dim, theta, scaling)
        cos, sin = self._tables()
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def _tables(self) -> tuple[Tensor, Tensor]:
        max_positions, rotary_dim, theta, scaling = self.settings
        return turns_of(torch.arange(max_positions), rope_frequencies(rotary_dim, theta, scaling))

    def reset_parameters(self) -> None:
        """Fill the tables in again: a module that was built on the meta device has none."""
        for buffer, values in zip((self.cos, self.sin), self._tables(), strict=True):
            buffer.copy_(values)

    def forward(self, seq_len: int, dtype: torch.dtype, positions: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Cosines and sines of the first `seq_len` positions, or of `positions`, in the type of the queries."""
        rows: slice | Tensor = slice(seq_len) if positions is None else positions
        return self.cos[rows].to(dtype), self.sin[rows].to(dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the leading 2 x cos.shape[-1] channels of every head of x, [b, s, heads, d], halves as pairs."""
    half = cos.shape[-1]
    first, second = x[..., :half], x[..., half : 2 * half]
    turned = (torch.addcmul(first * cos, second, sin, value=-1), torch.addcmul(second * cos, first, sin))
    rest = x[..., 2 * half :]
    return torch.cat((*turned, rest) if rest.shape[-1] else turned, dim=-1)


def turned(x: Tensor, turns: tuple[Tensor, Tensor]) -> Tensor:
    """x [b, s, heads, d] rotated by cosines and sines in another type."""
    cos, sin = turns
    return rotate(x, cos.to(x.dtype), sin.to(x.dtype))


def window_mask(seq_len: int, window: int | None, device: torch.device) -> Tensor | None:
    """Which tokens each of a sequence's tokens may read, [s, s]; None where the window hides none, or there is none."""
    if window is None or seq_len <= window:
        return None
    places = torch.arange(seq_len, device=device)
    return may_see(places, places, window)


class FlashCore(nn.Module):
    """Causal attention by torch's fused kernel: no [s, s] tensor is kept, but for the mask of a sequence longer than
    the window, or ALiBi's biases, which all blocks share. q [b, s, a, d], k and v [b, s, k, d]."""

    def __init__(self, window: int | None = None) -> None:
        super().__init__()
        self.window = window

    def forward(self, q: Tensor, k: Tensor, v: Tensor, places: Places) -> Tensor:
        if isinstance(places, tuple):
            q, k = rotate(q, *places), rotate(k, *places)
        grouped = q.shape[2] != k.shape[2]
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        if isinstance(places, Tensor):
            mask: Tensor | None = places.unsqueeze(0)
        else:
            mask = window_mask(q.shape[2], self.window, q.device)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None, enable_gqa=grouped)
        return out.transpose(1, 2)


class EagerCore(nn.Module):
    """Causal attention in the open: scores, softmax, weighted sum; probabilities [b, a, s, s] are kept.

    The queries that share a key-value head are stacked along the sequence, so keys are never repeated. Values may have
    another width than keys. With ALiBi each pass makes its own biases, which nothing keeps.
    """

    def __init__(self, window: int | None = None, alibi: Alibi | None = None) -> None:
        super().__init__()
        self.window = window
        self.alibi = alibi

    def forward(self, q: Tensor, k: Tensor, v: Tensor, places: Places) -> Tensor:
        if isinstance(places, tuple):
            q, k = rotate(q, *places), rotate(k, *places)
        batch, seq_len, heads, width = q.shape
        kv_heads = k.shape[2]
        q = (q * width**-0.5).transpose(1, 2).reshape(batch, kv_heads, -1, width).contiguous()
        scores = torch.matmul(q, k.permute(0, 2, 3, 1)).view(batch, heads, seq_len, seq_len)
        scores = scores + self._hidden(seq_len, q)
        scores = F.softmax(scores, dim=-1)
        out = torch.matmul(scores.view(batch, kv_heads, -1, seq_len), v.transpose(1, 2))
        return out.view(batch, heads, seq_len, -1).transpose(1, 2)

    def _hidden(self, seq_len: int, like: Tensor) -> Tensor:
        """What is added to scores, [s, s] or [a, s, s]: -inf where a query may not read, else 0 or ALiBi's bias."""
        if self.alibi is not None:
            return self.alibi(seq_len, like, like.dtype)
        hidden = torch.full((seq_len, seq_len), float("-inf"), dtype=like.dtype, device=like.device)
        mask = window_mask(seq_len, self.window, like.device)
        return hidden.triu_(1) if mask is None else hidden.masked_fill_(mask, 0.0)


CORES: dict[AttentionKernel, type[nn.Module]] = {AttentionKernel.FLASH: FlashCore, AttentionKernel.EAGER: EagerCore}


class Attention(nn.Module):
    """Self-attention with `kv_heads` key-value heads: MHA at heads, GQA between, MQA at 1. What queries make of keys
    and values is the core's: q [b, s, a, d], k and v [b, s, k, d] and places -> [b, s, a, d]."""

    def __init__(
        self, hidden: int, heads: int, kv_heads: int, head_dim: int, qkv_bias: bool, bias: bool,
        core: nn.Module,
    ) -> None:  # fmt: skip
        super().__init__()
        self.head_dim = head_dim
        self.wq = nn.Linear(hidden, heads * head_dim, bias=qkv_bias)
        self.wk = nn.Linear(hidden, kv_heads * head_dim, bias=qkv_bias)
        self.wv = nn.Linear(hidden, kv_heads * head_dim, bias=qkv_bias)
        self.wo = nn.Linear(heads * head_dim, hidden, bias=bias)
        self.core = core

    def forward(self, x: Tensor, places: Places) -> Tensor:
        """x [b, s, h] -> [b, s, h]."""
        shape = (*x.shape[:2], -1, self.head_dim)
        out = self.core(self.wq(x).view(shape), self.wk(x).view(shape), self.wv(x).view(shape), places)
        return self.wo(out.flatten(2))


class GeluMLP(nn.Module):
    """down(gelu(up(x))); gelu in its tanh form or by the error function ("none", as torch has it)."""

    def __init__(self, hidden: int, ffn: int, bias: bool, approximate: str = "tanh") -> None:
        super().__init__()
        self.approximate = approximate
        self.up = nn.Linear(hidden, ffn, bias=bias)
        self.down = nn.Linear(ffn, hidden, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """x [b, s, h] -> [b, s, h]."""
        return self.down(F.gelu(self.up(x), approximate=self.approximate))


class SwiGLU(nn.Module):
    """down(silu(gate(x)) * up(x)) (arXiv:2002.05202)."""

    def __init__(self, hidden: int, ffn: int, bias: bool) -> None:
        super().__init__()
        self.gate = nn.Linear(hidden, ffn, bias=bias)
        self.up = nn.Linear(hidden, ffn, bias=bias)
        self.down = nn.Linear(ffn, hidden, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """x [b, s, h] -> [b, s, h]."""
        return self.down(F.silu(self.gate(x)) * self.up(x))
