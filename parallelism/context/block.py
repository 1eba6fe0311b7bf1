"""Attention of some queries to some keys with its log-sum-exp, and its gradients: what ring attention is made of.

Partial results merge because backward takes the whole row's output and log-sum-exp: a block's probabilities are
exp(scores - log-sum-exp of the row), whichever other blocks there were (Dao 2023, arXiv:2307.08691, section 3.1).
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from suite.spec import AttentionKernel

aten: Any = torch.ops.aten
FLASH_WIDTH = 8  # CUDA's flash kernel takes heads of a multiple of this
EFFICIENT_ROWS = 32  # CUDA's memory-efficient kernel pads the log-sum-exp to a multiple of this


class BlockKernel(Protocol):
    """Attention over one block. q, out [b, a, s, d]; k, v [b, kv, t, d] with kv dividing a; lse [b, a, s], natural
    logarithms, in `wide_type(q.dtype)`. is_causal: query i sees keys 0 to i."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, is_causal: bool) -> tuple[Tensor, Tensor]:
        """Output and lse."""
        ...

    def backward(
        self, grad: Tensor, q: Tensor, out: Tensor, lse: Tensor, k: Tensor, v: Tensor, is_causal: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """This block's part of the gradients of q, k and v; out and lse are those of the whole rows."""
        ...


def wide_type(dtype: torch.dtype) -> torch.dtype:
    """The type of sums over blocks: fp64 for fp64, else fp32."""
    return torch.float64 if dtype is torch.float64 else torch.float32


def block_kernel(kind: AttentionKernel, q: Tensor, k: Tensor, v: Tensor) -> BlockKernel:
    """The kernel for these tensors: torch's fused one where the device has one for them, else products in the open."""
    if kind is AttentionKernel.EAGER:
        return OpenKernel()
    if q.device.type == "cpu":
        return CpuFlashKernel()
    if q.device.type == "cuda":
        if torch.backends.cuda.can_use_flash_attention(_asked(q, k, v)):
            return CudaFlashKernel()
        if torch.backends.cuda.can_use_efficient_attention(_asked(q, _repeated(k, q), _repeated(v, q))):
            return CudaEfficientKernel()
    return OpenKernel()


def _asked(q: Tensor, k: Tensor, v: Tensor) -> Any:
    return torch.backends.cuda.SDPAParams(q, k, v, None, 0.0, True, q.shape[1] != k.shape[1])


class CpuFlashKernel:
    """torch's fused CPU kernel: fp64, fp32, bf16 and fp16; takes grouped heads and any strides."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, is_causal: bool) -> tuple[Tensor, Tensor]:
        """See BlockKernel."""
        out, lse = aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, is_causal)
        return out, lse

    def backward(
        self, grad: Tensor, q: Tensor, out: Tensor, lse: Tensor, k: Tensor, v: Tensor, is_causal: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """See BlockKernel."""
        dq, dk, dv = aten._scaled_dot_product_flash_attention_for_cpu_backward(grad, q, k, v, out, lse, 0.0, is_causal)
        return dq, dk, dv


class CudaFlashKernel:
    """FlashAttention-2 as torch ships it: bf16 and fp16, grouped heads; odd widths are padded with zeros."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, is_causal: bool) -> tuple[Tensor, Tensor]:
        """See BlockKernel."""
        width = q.shape[-1]
        out, lse, *_ = aten._scaled_dot_product_flash_attention(
            _padded(q), _padded(k), _padded(v), 0.0, is_causal, False, scale=width**-0.5
        )
        return out[..., :width], lse

    def backward(
        self, grad: Tensor, q: Tensor, out: Tensor, lse: Tensor, k: Tensor, v: Tensor, is_causal: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """See BlockKernel. The kernel reads lse as contiguous, whatever its strides."""
        width, unused = q.shape[-1], torch.zeros((), dtype=torch.int64)  # the state of dropout's random numbers
        dq, dk, dv = aten._scaled_dot_product_flash_attention_backward(
            _padded(grad), _padded(q), _padded(k), _padded(v), _padded(out), lse.contiguous(), None, None,
            q.shape[2], k.shape[2], 0.0, is_causal, unused, unused, scale=width**-0.5,
        )  # fmt: skip
        return dq[..., :width], dk[..., :width], dv[..., :width]


class CudaEfficientKernel:
    """The memory-efficient kernel: fp32, and devices before Ampere. It knows no grouped heads: keys are repeated
    while a block is computed, and their gradients summed."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, is_causal: bool) -> tuple[Tensor, Tensor]:
        """See BlockKernel."""
        out, lse, *_ = aten._scaled_dot_product_efficient_attention(
            q, _repeated(k, q), _repeated(v, q), None, True, 0.0, is_causal
        )
        return out, lse[..., : q.shape[2]]

    def backward(
        self, grad: Tensor, q: Tensor, out: Tensor, lse: Tensor, k: Tensor, v: Tensor, is_causal: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """See BlockKernel. Rows that pad lse hold +inf, so that their probabilities are 0."""
        unused = torch.zeros((), dtype=torch.int64)
        rows = F.pad(lse, (0, -lse.shape[-1] % EFFICIENT_ROWS), value=float("inf")).contiguous()
        packed = out.transpose(1, 2).contiguous().transpose(1, 2)  # the kernel takes [b, s, a, d] for granted
        dq, dk, dv, _ = aten._scaled_dot_product_efficient_attention_backward(
            grad, q, _repeated(k, q), _repeated(v, q), None, packed, rows, unused, unused, 0.0,
            [True, True, True, False], is_causal,
        )  # fmt: skip
        return dq, _summed(dk, k), _summed(dv, v)


class OpenKernel:
    """Products, softmax in the wide type and sums as torch operations: any device and type. Scores of one block are
    there while it is computed; nothing of their size is kept for backward."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, is_causal: bool) -> tuple[Tensor, Tensor]:
        """See BlockKernel."""
        scores = _scores(q, k, is_causal)
        lse = scores.logsumexp(-1)
        return _unfolded(_folded((scores - lse[..., None]).exp().to(v.dtype), v) @ v, q), lse

    def backward(
        self, grad: Tensor, q: Tensor, out: Tensor, lse: Tensor, k: Tensor, v: Tensor, is_causal: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """See BlockKernel. With P the probabilities: dv = P^T grad; dS = P (grad v^T - rowsum(grad out))."""
        scale, kind = q.shape[-1] ** -0.5, wide_type(q.dtype)
        probabilities = (_scores(q, k, is_causal) - lse[..., None]).exp()
        rows = _folded(grad, v)
        dv = _folded(probabilities.to(v.dtype), v).transpose(-1, -2) @ rows
        inner = (grad.to(kind) * out.to(kind)).sum(-1, keepdim=True)
        steps = (rows @ v.transpose(-1, -2)).view(probabilities.shape).to(kind) - inner
        scores = _folded((probabilities * steps).to(q.dtype), k)
        return _unfolded(scores @ k, q) * scale, scores.transpose(-1, -2) @ _folded(q * scale, k), dv


def _scores(q: Tensor, k: Tensor, is_causal: bool) -> Tensor:
    """q k^T / sqrt(d), [b, a, s, t] in the wide type; -inf where masked."""
    rows = _folded(q * q.shape[-1] ** -0.5, k) @ k.transpose(-1, -2)
    scores = rows.view(*q.shape[:3], k.shape[2]).to(wide_type(q.dtype))
    if not is_causal:
        return scores
    mask = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).triu_(1)
    return scores.masked_fill(mask, float("-inf"))


def _folded(x: Tensor, k: Tensor) -> Tensor:
    """[b, a, s, n] -> [b, kv, a/kv s, n]: queries that share a key head stacked, so that keys are not repeated."""
    return x.reshape(x.shape[0], k.shape[1], -1, x.shape[-1])


def _unfolded(x: Tensor, q: Tensor) -> Tensor:
    return x.reshape(q.shape)


def _repeated(k: Tensor, q: Tensor) -> Tensor:
    """Every key head as often as queries share it."""
    return k.repeat_interleave(q.shape[1] // k.shape[1], dim=1) if q.shape[1] != k.shape[1] else k


def _summed(gradient: Tensor, k: Tensor) -> Tensor:
    """The gradient of `_repeated`."""
    return gradient if gradient.shape == k.shape else gradient.unflatten(1, (k.shape[1], -1)).sum(2)


def _padded(x: Tensor) -> Tensor:
    """Heads as wide as CUDA's flash kernel wants them."""
    missing = -x.shape[-1] % FLASH_WIDTH
    return F.pad(x, (0, missing)) if missing else x
