"""What a rank computes and keeps of one micro-batch, were the whole model its own: of each grain and engine once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from itertools import accumulate
from typing import Any, Protocol

from memory.estimate import MemoryModel
from memory.labels import WalkRules
from memory.walk import walk_segment
from parallelism.simulator.plan import Unit
from parallelism.simulator.unit_messages import Seconds
from reports.plan.space import Grain, Space, Spread
from suite.case import Case
from suite.layout import Layout
from suite.memo import Memo

#: settings that no plan chooses, on which the work of a micro-batch depends
OF_GRAINS = ("sequence_parallel", "load_balance")


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

    def message_seconds(self, case: Case, layout: Layout) -> Seconds:
        """What one call of a message takes in a layout on the case's cluster."""
        ...


@dataclass(frozen=True)
class Work:
    """Sums over the model's segments in forward order, each list one longer than they are: seconds of a micro-batch's
    forward pass and of all of it, bytes kept from forward to backward, parameters of a tensor rank."""

    forward: Sequence[float]
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
        return self.memo.once("parameters", lambda: MemoryModel(self.space.asked.base, self.memo).ledger.parameters)

    def case(self, grain: Grain, engine: Engine) -> Case:
        """A case with that grain's micro-batch, and as many ranks as there are."""
        return self.memo.once(("case", grain, engine), lambda: self._case(grain, engine))

    def _case(self, grain: Grain, engine: Engine) -> Case:
        asked, others = self.space.asked, self.space.others
        ranks = asked.gpus // (grain.tp * grain.cp)
        of_engines: dict[Engine, dict[str, Any]] = {
            Engine.REPLICATED: {"dp": ranks},
            Engine.SHARDED: {"fsdp": ranks},
            Engine.DEEPSPEED: {"dp": ranks, "zero": 1},
        }
        settings = of_engines[engine] | {name: others[name] for name in OF_GRAINS if name in others}
        layout = Layout(tp=grain.tp, cp=grain.cp, context=grain.context, recompute=grain.recompute, **settings)
        workload = replace(asked.base.workload, micro_batch=grain.micro_batch, micro_batches=1)
        return replace(asked.base, layout=layout, workload=workload, cluster=asked.cluster)

    def _work(self, grain: Grain, engine: Engine) -> Work:
        case = self.case(grain, engine)
        ledger = MemoryModel(case, self.memo).ledger_of_share(0)
        placed = ledger.segments
        units = self.prices.units(case) if self.prices else ()
        walks = {segment: walk_segment(segment, WalkRules()) for segment in ledger.counts}
        # what the head keeps is freed as it comes, where the loss is computed
        kept = [
            walks[each.segment].forward.net + walks[each.segment].uncache.net if place in ledger.blocks else 0
            for place, each in enumerate(placed)
        ]
        nothing = [0.0] * len(placed)
        forward = [unit.forward.seconds for unit in units] or nothing
        backward = [unit.backward.seconds + unit.rerun.seconds for unit in units] or nothing
        return Work(
            forward=_sums(forward),
            whole=_sums(map(sum, zip(forward, backward, strict=True))),
            kept=_sums(kept),
            parameters=_sums(each.segment.parameters for each in placed),
            first_block=ledger.blocks.start,
        )


def _sums(sizes: Iterable[float]) -> list[float]:
    return list(accumulate(sizes, initial=0.0))
