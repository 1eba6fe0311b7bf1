"""A mixture of experts as modules: what suite/models/experts_ledger.py describes. Single-device code.

Expert parallelism sets `MixtureMLP.exchange`, tensor parallelism divides the experts' widths; nothing else changes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from suite.models.blocks import SwiGLU, compute_dtype
from suite.models.experts import Experts
from suite.models.routing import Places, Router, places_of


class Exchange(Protocol):
    """Moves rows to the ranks that own their experts."""

    def __call__(self, rows: Tensor, counts: Tensor) -> tuple[Tensor, Tensor, Callable[[Tensor], Tensor]]:
        """rows [R, h] sorted by expert, counts [E] -> rows for the experts here, sorted by them; their counts; and what
        takes their outputs back to where the rows came from, in the order sent."""
        ...


class ExpertWeights(nn.Module):
    """The experts' matrices, stacked: gate and up [E, f, h], down [E, h, f]."""

    def __init__(self, count: int, hidden: int, ffn: int) -> None:
        super().__init__()
        self.gate = nn.Parameter(torch.empty(count, ffn, hidden))
        self.up = nn.Parameter(torch.empty(count, ffn, hidden))
        self.down = nn.Parameter(torch.empty(count, hidden, ffn))

    def forward(self, rows: Tensor, counts: Tensor) -> Tensor:
        """rows [R, h] sorted by expert, so many of each: counts [E] -> [R, h]."""
        return expert_outputs(rows, counts, self.gate, self.up, self.down)


def expert_outputs(rows: Tensor, counts: Tensor, gate: Tensor, up: Tensor, down: Tensor) -> Tensor:
    """down(silu(gate(x)) * up(x)) of each row with its expert's matrices, in the compute type."""
    ends = counts.cumsum(0, dtype=torch.int32)
    kind = compute_dtype(rows)
    rows = rows.to(kind)
    wide = F.silu(grouped(rows, gate.to(kind), ends)) * grouped(rows, up.to(kind), ends)
    return grouped(wide, down.to(kind), ends)


def grouped(rows: Tensor, weights: Tensor, ends: Tensor) -> Tensor:
    """x W^T of rows [R, n] that end at ends [E] for each of the weights [E, m, n]: [R, m]. No autocast casts for it."""
    product: Tensor = _Grouped.apply(rows, weights, ends)
    return product


class _Grouped(torch.autograd.Function):
    """torch's grouped product and its derivative, but that this keeps the weights and not a view of them: what ZeRO-3
    gathers for a forward pass it then can free, and gather again."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, weights: Tensor, ends: Tensor) -> Tensor:
        ctx.save_for_backward(rows, weights, ends)
        return _products(rows, weights.transpose(-2, -1), ends)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        rows, weights, ends = ctx.saved_tensors
        gradient = gradient.contiguous()
        to_weights = _sums(gradient, rows, ends)
        return _products(gradient, weights, ends), to_weights, None


def _products(rows: Tensor, weights: Tensor, ends: Tensor) -> Tensor:
    """Rows [R, n] times their expert's [n, m]: one kernel; it has no fp64, in which each expert has its own."""
    if rows.dtype is not torch.float64:
        return F.grouped_mm(rows, weights, offs=ends)
    return torch.cat([part @ each for part, each in zip(_parts(rows, ends), weights, strict=True)])


def _sums(left: Tensor, right: Tensor, ends: Tensor) -> Tensor:
    """Of each expert's rows, left^T right: [E, m, n] of [R, m] and [R, n]."""
    if left.dtype is not torch.float64:
        return F.grouped_mm(left.t(), right, offs=ends)
    return torch.stack([a.t() @ b for a, b in zip(_parts(left, ends), _parts(right, ends), strict=True)])


def _parts(rows: Tensor, ends: Tensor) -> tuple[Tensor, ...]:
    return rows.split(ends.diff(prepend=ends.new_zeros(1)).tolist())


class MixtureMLP(nn.Module):
    """In place of an MLP: each token's output is the weighted sum of its experts', and the shared experts'.

    Under autocast rows are cast before they are gathered, once for every reader. `auxiliary_share`: what the balance
    loss of a forward pass counts in the step's loss, 1 / micro_batches, and on each of t tensor-parallel ranks 1 / t of
    that. `tally` [E] sums the tokens routed to each expert, once for every backward pass.
    """

    def __init__(self, spec: Experts, hidden: int, auxiliary_share: float = 1.0) -> None:
        super().__init__()
        self.spec = spec
        self.router = Router(spec, hidden)
        self.experts = ExpertWeights(spec.count, hidden, spec.ffn)
        self.shared = SwiGLU(hidden, spec.shared * spec.ffn, bias=False) if spec.shared else None
        self.exchange: Exchange | None = None
        self.auxiliary_share = auxiliary_share
        self.tally: Tensor
        self.register_buffer("tally", torch.zeros(spec.count, dtype=torch.int64), persistent=False)

    def reset_buffers(self) -> None:
        """A module that was built on the meta device has none."""
        self.tally.zero_()
        self.router.reset_buffers()

    def forward(self, x: Tensor) -> Tensor:
        """x [b, s, h] -> [b, s, h]."""
        tokens, sequences = x.flatten(0, 1), len(x)
        experts, weights, auxiliary = self.router(tokens, sequences)
        with torch.no_grad():
            places = places_of(experts, sequences, self.spec)
        tokens = tokens.to(compute_dtype(tokens))
        y = _summed(self._routed(tokens, places), weights, places, tokens).view(x.shape)
        if self.shared is not None:
            y = y + self.shared(tokens.view(x.shape))
        return _Counted.apply(y, auxiliary, places.load, self)

    def _routed(self, tokens: Tensor, places: Places) -> Tensor:
        """The experts' outputs, [R, h]."""
        rows = tokens.index_select(0, places.tokens)
        if self.exchange is None:
            return self.experts(rows, places.counts)
        rows, counts, back = self.exchange(rows, places.counts)
        return back(self.experts(rows, counts))


def _summed(outputs: Tensor, weights: Tensor, places: Places, tokens: Tensor) -> Tensor:
    """Each token's weighted sum of its rows' outputs [R, h]: as tokens [n, h]."""
    mine = weights.flatten().index_select(0, places.choices)
    if places.filled is not None:
        mine = mine * places.filled
    return _Combine.apply(outputs, mine.to(outputs.dtype), places.tokens, len(tokens))


class _Combine(torch.autograd.Function):
    """Sums of rows [R, h] by weights [R] for the tokens [R] that they are of: [n, h]. As torch's own product and
    index_add compute it, but that index_add would keep the weighted rows, and the product's derivative make two."""

    @staticmethod
    def forward(ctx: Any, outputs: Tensor, weights: Tensor, tokens: Tensor, count: int) -> Tensor:
        ctx.save_for_backward(outputs, weights, tokens)
        weighted = outputs * weights.unsqueeze(1)
        return outputs.new_zeros(count, outputs.shape[1]).index_add_(0, tokens, weighted)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None]:
        outputs, weights, tokens = ctx.saved_tensors
        mine = gradient.index_select(0, tokens)
        to_weights = (mine * outputs).sum(dim=1)
        return mine.mul_(weights.unsqueeze(1)), to_weights, None, None


class _Counted(torch.autograd.Function):
    """The output itself. Its backward pass, which comes once whatever is rerun, adds what was routed to the tally, and
    gives the balance loss the gradient of a term of the step's loss: so it works in any part of a pipeline."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, auxiliary: Tensor | None, load: Tensor, mixture: MixtureMLP) -> Tensor:
        ctx.load, ctx.mixture = load, mixture
        ctx.like = None if auxiliary is None else torch.empty_like(auxiliary, device="meta")
        ctx.device = y.device
        return y.view_as(y)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor | None, None, None]:
        ctx.mixture.tally += ctx.load
        if ctx.like is None:
            return gradient, None, None, None
        share = torch.full((), ctx.mixture.auxiliary_share, dtype=ctx.like.dtype, device=ctx.device)
        return gradient, share, None, None


def mixtures(model: nn.Module) -> Iterator[MixtureMLP]:
    """The model's mixtures, in its order."""
    return (module for module in model.modules() if isinstance(module, MixtureMLP))
