"""Where the tokens of a pass go in a block memory: which become sinks, which stay, which leave for the host."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from suite.block_shape import BlockShape, full_blocks
from suite.caches.base import NOTHING


@dataclass(frozen=True)
class Move:
    """Entry source[i] of the pass goes to entry target[i] of a store; entries of all sequences are in a row."""

    source: Tensor
    target: Tensor


@dataclass(frozen=True)
class BlockPlan:
    """One pass. Its entries [b, t] are the sinks, the newest tokens of before, and the s new ones, t = sinks + recent
    + s; `entries` are their places. `blocks` [b] are those that the host has before the pass; of the e blocks that it
    gets after it, `to_host` moves e * block tokens, one block after another, and `to_representatives` has the entries
    [e * representatives] of what stands for them."""

    queries: Tensor  # places [b, s]
    entries: Tensor
    blocks: Tensor
    begin: Tensor  # place [b, 1] from which tokens stay on the device
    to_sinks: Move
    to_recent: Move
    to_host: Move
    to_representatives: Tensor


def plan_of(size: BlockShape, lengths: list[int], recent: Tensor, queries: Tensor) -> BlockPlan:
    """The pass of new tokens at places `queries` [b, s] over sequences of so many tokens, whose newest are at places
    `recent` [b, size.recent]. The new ones of a sequence go on from its length in their order without a gap."""
    device = queries.device
    kept = queries != NOTHING
    before = torch.tensor(lengths, device=device)
    first = kept.int().argmax(dim=1)  # column of a sequence's first new token
    expected = before[:, None] + torch.arange(queries.shape[1], device=device) - first[:, None]
    assert torch.equal(queries[kept], expected[kept])
    places = torch.arange(size.sinks, device=device)
    sinks = torch.where(places < before[:, None], places, NOTHING)
    old, new = _blocks(size, before), _blocks(size, before + kept.sum(dim=1))
    begin = size.sinks + size.recent
    total = begin + queries.shape[1]
    stay = (size.sinks + new * size.block)[:, None]

    def move(which: Tensor, room: int, offset: int) -> Move:
        row, column = which.nonzero(as_tuple=True)
        return Move(row * total + begin + column, row * room + (queries[which] - offset) % room)

    row = torch.repeat_interleave(torch.arange(len(lengths), device=device), new - old)
    block = old[row] + torch.arange(len(row), device=device) - ((new - old).cumsum(0) - (new - old))[row]
    place = size.sinks + (block * size.block)[:, None] + torch.arange(size.block, device=device)
    is_old = place < before[row][:, None]
    column = torch.where(
        is_old, size.sinks + (place - size.sinks) % size.recent, begin + place - (before - first)[row][:, None]
    )
    number = row * size.blocks + block
    return BlockPlan(
        queries=queries,
        entries=torch.cat((sinks, recent, queries), dim=1),
        blocks=old,
        begin=stay,
        to_sinks=move(kept & (queries < size.sinks), size.sinks, 0),
        to_recent=move(queries >= stay, size.recent, size.sinks),
        to_host=Move((row[:, None] * total + column).flatten(), _spread(number, size.block)),
        to_representatives=_spread(number, size.representatives),
    )


def _blocks(size: BlockShape, lengths: Tensor) -> Tensor:
    counts = [full_blocks(length, size.sinks, size.window, size.block) for length in lengths.tolist()]
    return torch.tensor(counts, device=lengths.device)


def _spread(number: Tensor, each: int) -> Tensor:
    """Entries of these numbers, `each` of them a number."""
    return (number[:, None] * each + torch.arange(each, device=number.device)).flatten()
