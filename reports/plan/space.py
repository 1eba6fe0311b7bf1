"""The space of layouts: what is tried for each axis, and every combination of it, as small tuples.

What a rank computes of a micro-batch is a Grain; how micro-batches go through a pipeline a Pipe; how replicas and
shards share the parameters a Spread. A layout is one of each. The rules of Layout and Case refuse; they are asked once
for all layouts that are alike to them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache, cached_property, partial
from itertools import product
from math import isqrt
from typing import Any, NamedTuple, TypeVar

from reports.plan.asked import Asked
from suite.case import Case
from suite.layout import ContextMethod, Engine, Layout, Recompute, Reduction, Schedule
from suite.parse import SpecError

P = TypeVar("P", bound="Pipe | Spread")

#: largest micro-batch, fewest tokens of a context rank, most stages a rank, that are tried unless fixed
MOST_SEQUENCES, LEAST_TOKENS, MOST_STAGES = 8, 512, 8
RECOMPUTE = tuple(map(Recompute.parse, ("none", "selective", "selective-op", "every-4", "every-2", "full")))


class Grain(NamedTuple):
    """What a rank computes of a micro-batch."""

    tp: int
    cp: int
    context: ContextMethod
    micro_batch: int
    recompute: Recompute
    ep: int = 1


class Pipe(NamedTuple):
    """How micro-batches go through the pipeline."""

    pp: int
    schedule: Schedule
    virtual_stages: int
    micro_batches: int


class Spread(NamedTuple):
    """How replicas and shards share the parameters."""

    dp: int
    fsdp: int
    zero: int
    engine: Engine
    reshard_after_forward: bool
    reduction: Reduction


class Pipes(NamedTuple):
    """Those that the rules take, and how many they refuse, by reason."""

    legal: tuple[Pipe, ...]
    refused: Counter[str]


class Spreads(NamedTuple):
    """The same of spreads."""

    legal: tuple[Spread, ...]
    refused: Counter[str]


class _Alike(NamedTuple):
    """What the rules about spreads ask of the rest of a layout."""

    tp: bool
    cp: bool
    ep: bool
    pp: bool
    schedule: Schedule
    virtual_stages: int
    recompute: Recompute


#: settings that no plan chooses, on which the work of a micro-batch depends
OF_GRAINS = ("sequence_parallel", "load_balance")
#: settings that a plan chooses, each by the name that a Case has for it
CHOSEN = (*Grain._fields, *Pipe._fields, *Spread._fields)


@dataclass(frozen=True)
class Space:
    """All layouts that are tried for a question."""

    asked: Asked

    def grains(self) -> Iterator[tuple[Grain, int]]:
        """Each grain with each pipeline degree that the GPUs and the global batch leave whole numbers for."""
        asked, model = self.asked, self.asked.base.model
        for tp in self._degrees("tp", asked.gpus, model.heads):
            for cp in self._degrees("cp", asked.gpus // tp, max(1, asked.base.workload.seq_len // LEAST_TOKENS)):
                for pp in self._degrees("pp", asked.gpus // (tp * cp), model.layers):
                    data = asked.gpus // (tp * cp * pp)
                    if asked.global_batch % data:
                        continue
                    for sequences in self._degrees("micro_batch", asked.global_batch // data, MOST_SEQUENCES):
                        for ep, context in product(self._experts(data, cp), self._contexts(cp)):
                            for recompute in self._recompute():
                                yield Grain(tp, cp, context, sequences, recompute, ep), pp

    @cached_property
    def first_grain(self) -> Grain:
        """The first that some layout can have: for what is alike in all of them. SpecError where none can."""
        refused = ""
        for grain, _ in self.grains():
            refused = self.refuses_grain(grain)
            if not refused:
                return grain
        raise SpecError(refused or "no layout has all that is fixed; fix less")

    def refuses_grain(self, grain: Grain) -> str:
        """Why no layout with this grain can be; empty where some can."""
        return self._of_grain(grain.tp, grain.cp, grain.context, grain.ep, grain.recompute)

    def pipes(self, grain: Grain, pp: int) -> Pipes:
        """Schedules and stages a rank of that degree; micro-batches make up the global batch."""
        return self._pipes(pp, self.asked.global_batch // (self.data_ranks(grain, pp) * grain.micro_batch))

    def spreads(self, grain: Grain, pipe: Pipe) -> Spreads:
        """Replicas and shards of the ranks that are left."""
        axes = grain.tp > 1, grain.cp > 1, grain.ep > 1, pipe.pp > 1
        alike = _Alike(*axes, pipe.schedule, pipe.virtual_stages, grain.recompute)
        ranks = self.data_ranks(grain, pipe.pp) // grain.ep
        return self._spreads(ranks, alike, pipe.pp == 1 and pipe.micro_batches > 1)

    def data_ranks(self, grain: Grain, pp: int) -> int:
        """Ranks that each take their own part of the global batch."""
        return self.asked.gpus // (grain.tp * grain.cp * pp)

    @cached_property
    def others(self) -> dict[str, Any]:
        """Fixed settings of the layout that a plan has no choice of."""
        return {name: value for name, value in self.asked.fixed.items() if name not in CHOSEN}

    def case(self, grain: Grain, pipe: Pipe, spread: Spread) -> Case:
        """The layout as a Case. SpecError where a rule refuses it."""
        base, parts = self.asked.base, {**grain._asdict(), **pipe._asdict(), **spread._asdict()}
        work = {name: parts.pop(name) for name in ("micro_batch", "micro_batches")}
        return replace(
            base,
            layout=Layout(**parts, **self.others),
            workload=replace(base.workload, **work),
            cluster=self.asked.cluster,
        )

    @cached_property
    def of_grains(self) -> dict[str, Any]:
        """Of those, what the work of a micro-batch depends on."""
        return {name: value for name, value in self.others.items() if name in OF_GRAINS}

    @cached_property
    def _of_grain(self) -> Callable[[int, int, ContextMethod, int, Recompute], str]:
        @cache
        def of_grain(tp: int, cp: int, context: ContextMethod, ep: int, recompute: Recompute) -> str:
            parts: dict[str, Any] = {"tp": tp, "cp": cp, "context": context, "ep": ep, "recompute": recompute}
            return _why(lambda: self._alone(Layout(**parts, **self.of_grains), 1))

        return of_grain

    @cached_property
    def _of_spread(self) -> Callable[[Spread, int], str]:
        """What the rules about a workload say of it: of optimizers and number formats that cannot be sharded so."""

        @cache
        def of_spread(spread: Spread, micro_batches: int) -> str:
            # context ranks are replicas too: a layout of one replica without them could not be
            replicas = 2 if spread.zero and spread.engine is Engine.TORCH else spread.dp
            parts = spread._replace(dp=replicas)._asdict()
            return _why(lambda: self._alone(Layout(**parts), micro_batches))

        return of_spread

    @cached_property
    def _pipes(self) -> Callable[[int, int], Pipes]:
        @cache
        def pipes(pp: int, count: int) -> Pipes:
            legal, refused = [], Counter[str]()
            for pipe in self._fixed(self._all_pipes(pp, count)):
                parts = {"pp": pp, "schedule": pipe.schedule, "virtual_stages": pipe.virtual_stages}
                if why := _why(partial(self._piped, parts, count)):
                    refused[why] += 1
                else:
                    legal.append(pipe)
            return Pipes(tuple(legal), refused)

        return pipes

    def _all_pipes(self, pp: int, count: int) -> list[Pipe]:
        if pp == 1:
            return [Pipe(1, Schedule.ONE_F_ONE_B, 1, count)]
        found, layers = [], self.asked.base.model.layers
        for schedule in Schedule:
            low, high = schedule.stages_a_rank
            most = min(high or layers, layers // pp)
            found += [Pipe(pp, schedule, stages, count) for stages in self._stages(layers, pp) if low <= stages <= most]
        return found

    def _stages(self, layers: int, pp: int) -> list[int]:
        """Stages a rank: powers of two, and what gives every stage as many blocks."""
        if "virtual_stages" in self.asked.fixed:
            return [self.asked.fixed["virtual_stages"]]
        return [
            stages
            for stages in range(1, MOST_STAGES + 1)
            if stages & (stages - 1) == 0 or (layers % pp == 0 and (layers // pp) % stages == 0)
        ]

    def _piped(self, parts: Mapping[str, Any], micro_batches: int) -> Case:
        return self._alone(Layout(**parts), micro_batches)

    def _alone(self, layout: Layout, micro_batches: int) -> Case:
        """The question's case with this part of a layout and no other."""
        base = self.asked.base
        work = replace(base.workload, micro_batches=micro_batches)
        return replace(base, layout=layout, workload=work, cluster=replace(base.cluster, nodes=1, per_node=0))

    @cached_property
    def _spreads(self) -> Callable[[int, _Alike, bool], Spreads]:
        @cache
        def spreads(ranks: int, alike: _Alike, accumulates: bool) -> Spreads:
            is_whole = not (alike.tp or alike.cp or alike.ep or alike.pp)
            micro_batches = 2 if accumulates or alike.pp else 1
            legal, refused = [], Counter[str]()
            for each in self._fixed(_all_spreads(ranks, alike.cp or alike.ep, is_whole, accumulates)):
                small = each._replace(dp=min(2, each.dp), fsdp=min(2, each.fsdp))
                why = _refused(alike, small) or self._of_spread(small, micro_batches)
                if why:
                    refused[why] += 1
                else:
                    legal.append(each)
            return Spreads(tuple(legal), refused)

        return spreads

    def _degrees(self, name: str, left: int, most: int) -> list[int]:
        """Divisors of what is left, up to a limit that a fixed one may pass."""
        fixed = self.asked.fixed.get(name)
        if fixed is not None:
            return [fixed] if left % fixed == 0 else []
        return [degree for degree in _divisors(left) if degree <= most]

    def _experts(self, data: int, cp: int) -> list[int]:
        """Expert-parallel degrees: of a model with experts, those that divide their number, and the data ranks."""
        experts = self.asked.base.model.experts
        most = experts.count if experts is not None and cp == 1 else 1
        return [ep for ep in self._degrees("ep", data, most) if most % ep == 0 or "ep" in self.asked.fixed]

    def _contexts(self, cp: int) -> list[ContextMethod]:
        fixed = self.asked.fixed.get("context")
        return [each for each in (ContextMethod if cp > 1 else (ContextMethod.RING,)) if fixed in (None, each)]

    def _recompute(self) -> tuple[Recompute, ...]:
        fixed = self.asked.fixed.get("recompute")
        return RECOMPUTE if fixed is None else (fixed,)

    def _fixed(self, found: list[P]) -> list[P]:
        """Those that have what is fixed."""
        fixed = self.asked.fixed
        return [
            each for each in found if all(fixed.get(name, value) == value for name, value in each._asdict().items())
        ]


def _all_spreads(ranks: int, has_copies: bool, is_whole: bool, accumulates: bool) -> list[Spread]:
    reductions = tuple(Reduction) if accumulates else (Reduction.STEP,)
    found = [
        Spread(ranks // fsdp, fsdp, 0, Engine.AUTO, reshards, reduction)
        for fsdp in _divisors(ranks)[1:]
        for reshards in (True, False)
        for reduction in reductions
    ]
    found += [
        Spread(ranks, 1, zero, Engine.TORCH if zero else Engine.AUTO, True, reduction)
        for zero in ((0, 1) if ranks > 1 or has_copies else (0,))
        for reduction in (reductions if ranks > 1 or has_copies else (Reduction.STEP,))
    ]
    if ranks > 1 and is_whole:
        found += [Spread(ranks, 1, zero, Engine.DEEPSPEED, True, Reduction.STEP) for zero in (0, 1, 2, 3)]
    return found


@cache
def _refused(alike: _Alike, spread: Spread) -> str:
    """Why a layout with such a spread cannot be, by the rules of Layout, which ask for more of a degree than whether
    it is above 1 only where a number to reshard to is given."""
    parts = spread._asdict() | {
        "tp": 1 + alike.tp, "cp": 1 + alike.cp, "ep": 1 + alike.ep, "pp": 1 + alike.pp, "schedule": alike.schedule,
        "virtual_stages": alike.virtual_stages, "recompute": alike.recompute,
    }  # fmt: skip
    return _why(lambda: Layout(**parts))


def _why(make: Callable[[], object]) -> str:
    """What refuses it, without the numbers; empty where nothing does."""
    try:
        make()
    except SpecError as error:
        return str(error).removeprefix("layout: ").split(": ", 1)[-1]
    return ""


@cache
def _divisors(number: int) -> tuple[int, ...]:
    small = [each for each in range(1, isqrt(number) + 1) if number % each == 0]
    return tuple(sorted({*small, *(number // each for each in small)}))
