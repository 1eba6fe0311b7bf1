"""Ring attention: keys and values travel from rank to rank while each rank's queries stay (arXiv:2310.01889)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from parallelism.context.block import BlockKernel, block_kernel, wide_type
from suite.models.blocks import rotate
from suite.parse import require
from suite.sequence_shards import Product, ring_products
from suite.spec import AttentionKernel

#: tags of what is under way at the same time: keys and values, and the sums of their gradients
KEYS, SUMS = 0, 2

Pair = tuple[Tensor, Tensor]  # keys and values, or their gradients


def ring_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    group: dist.ProcessGroup,
    is_causal: bool,
    balanced: bool,
    kind: AttentionKernel = AttentionKernel.FLASH,
) -> Tensor:
    """Attention of this rank's queries to all ranks' keys: [b, a, s, d], stored as [b, s, a, d].

    q [b, a, s, d] and k, v [b, kv, s, d] are this rank's shards, at the positions that
    `sequence_shards.sequence_positions` gives it; s is the same on every rank, and `balanced` matters only with
    `is_causal`. Key heads travel as they are, not repeated for the queries that share them. Partial outputs are
    merged in fp32 (fp64 for fp64). Kept for backward: q, k, v, the output and a log-sum-exp a row.
    Raises SpecError where a balanced shard is not two equal chunks.
    """
    require(
        not balanced or group.size() == 1 or q.shape[2] % 2 == 0,
        f"workload.seq_len: {q.shape[2]} tokens a rank are not two equal chunks; take a multiple of 2 cp",
    )
    return _RingAttention.apply(q, k, v, Ring(group, is_causal, balanced), kind)


@dataclass(frozen=True)
class InFlight:
    """A pair under way from the rank before; the pair that this rank sends has to live as long."""

    sent: Pair
    received: Pair
    works: Sequence[dist.Work]

    def wait(self) -> Pair:
        """What the rank before sent, once it is here and what was sent has left."""
        for work in self.works:
            work.wait()
        return self.received


@dataclass(frozen=True)
class Ring:
    """The ranks of a group in a circle: what this one computes, and how tensors get to the next one."""

    group: dist.ProcessGroup
    is_causal: bool
    balanced: bool

    def products(self) -> list[Product | None]:
        """This rank's work, step by step."""
        return list(ring_products(self.group.size(), self.group.rank(), self.is_causal, self.balanced))

    def pass_on(self, pair: Pair, tag: int) -> InFlight:
        """Start sending contiguous tensors to the next rank and receiving their like from the one before."""
        ranks, rank = self.group.size(), self.group.rank()
        if ranks == 1:
            return InFlight(pair, pair, ())
        received = (torch.empty_like(pair[0]), torch.empty_like(pair[1]))
        messages = [
            dist.P2POp(way, tensor, group=self.group, tag=tag + index, group_peer=peer % ranks)
            for way, moved, peer in ((dist.isend, pair, rank + 1), (dist.irecv, received, rank - 1))
            for index, tensor in enumerate(moved)
        ]
        return InFlight(pair, received, dist.batch_isend_irecv(messages))


class _RingAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, ring: Ring, kind: AttentionKernel) -> Tensor:
        ctx.ring, ctx.kernel = ring, block_kernel(kind, q, k, v)
        with torch.autocast(q.device.type, enabled=False):
            out, lse = _forward(q, k, v, ring, ctx.kernel)
        ctx.save_for_backward(q, k, v, out, lse)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, lse = ctx.saved_tensors
        with torch.autocast(grad.device.type, enabled=False):
            gradients = _backward(grad, q, k, v, out, lse, ctx.ring, ctx.kernel)
        return (*gradients, None, None)


def _forward(q: Tensor, k: Tensor, v: Tensor, ring: Ring, kernel: BlockKernel) -> Pair:
    """Output in q's type, and log-sum-exp. The next block travels while this one is computed."""
    products = ring.products()
    block = (_seq_first(k).contiguous(), _seq_first(v).contiguous())
    out, lse = q, q  # replaced in step 0, which every rank computes
    for step, product in enumerate(products):
        coming = ring.pass_on(block, KEYS) if step + 1 < len(products) else None
        if product is not None:
            rows, columns = product.queries.of(q.shape[2]), product.keys.of(q.shape[2])
            keys, values = _heads_first(block[0][:, columns]), _heads_first(block[1][:, columns])
            part = kernel.forward(q[:, :, rows], keys, values, product.is_masked)
            if step == 0:
                out, lse = part[0].to(wide_type(q.dtype)), part[1]
            else:
                _merge(out[:, :, rows], lse[:, :, rows], *part)
            del keys, values, part
        if coming is not None:
            block = coming.wait()
        del coming  # and with it what was sent
    return out.to(q.dtype), lse


def _merge(out: Tensor, lse: Tensor, block_out: Tensor, block_lse: Tensor) -> None:
    """Fold a block into its rows, in place. With L the log-sum-exps, the block's share of a row is
    exp(L_block) / (exp(L) + exp(L_block)) = sigmoid(L_block - L)."""
    out.lerp_(block_out.to(out.dtype), torch.sigmoid(block_lse - lse).unsqueeze(-1))
    torch.logaddexp(lse, block_lse, out=lse)


def _backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, ring: Ring, kernel: BlockKernel
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v. Keys and values go round once more, and a step behind each block the sums of its
    gradients: what is added to them in one step travels during the next. The last step leaves them a rank from home."""
    products = ring.products()
    block = (_seq_first(k).contiguous(), _seq_first(v).contiguous())
    dq, behind = q, None  # replaced in step 0, which every rank computes
    for step, product in enumerate(products):
        coming = ring.pass_on(block, KEYS) if step + 1 < len(products) else None
        part = None if product is None else _part(grad, q, out, lse, block, product, kernel)
        if behind is not None:
            sums = behind.wait()
            if product is not None and part is not None:
                _add(dq, sums, part, product)
        elif part is not None:
            wide = wide_type(q.dtype)
            dq = part[0].to(wide)
            sums = (_seq_first(part[1]).contiguous().to(wide), _seq_first(part[2]).contiguous().to(wide))
        part = behind = None  # and with them what was sent
        behind = ring.pass_on(sums, SUMS)
        if coming is not None:
            block = coming.wait()
        del coming, sums
    assert behind is not None
    dk, dv = behind.wait()
    del block, behind
    return dq.to(q.dtype), _heads_first(dk.to(k.dtype)), _heads_first(dv.to(v.dtype))


def _part(
    grad: Tensor, q: Tensor, out: Tensor, lse: Tensor, block: Pair, product: Product, kernel: BlockKernel
) -> tuple[Tensor, Tensor, Tensor]:
    """What one product adds to the gradients of its queries, keys and values."""
    rows, columns = product.queries.of(q.shape[2]), product.keys.of(q.shape[2])
    keys, values = _heads_first(block[0][:, columns]), _heads_first(block[1][:, columns])
    grad, q, out, lse = grad[:, :, rows], q[:, :, rows], out[:, :, rows], lse[:, :, rows]
    return kernel.backward(grad, q, out, lse, keys, values, product.is_masked)


def _add(dq: Tensor, sums: Pair, part: tuple[Tensor, Tensor, Tensor], product: Product) -> None:
    """Add a product's gradients to the rows and columns that they belong to."""
    dq[:, :, product.queries.of(dq.shape[2])].add_(part[0])
    for total, addend in zip(sums, part[1:], strict=True):
        total[:, product.keys.of(dq.shape[2])].add_(_seq_first(addend))


def _seq_first(x: Tensor) -> Tensor:
    """[b, heads, s, d] -> [b, s, heads, d], a view: how projections lay it out, so then it is contiguous."""
    return x.transpose(1, 2)


def _heads_first(x: Tensor) -> Tensor:
    """The inverse of `_seq_first`."""
    return x.transpose(1, 2)


class RingCore(nn.Module):
    """A block's attention core over a ring: what FlashCore and EagerCore compute, of a sequence spread over ranks."""

    def __init__(self, group: dist.ProcessGroup, balanced: bool, kind: AttentionKernel) -> None:
        super().__init__()
        self.group = group
        self.balanced = balanced
        self.kind = kind

    def forward(self, q: Tensor, k: Tensor, v: Tensor, rope: tuple[Tensor, Tensor] | None) -> Tensor:
        """q [b, s, a, d], k and v [b, s, kv, d], rope at this rank's positions -> [b, s, a, d]."""
        if rope is not None:
            q, k = rotate(q, *rope), rotate(k, *rope)
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        return ring_attention(q, k, v, self.group, True, self.balanced, self.kind).transpose(1, 2)
