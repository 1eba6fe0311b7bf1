"""What a rank sends in one steady optimizer step, by formula: the messages of its strategies and of the trainer."""

from __future__ import annotations

from parallelism.strategies import strategies_of
from suite.case import Case
from suite.collectives import Collective, Message, TrafficEstimate
from suite.operators import Ledger

NORM_BYTES = 4  # an fp32 scalar


def messages_of(case: Case, ledger: Ledger, rank: int = 0) -> tuple[Message, ...]:
    """Everything `rank` says in a step; `ledger` is the case's. Groups of one say nothing and are left out.

    Not counted: reporting losses, validation, barriers, and the first two steps, in which DDP settles its buckets.
    """
    rows = [row for strategy in strategies_of(case.layout) for row in strategy.messages(case, ledger, rank)]
    rows += clipping_messages(case, ledger)
    return tuple(row for row in rows if row.ranks > 1 and row.count)


def estimate_traffic(case: Case, ledger: Ledger, rank: int = 0) -> TrafficEstimate:
    """The traffic of one rank in one steady step."""
    return TrafficEstimate(messages_of(case, ledger, rank), rank)


def clipping_messages(case: Case, ledger: Ledger) -> tuple[Message, ...]:
    """The gradient norm, at every setting of the clip (parallelism/clipping.py).

    Over FSDP2's shards one all-reduce of every tensor's norm: a rank stacks the norms of its shards, and the stack is
    reduced. Whole gradients (DDP) need none. Source: torch/nn/utils/clip_grad.py, _get_total_norm, on DTensors.
    """
    if case.layout.fsdp == 1:
        return ()
    tensors = sum(
        count * sum(not weight.tied_to for weight in segment.weights) for segment, count in ledger.counts.items()
    )
    return (
        Message(
            Collective.ALL_REDUCE, "fsdp", case.layout.shard_ranks, tensors * NORM_BYTES, 1,
            "norms of the sharded gradients, for clipping", "tensors*4", "torch/nn/utils/clip_grad.py",
        ),
    )  # fmt: skip
