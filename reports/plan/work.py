"""What a rank computes and keeps of one micro-batch, were the whole model its own: of each grain and engine once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import cached_property
from itertools import accumulate
from typing import Any, NamedTuple, Protocol

from memory.estimate import MemoryModel
from memory.labels import WalkRules
from memory.walk import Walker
from parallelism.simulator.plan import Unit
from parallelism.simulator.unit_messages import Seconds
from reports.plan.space import Grain, Space, Spread
from suite.case import Case
from suite.layout import Layout, Recompute, RecomputeKind
from suite.memo import Memo
from suite.operators import Ledger, Segment, Weight


class Engine(StrEnum):
    """Who shards: what decides the number formats, and so the work of a micro-batch."""

    REPLICATED = "replicated"
    SHARDED = "sharded"
    DEEPSPEED = "deepspeed"


def engine_of(spread: Spread) -> Engine:
    """Of a spread."""
    if spread.fsdp > 1:
        return Engine.SHARDED
    return Engine.DEEPSPEED if spread.engine == "deepspeed" else Engine.REPLICATED


class Prices(Protocol):
    """What is known of times before a layout is simulated (parallelism.simulator.search.StepSearch)."""

    def units(self, case: Case) -> tuple[Unit, ...]:
        """Every segment's cost for one micro-batch on one rank, the whole model in forward order."""
        ...

    def ledger(self, case: Case) -> Ledger:
        """The operators of one micro-batch on one rank, were the whole model its own."""
        ...

    def slowdown(self, case: Case) -> float:
        """Time of the case's compute beside communication over its time alone."""
        ...

    def moved_seconds(self, case: Case, nbytes: float) -> float:
        """What the case's device needs to read and write so many bytes in one go."""
        ...

    def message_seconds(self, case: Case, layout: Layout) -> Seconds:
        """What one call of a message takes in a layout on the case's cluster."""
        ...


@dataclass(frozen=True)
class Work:
    """Sums over the model's segments in forward order, each list one longer than they are: seconds of a micro-batch's
    forward pass, of all but the gradients of weights and of all of it, bytes kept from forward to backward, parameters
    of a tensor rank."""

    forward: Sequence[float]
    passed: Sequence[float]
    whole: Sequence[float]
    kept: Sequence[float]
    parameters: Sequence[float]
    first_block: int


@dataclass(frozen=True)
class Works:
    """The work of each grain of a space under each engine. Without prices every time is 0."""

    space: Space
    prices: Prices | None
    memo: Memo = field(default_factory=Memo, compare=False, repr=False)

    def of(self, grain: Grain, engine: Engine) -> Work:
        """What a rank computes of a micro-batch, and keeps of it, if it had the whole model."""
        return self.memo.once(("work", grain, engine), lambda: self._work(grain, engine))

    def parameters(self) -> int:
        """Of the whole model."""
        return self._whole.parameters

    @cached_property
    def share_of_blocks(self) -> float:
        """Of the parameters, those in blocks; experts that expert parallelism may divide are left out."""
        return self._common(in_blocks=True) / self._common()

    @cached_property
    def experts(self) -> int:
        """Of the parameters, those that expert parallelism may divide."""
        return self.parameters() - self._common()

    def _common(self, in_blocks: bool = False) -> int:
        segments = [each.segment for each in self._whole.segments if each.prefix or not in_blocks]
        owned = (weight for segment in segments for weight in segment.weights if not weight.tied_to)
        return sum(weight.elements for weight in owned if not is_of_experts(weight))

    @cached_property
    def _whole(self) -> Ledger:
        return MemoryModel(self.space.asked.base, self.memo).ledger

    def case(self, grain: Grain, engine: Engine) -> Case:
        """A case with that grain's micro-batch, and as many ranks as there are."""
        return self.memo.once(("case", grain, engine), lambda: self._case(grain, engine))

    def layout(self, grain: Grain, engine: Engine) -> Layout:
        """All ranks that the grain leaves, spread as the engine does it; no rule about a case is asked."""
        ranks = self.space.asked.gpus // (grain.tp * grain.cp * grain.ep)
        of_engines: dict[Engine, dict[str, Any]] = {
            Engine.REPLICATED: {"dp": ranks},
            Engine.SHARDED: {"fsdp": ranks},
            Engine.DEEPSPEED: {"dp": ranks, "zero": 1},
        }
        settings = of_engines[engine] | self.space.of_grains
        settings |= {"tp": grain.tp, "cp": grain.cp, "ep": grain.ep}
        return Layout(context=grain.context, recompute=grain.recompute, **settings)

    def _case(self, grain: Grain, engine: Engine) -> Case:
        asked, layout = self.space.asked, self.layout(grain, engine)
        workload = replace(asked.base.workload, micro_batch=grain.micro_batch, micro_batches=1)
        return replace(asked.base, layout=layout, workload=workload, cluster=asked.cluster)

    def _work(self, grain: Grain, engine: Engine) -> Work:
        rows = self._mixed(grain, engine) if grain.recompute.kind is RecomputeKind.EVERY else self._rows(grain, engine)
        forward, inputs, weights, kept, parameters = zip(*rows.of, strict=True)
        passed = list(map(sum, zip(forward, inputs, strict=True)))
        whole = map(sum, zip(passed, weights, strict=True))
        return Work(_sums(forward), _sums(passed), _sums(whole), _sums(kept), _sums(parameters), rows.first_block)

    def _rows(self, grain: Grain, engine: Engine) -> _Rows:
        return self.memo.once(("rows", grain, engine), lambda: self._priced(grain, engine))

    def _priced(self, grain: Grain, engine: Engine) -> _Rows:
        case = self.case(grain, engine)
        ledger = self.prices.ledger(case) if self.prices else MemoryModel(case, self.memo).ledger_of_share(0)
        units = self.prices.units(case) if self.prices else (None,) * len(ledger.segments)
        kept = {segment: _kept(segment) for segment in ledger.counts}
        found = []
        for place, (placed, unit) in enumerate(zip(ledger.segments, units, strict=True)):
            forward = unit.forward.seconds if unit else 0.0
            inputs = unit.inputs.seconds + unit.rerun.seconds if unit else 0.0
            weights = unit.weights.seconds if unit else 0.0
            # what the head keeps is freed as it comes, where the loss is computed
            stays = kept[placed.segment] if place in ledger.blocks else 0
            found.append(_Row(forward, inputs, weights, stays, placed.segment.parameters))
        return _Rows(tuple(found), ledger.blocks.start)

    def _mixed(self, grain: Grain, engine: Engine) -> _Rows:
        """Where every n-th block is rerun it is as where all are, and the others as where none is."""
        none, full = (
            self._rows(grain._replace(recompute=Recompute(kind)), engine)
            for kind in (RecomputeKind.NONE, RecomputeKind.FULL)
        )
        first, covers = full.first_block, grain.recompute.covers_block
        return _Rows(
            tuple(
                rerun if place >= first and covers(place - first) else plain
                for place, (plain, rerun) in enumerate(zip(none.of, full.of, strict=True))
            ),
            first,
        )


def is_of_experts(weight: Weight) -> bool:
    """Is it a stack of matrices, one an expert?"""
    return len(weight.shape) > 2


class _Row(NamedTuple):
    forward: float
    inputs: float
    weights: float
    kept: int
    parameters: int


class _Rows(NamedTuple):
    """Of each segment, and where the blocks start."""

    of: tuple[_Row, ...]
    first_block: int


def _kept(segment: Segment) -> int:
    """Bytes that its forward pass leaves, its output in place of its input."""
    forward, uncache = Walker(segment, WalkRules()).run_forward()
    return forward.net + uncache.net


def _sums(sizes: Iterable[float]) -> list[float]:
    return list(accumulate(sizes, initial=0.0))
