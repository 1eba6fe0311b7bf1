"""A recorded routing: rows that each rank's experts received, as samples, and as formulas take them. Torch-free."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from enum import StrEnum

from suite.case import Case
from suite.collectives import Collective
from suite.passes import Pass
from suite.record import Quantity, Sample

#: rows that a rank's experts receive in a micro-batch, block by block; those of multi-token prediction come last
Rows = tuple[int, ...]
#: by rank, each micro-batch's rows
Routing = Mapping[int, tuple[Rows, ...]]


class RoutedAs(StrEnum):
    """Which routing an estimate is of."""

    ASSUMED = "assumed"  # as uneven as the workload says
    RECORDED = "recorded"  # in the very steps that were measured


def received_rows(case: Case, heard: Mapping[int, Sequence[int]]) -> tuple[Rows, ...]:
    """The rows of a step's micro-batches, of what each block was heard to receive in one forward pass after another,
    the step's last; 0 of a block without experts, or of another stage."""
    count, blocks = case.workload.micro_batches, range(blocks_of(case))
    return tuple(
        tuple(heard[block][place] if heard.get(block) else 0 for block in blocks) for place in range(-count, 0)
    )


def received_samples(rows: Iterable[Rows], rank: int, heard_in: Pass) -> Iterator[Sample]:
    """A rank's rows as samples of the pass that heard them, indexed by micro-batch x blocks + block."""
    collective = _COLLECTIVE[heard_in]
    for number, row in enumerate(rows):
        for block, count in enumerate(row):
            yield Sample(Quantity.RECEIVED_ROWS, count, rank, number * len(row) + block, collective=collective)


def routing_of(case: Case, samples: Iterable[Sample], heard_in: Pass) -> Routing:
    """The inverse of `received_samples`, of all ranks of which there are such samples."""
    blocks, collective = blocks_of(case), _COLLECTIVE[heard_in]
    found: dict[int, dict[int, int]] = {}
    for sample in samples:
        if sample.quantity is Quantity.RECEIVED_ROWS and sample.collective is collective:
            found.setdefault(sample.rank, {})[sample.index] = int(sample.value)
    return {
        rank: tuple(
            tuple(table.get(number * blocks + block, 0) for block in range(blocks))
            for number in range(case.workload.micro_batches)
        )
        for rank, table in found.items()
    }


def mean_rows(rows: Sequence[Rows]) -> Rows:
    """The mean of several micro-batches, rounded up: of one alone its own rows."""
    return tuple(-(-sum(blocks) // len(rows)) for blocks in zip(*rows, strict=True))


def blocks_of(case: Case) -> int:
    """Blocks of the case's model, and of its multi-token prediction."""
    return case.model.layers + getattr(case.model, "mtp", 0)


#: what tells the samples of the traffic pass from those of the memory pass, which are steps of other models
_COLLECTIVE = {Pass.MEMORY: None, Pass.TRAFFIC: Collective.ALL_TO_ALL}
