"""Which cases of a run can be laid side by side: those that do the same work on as many ranks, in different layouts."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from reports.compare import CaseComparison
from reports.losses import LossSpread, spread
from reports.summary import LossGroup, RunComparison
from reports.text import plain, plural
from suite.case import Case
from suite.parse import require
from suite.spec import LossKernel, OptimizerKernel

#: fewer than these are no choice
LEAST = 2


@dataclass(frozen=True)
class Choice:
    """A case under the name that tells it from the others of its group."""

    name: str
    case: CaseComparison

    @property
    def ranks(self) -> int:
        """What it runs on."""
        return self.case.case.layout.world_size


@dataclass(frozen=True)
class Group:
    """Layouts that do the same work: the same model, number formats, optimizer, recipe and global batch. `ranks` holds
    one number, or several where each of those has one layout only."""

    title: str
    choices: tuple[Choice, ...]

    @property
    def ranks(self) -> tuple[int, ...]:
        """The numbers of ranks, ascending."""
        return tuple(sorted({choice.ranks for choice in self.choices}))

    @property
    def serves(self) -> bool:
        """Do its cases answer prompts, rather than learn?"""
        return self.choices[0].case.case.serves

    @property
    def case(self) -> Case:
        """The first case, which has what all have in common."""
        return self.choices[0].case.case

    @property
    def learned(self) -> tuple[Choice, ...]:
        """Those with a loss curve."""
        return tuple(choice for choice in self.choices if choice.case.curve.training)

    @property
    def loss_spread(self) -> LossSpread | None:
        """How far the loss curves lie apart, which should be one."""
        return spread([choice.case.curve for choice in self.learned])

    @property
    def losses(self) -> LossGroup | None:
        """The curves as figures draw them; None where nothing was learned."""
        cases = tuple(choice.case for choice in self.learned)
        return LossGroup(self.title, cases, self.loss_spread) if cases else None


@dataclass(frozen=True)
class SideBySide:
    """A run's groups, and the cases that nothing can be laid beside."""

    comparison: RunComparison
    groups: tuple[Group, ...]
    alone: tuple[CaseComparison, ...]


def lay_side_by_side(comparison: RunComparison) -> SideBySide:
    """Group a run's cases. SpecError where no two can be laid side by side."""
    groups: list[Group] = []
    alone: list[CaseComparison] = []
    for cases in _shared(comparison.cases, _work).values():
        rest: list[CaseComparison] = []
        for same in _shared(cases, lambda case: case.layout.world_size).values():
            if len(same) >= LEAST:
                groups.append(_group(same))
            else:
                rest += same
        if len(rest) >= LEAST:
            groups.append(_group(rest))
        else:
            alone += rest
    require(bool(groups), _nothing(comparison))
    return SideBySide(comparison, tuple(groups), tuple(alone))


def _shared(cases: Sequence[CaseComparison], key: Callable[[Case], object]) -> dict[object, list[CaseComparison]]:
    found: dict[object, list[CaseComparison]] = {}
    for case in cases:
        found.setdefault(key(case.case), []).append(case)
    return found


def _work(case: Case) -> object:
    """What decides how much is computed, and what; of served cases the prompts and answers."""
    work = case.workload
    common = (case.model, work.precision, work.seq_len, case.global_batch, case.cluster.device)
    return (*common, case.serving) if case.serves else (*common, work.optimizer, case.recipe)


def _group(cases: Sequence[CaseComparison]) -> Group:
    ordered = sorted(cases, key=_speed)
    return Group(_title(ordered), tuple(map(Choice, _names([case.case for case in ordered]), ordered)))


def _speed(case: CaseComparison) -> tuple[bool, bool, float, float]:
    """Fastest first; behind them, by what is predicted, what was not measured; without any time leanest first."""
    timing = case.serving.decode if case.serving else None
    measured = timing.median if timing else case.speed.measured_seconds
    predicted = timing.predicted if timing else case.speed.predicted_seconds
    known = predicted if measured is None else measured
    peak = case.peak.measured or case.peak.predicted
    return measured is None, known is None, known or 0.0, peak.bytes if peak else math.inf


def _title(cases: Sequence[CaseComparison]) -> str:
    case = cases[0].case
    work, ranks = case.workload, sorted({each.case.layout.world_size for each in cases})
    batch = f"{case.global_batch} x {work.seq_len}"
    if case.serves:
        does = f"{batch} tokens read, {case.serving.new_tokens} made"
        does += f", {case.serving.sampling.value}" if case.serving.sampling.value != "greedy" else ""
    else:
        does = f"{work.optimizer.value}, {batch} tokens a step"
    on = plural(ranks[0], "rank") if len(ranks) == 1 else f"{', '.join(map(str, ranks))} ranks"
    layouts = {_shown(each.case) for each in cases}
    on += f", {layouts.pop()}" if len(layouts) == 1 and on != "1 rank" else ""
    return f"{plain(case.model.name)}, {work.precision.value}, {does}, {on}"


#: what may tell two layouts' cases apart, beside the layout
_TRAITS: tuple[Callable[[Case], str], ...] = (
    lambda case: case.workload.attention.value,
    lambda case: "" if case.workload.loss is LossKernel.PLAIN else f"{case.workload.loss.value}-loss",
    lambda case: "" if case.workload.optimizer_kernel is OptimizerKernel.AUTO else case.workload.optimizer_kernel.value,
    lambda case: f"x{case.workload.micro_batches}" if case.workload.micro_batches > 1 else "",
    lambda case: str(case.cache),
)


def _names(cases: Sequence[Case]) -> list[str]:
    """The layout, where it differs within the group, and what else does; the case's id where that is not enough."""
    differing = [trait for trait in (_shown, *_TRAITS) if len({trait(case) for case in cases}) > 1]
    names = [" ".join(filter(None, (trait(case) for trait in differing))) or _shown(case) for case in cases]
    seen = Counter(names)
    return [name if seen[name] == 1 else f"{name} {case.case_id}" for name, case in zip(names, cases, strict=True)]


def _shown(case: Case) -> str:
    """The layout's name; that a served case has no sequence parallelism need not be said."""
    return str(replace(case.layout, sequence_parallel=True) if case.serves else case.layout)


def _nothing(comparison: RunComparison) -> str:
    """Why nothing can be laid side by side."""
    name, cases = comparison.run.name, [case.case for case in comparison.cases]
    if len(cases) < LEAST:
        only = f"one case only, {plain(cases[0].label)}" if cases else "no case"
        return f"RUN: {name} has {only}: there is nothing to lay side by side"
    kinds = {
        "model": {plain(case.model.name) for case in cases},
        "precision": {case.workload.precision.value for case in cases},
        "optimizer": {case.workload.optimizer.value for case in cases},
        "global batch": {f"{case.global_batch} x {case.workload.seq_len}" for case in cases},
    }
    said = "; ".join(f"{kind} {', '.join(sorted(values))}" for kind, values in kinds.items() if len(values) > 1)
    return (
        f"RUN: no two of {name}'s {len(cases)} cases do the same work ({said or 'recipe or device'}), so no layouts can"
        " be laid side by side"
    )
