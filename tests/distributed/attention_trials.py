"""Attention spread over ranks, and the same by torch on the whole sequence: what the context-parallel tests compare."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from parallelism.context.ring import ring_attention
from parallelism.context.ulysses import ulysses_attention
from suite.layout import ContextMethod
from suite.sequence_shards import sequence_positions
from suite.spec import AttentionKernel

BATCH, SEQ_LEN, WIDTH = 2, 24, 6  # 24 is 2 n chunks for n = 2, 3, 4


@dataclass(frozen=True)
class Trial:
    """One attention, by its choices."""

    ranks: int
    method: ContextMethod = ContextMethod.RING
    balanced: bool = False
    is_causal: bool = True
    heads: int = 4
    kv_heads: int = 2
    dtype: torch.dtype = torch.float64
    kind: AttentionKernel = AttentionKernel.FLASH

    def __str__(self) -> str:
        parts = [f"{self.method}{self.ranks}", f"{self.heads}x{self.kv_heads}", str(self.dtype)[6:], self.kind.value]
        parts += ["balanced"] * self.balanced + ["full"] * (not self.is_causal)
        return "-".join(parts)

    def inputs(self) -> list[Tensor]:
        """q, k, v and the gradient of the output, [b, heads, s, d], the same on every rank."""
        draw = torch.Generator().manual_seed(self.heads)
        shapes = [(BATCH, heads, SEQ_LEN, WIDTH) for heads in (self.heads, self.kv_heads, self.kv_heads, self.heads)]
        return [torch.randn(shape, generator=draw, dtype=torch.float64).to(self.dtype) for shape in shapes]

    def places(self, rank: int) -> list[int]:
        """A rank's positions."""
        return [place for part in sequence_positions(SEQ_LEN, self.ranks, rank, self.balanced) for place in part]


def run_trial(trial: Trial, group: dist.ProcessGroup) -> list[Tensor]:
    """On one rank: its rows of the output, and of the gradients of q, k and v."""
    places = trial.places(group.rank())
    q, k, v, grad = (x[:, :, places] for x in trial.inputs())
    leaves = [x.clone().requires_grad_() for x in (q, k, v)]
    if trial.method is ContextMethod.RING:
        out = ring_attention(leaves[0], leaves[1], leaves[2], group, trial.is_causal, trial.balanced, trial.kind)
    else:
        q, k, v = (x.transpose(1, 2) for x in leaves)
        out = ulysses_attention(q, k, v, group, _attend).transpose(1, 2)
    out.backward(grad)
    return [out.detach(), *(leaf.grad for leaf in leaves if leaf.grad is not None)]


def _attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True).transpose(1, 2)


def whole(trial: Trial) -> list[Tensor]:
    """The same by torch's own attention over the whole sequence, in fp64."""
    *leaves, grad = (x.double() for x in trial.inputs())
    q, k, v = (x.requires_grad_() for x in leaves)
    out = F.scaled_dot_product_attention(q, k, v, is_causal=trial.is_causal, enable_gqa=True)
    out.backward(grad)
    return [out.detach(), *(x.grad for x in (q, k, v) if x.grad is not None)]


def gap(trial: Trial, ran: Sequence[Sequence[Tensor]]) -> float:
    """The largest |mine - its| / max |its| over the output and the three gradients; ran: rank by rank."""
    gaps = []
    for index, expected in enumerate(whole(trial)):
        mine = torch.full_like(expected, float("nan"))
        for rank, parts in enumerate(ran):
            mine[:, :, trial.places(rank)] = parts[index].double()
        gaps.append(((mine - expected).abs().max() / expected.abs().max()).item())
    return max(gaps) if all(value == value for value in gaps) else float("inf")
