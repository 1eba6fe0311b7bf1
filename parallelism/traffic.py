"""What a rank sends in one steady optimizer step, by formula: the messages of its strategies and of the trainer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from parallelism.base import Strategy
from parallelism.data.ddp import DDP
from parallelism.data.fsdp import FSDP
from parallelism.expert_loads import load_messages
from parallelism.schedules.ledgers import ledger_of_stages, rank_stages
from parallelism.strategies import strategies_of
from suite.case import Case
from suite.collectives import Collective, Message, TrafficEstimate
from suite.layout import Layout
from suite.operators import Ledger
from suite.spec import Precision

NORM_BYTES = FOUND_BYTES = 4  # fp32 scalars


def messages_of(case: Case, ledger: Ledger, rank: int = 0) -> tuple[Message, ...]:
    """Everything `rank` says in a step; `ledger` is of its share of the whole model, every stage of it. Groups of one
    say nothing and are left out.

    Not counted: reporting losses, validation, barriers, and the first two steps, in which DDP settles its buckets.
    """
    rows: list[Message] = []
    for strategy in strategies_of(case.layout):
        for part in _parts(case, ledger, rank, strategy):
            rows += strategy.messages(case, part, rank)
    experts = any(weight.is_expert for part in _parts(case, ledger, rank, FSDP) for weight in part.weights)
    rows += (*clipping_messages(case.layout, experts), *scaling_messages(case))
    rows += load_messages(case, _blocks(case, rank))
    return tuple(row for row in rows if row.ranks > 1 and row.count)


def _parts(case: Case, ledger: Ledger, rank: int, strategy: Strategy) -> list[Ledger]:
    """What a strategy works on: the model, or in a pipeline what the rank holds of it, which wrappers take a stage at a
    time."""
    if case.layout.pp == 1:
        return [ledger]
    stages = rank_stages(case, rank)
    parts = [(stage,) for stage in stages] if strategy in (DDP, FSDP) else [stages]
    return [ledger_of_stages(case, ledger, part) for part in parts]


def _blocks(case: Case, rank: int) -> tuple[int, ...]:
    """The blocks that a rank holds; multi-token prediction's, behind the others, are the last stage's."""
    stages = rank_stages(case, rank)
    extra = range(case.model.layers, case.model.layers + getattr(case.model, "mtp", 0))
    return (*(block for stage in stages for block in stage.blocks), *(extra if stages[-1].has_head else ()))


def estimate_traffic(case: Case, ledger: Ledger, rank: int = 0) -> TrafficEstimate:
    """The traffic of one rank in one steady step."""
    return TrafficEstimate(messages_of(case, ledger, rank), rank)


def estimate_routed(case: Case, ledgers: Sequence[Ledger], rank: int) -> TrafficEstimate:
    """The same where each micro-batch has a ledger of its own, of the routing that was recorded: experts' all-to-alls
    are each micro-batch's, all else is the same whichever ledger says it."""
    if len(ledgers) == 1:
        return estimate_traffic(case, ledgers[0], rank)
    said = [messages_of(case, ledger, rank) for ledger in ledgers]
    routed = (replace(row, count=row.count // len(ledgers)) for rows in said for row in rows if _is_routed(row))
    return TrafficEstimate((*(row for row in said[0] if not _is_routed(row)), *routed), rank)


def _is_routed(message: Message) -> bool:
    """Does its size depend on where tokens go?"""
    return message.collective is Collective.ALL_TO_ALL and message.axis == "ep"


def scaling_messages(case: Case) -> tuple[Message, ...]:
    """fp16's gradient scaler: whether any rank found an infinity in its shards, an fp32 scalar. Whole gradients (DDP)
    are alike on all ranks."""
    if case.workload.precision is not Precision.FP16_MIXED:
        return ()
    return (
        Message(
            Collective.ALL_REDUCE, "fsdp", case.layout.shard_ranks, FOUND_BYTES, 1,
            "does any shard's gradient overflow in fp16?", "4",
            "torch/distributed/tensor/_dispatch.py, found_inf_reduce_handler",
        ),
    )  # fmt: skip


def clipping_messages(layout: Layout, has_experts: bool = False) -> tuple[Message, ...]:
    """The gradient norm, at every setting of the clip (parallelism/clipping.py).

    The sum of the squares of what a rank holds, an fp32 scalar, added up over each axis that divides gradients, the
    pipeline's stages too. Whole gradients (DDP) need none. Experts that expert parallelism divides are summed by
    themselves over tp, ep and their shards.
    """
    groups = [("tp", layout.tp), ("fsdp", layout.shard_ranks), ("pp", layout.pp)]
    if has_experts:
        groups += [("tp", layout.tp), ("ep", layout.ep), ("fsdp", layout.expert_shard_ranks)]
    return tuple(
        Message(
            Collective.ALL_REDUCE, axis, ranks, NORM_BYTES, 1,
            "squares of the divided gradients, for clipping", "4", "parallelism/clipping.py",
        )
        for axis, ranks in groups
    )  # fmt: skip
