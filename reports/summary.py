"""A run in a few numbers: how far the formulas are off, over which cases, and whether the layouts learn alike."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from reports.compare import CaseComparison, Comparison, Run, compare_case
from reports.component_errors import ComponentErrors, component_errors
from reports.losses import LossSpread, spread
from suite.case import Case
from suite.record import Moment, Outcome

#: How close a predicted peak has to come to the measured one: the promise that reports draw as a band.
ERROR_BAND = 0.01

#: A report opens up at most so many cases.
OPENED = 60


@dataclass(frozen=True)
class Errors:
    """Relative errors of a set of rows, as fractions."""

    count: int
    mean_absolute: float
    worst: float  # signed
    bias: float  # mean of the signed errors
    median_absolute: float

    @property
    def is_within_band(self) -> bool:
        """Is even the worst inside ERROR_BAND?"""
        return abs(self.worst) <= ERROR_BAND


@dataclass(frozen=True)
class LossGroup:
    """Cases that do the same arithmetic on the same data: their loss curves have to coincide."""

    title: str
    cases: tuple[CaseComparison, ...]
    spread: LossSpread | None  # None for a case alone


@dataclass(frozen=True)
class RunComparison:
    """A run, its cases compared. Every statistic is over the cases that have both sides."""

    run: Run
    cases: tuple[CaseComparison, ...]

    @property
    def finished(self) -> tuple[CaseComparison, ...]:
        """The cases that ran to their end."""
        return tuple(case for case in self.cases if case.is_ok)

    @property
    def unfinished(self) -> tuple[CaseComparison, ...]:
        """The cases that failed, were skipped or were not run."""
        return tuple(case for case in self.cases if not case.is_ok)

    @property
    def failed(self) -> tuple[CaseComparison, ...]:
        """The cases that were run and did not end well: neither ok, nor skipped, nor left for later."""
        failures = {outcome.value for outcome in Outcome} - {Outcome.OK.value, Outcome.SKIPPED.value}
        return tuple(case for case in self.cases if case.status in failures)

    @cached_property
    def opened(self) -> tuple[CaseComparison, ...]:
        """The cases that a report opens up."""
        return self.furthest(OPENED)

    def furthest(self, count: int) -> tuple[CaseComparison, ...]:
        """So many cases, in the run's order: all of them up to `count`; of more those that did not end well (half of
        `count` at most) and those whose predicted peak is furthest off."""
        if len(self.cases) <= count:
            return self.cases
        first = self.unfinished[: count // 2]
        measured = sorted(self.finished, key=lambda case: -abs(case.peak.error or 0.0))
        chosen = {id(case) for case in (*first, *measured[: count - len(first)])}
        return tuple(case for case in self.cases if id(case) in chosen)

    @property
    def outcomes(self) -> dict[str, int]:
        """How many cases ended how."""
        return dict(Counter(case.status for case in self.cases))

    @cached_property
    def peak(self) -> Errors | None:
        """Errors of the peak memory."""
        return errors_of([case.peak.error for case in self.cases])

    @cached_property
    def worst_peak(self) -> CaseComparison | None:
        """The case whose predicted peak is furthest off."""
        known = [case for case in self.cases if case.peak.error is not None]
        return max(known, key=lambda case: abs(case.peak.error or 0.0), default=None)

    @property
    def traced(self) -> tuple[CaseComparison, ...]:
        """The cases of which a rank was traced."""
        return tuple(case for case in self.cases if case.traced)

    @property
    def untraced(self) -> dict[str, int]:
        """Why cases could not be traced -> how many."""
        return dict(Counter(case.result.untraced for case in self.cases if case.result.untraced))

    @cached_property
    def traced_rows(self) -> tuple[Comparison, ...]:
        """The total of every traced rank at every moment: predicted, and the trace as the measured side."""
        return tuple(row for case in self.cases for row in case.traced)

    @cached_property
    def trace(self) -> Errors | None:
        """Errors of the formulas against the traces, over all traced ranks and moments."""
        return errors_of([row.error for row in self.traced_rows])

    @cached_property
    def by_moment(self) -> dict[Moment, Errors]:
        """Errors of the totals at each moment, over all ranks: two wrongs can meet at the peak, not at all of them."""
        rows = [row for case in self.cases for row in case.totals]
        found = {moment: errors_of([row.error for row in rows if row.moment is moment]) for moment in Moment}
        return {moment: errors for moment, errors in found.items() if errors}

    @cached_property
    def by_component(self) -> tuple[ComponentErrors, ...]:
        """Errors of each component, over all ranks and moments."""
        return component_errors(self.cases)

    @cached_property
    def step_time(self) -> Errors | None:
        """Errors of the step time."""
        return errors_of([case.speed.error for case in self.cases])

    @cached_property
    def state_rows(self) -> tuple[Comparison, ...]:
        """Every state component of every rank, after the backward pass and between steps."""
        return tuple(row for case in self.cases for row in case.state_rows)

    @property
    def state_exact(self) -> int:
        """How many of the state rows are equal to the byte."""
        return sum(row.is_exact for row in self.state_rows)

    @cached_property
    def sent_rows(self) -> tuple[Comparison, ...]:
        """The bytes that each rank sends in a step for each collective, where both sides are known."""
        return tuple(row for case in self.cases for row in case.sent_rows)

    @property
    def sent_exact(self) -> int:
        """How many of them are equal to the byte."""
        return sum(row.is_exact for row in self.sent_rows)

    @property
    def senders(self) -> tuple[CaseComparison, ...]:
        """The cases whose ranks are known to send anything."""
        return tuple(case for case in self.cases if case.sent)

    @cached_property
    def loss_groups(self) -> tuple[LossGroup, ...]:
        """The cases with a loss curve, those together which should learn alike."""
        return group_losses(self.cases)

    @cached_property
    def loss_spread(self) -> LossSpread | None:
        """The furthest that two curves lie apart which should coincide; None where none should."""
        spreads = [group.spread for group in self.loss_groups if group.spread]
        return max(spreads, key=lambda found: found.relative, default=None)


def compare_run(run: Run) -> RunComparison:
    """Compare every case of a run."""
    return RunComparison(run, tuple(compare_case(result) for result in run.results))


def errors_of(errors: Sequence[float | None]) -> Errors | None:
    """Statistics of the relative errors that are known; None where none is."""
    known = [error for error in errors if error is not None and math.isfinite(error)]
    if not known:
        return None
    return Errors(
        count=len(known),
        mean_absolute=statistics.fmean(abs(error) for error in known),
        worst=max(known, key=abs),
        bias=statistics.fmean(known),
        median_absolute=statistics.median(abs(error) for error in known),
    )


def errors_mapping(errors: Errors | None) -> dict[str, float] | None:
    """As JSON says it."""
    if errors is None:
        return None
    return {
        "rows": errors.count,
        "mean_absolute": errors.mean_absolute,
        "median_absolute": errors.median_absolute,
        "worst": errors.worst,
        "bias": errors.bias,
    }


def group_losses(cases: Sequence[CaseComparison]) -> tuple[LossGroup, ...]:
    """Cases grouped by what decides the loss: model, number format, global batch and recipe.

    The layout, the attention kernel and the way the loss is sliced are ways to compute the same thing.
    """
    members: dict[object, list[CaseComparison]] = {}
    for case in cases:
        if case.curve.training:
            members.setdefault(_decides_loss(case.case), []).append(case)
    return tuple(
        LossGroup(_group_title(group[0].case), tuple(group), spread([case.curve for case in group]))
        for group in members.values()
    )


def variant(case: Case) -> str:
    """What tells a case from the others of its loss group: layout, kernels, and how the batch is cut."""
    workload = case.workload
    parts = [str(case.layout), workload.attention.value]
    if workload.loss.value != "plain":
        parts.append(f"{workload.loss.value}-loss")
    if workload.micro_batches > 1:
        parts.append(f"x{workload.micro_batches}")
    return " ".join(parts)


def _decides_loss(case: Case) -> object:
    workload = case.workload
    return (case.model, workload.precision, workload.optimizer, workload.seq_len, case.global_batch, case.recipe)


def _group_title(case: Case) -> str:
    workload = case.workload
    return (
        f"{case.model.name}, {workload.precision.value}, {workload.optimizer.value},"
        f" {case.recipe.steps} steps of {case.global_batch} x {workload.seq_len} tokens"
    )
