"""The operator ledger of a pipeline stage, and of all that a rank holds: the whole model's, with some segments."""

from __future__ import annotations

from dataclasses import replace

from parallelism.schedules.stages import Stage, head_is_copied, stages_of, stages_of_rank
from suite.case import Case
from suite.operators import Ledger, Operator, Placed, Region, Segment, Weight


def rank_stages(case: Case, rank: int) -> tuple[Stage, ...]:
    """The stages that a rank of the whole layout holds."""
    return stages_of_place(case, case.layout.place("pp", rank))


def stages_of_place(case: Case, pp_rank: int) -> tuple[Stage, ...]:
    """The stages that a pipeline rank holds."""
    stages = stages_of(case)
    return tuple(stages[index] for index in stages_of_rank(case.layout, pp_rank))


def ledger_of_stages(case: Case, ledger: Ledger, stages: tuple[Stage, ...]) -> Ledger:
    """The segments of these stages. A tied head that is a parameter of its own is tied to nothing there.

    Its kernels still read the whole model's weight object; what a rank holds and sends is counted by operators.
    """
    segments = tuple(each for stage in stages for each in _segments(case, ledger, stage))
    here = {f"{placed.prefix}." for placed in segments}
    elsewhere = {f"{placed.prefix}." for placed in ledger.segments} - here
    buffers = tuple(array for array in ledger.buffers if not array.name.startswith(tuple(elsewhere)))
    return replace(ledger, segments=segments, buffers=buffers)


def _segments(case: Case, ledger: Ledger, stage: Stage) -> list[Placed]:
    first, last = ledger.blocks[0], ledger.blocks[-1]
    start = 0 if stage.has_embedding else first + stage.blocks.start
    end = len(ledger.segments) if stage.has_head else first + stage.blocks.stop
    segments = list(ledger.segments[start:end])
    if not (stage.has_head and head_is_copied(case)):
        return segments
    heads = len(ledger.segments) - last - 1
    return segments[:-heads] + [Placed(each.prefix, _untied(each.segment)) for each in segments[-heads:]]


def _untied(segment: Segment) -> Segment:
    own: dict[Weight, Weight] = {}  # slices of a head share one weight

    def untied(weight: Weight) -> Weight:
        return own.setdefault(weight, replace(weight, tied_to=None))

    def body(items: tuple[Operator | Region, ...]) -> tuple[Operator | Region, ...]:
        return tuple(
            replace(item, body=body(item.body))
            if isinstance(item, Region)
            else replace(item, weights=tuple(map(untied, item.weights)))
            for item in items
        )

    return replace(segment, body=body(segment.body))


def stage_of_ledger(case: Case, ledger: Ledger) -> int:
    """Which stage a stage's ledger is of: its first block's number tells."""
    first = next(int(placed.prefix.rpartition(".")[2]) for placed in ledger.segments if placed.prefix)
    return next(stage.index for stage in stages_of(case) if first in stage.blocks)
