"""Two runs joined case by case: how each case ended, and each of its quantities judged."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from reports.compare import NOT_RUN, CaseComparison, Run
from reports.judge import Judgement, Limits, Pair, Verdict, judge
from reports.launches import launches_of, other_cores
from reports.measures import Group, Kind, Measure, predicted_seconds
from reports.regress.surroundings import Difference, differences, facts
from reports.summary import RunComparison
from suite.case import Case
from suite.record import Outcome

#: outcomes that say nothing of a case
_UNTRIED = (NOT_RUN, Outcome.SKIPPED.value)
#: what the machine's operators depend on, beside the machine
_YARDSTICK = ("packages.torch", "python", "threads", "omp_wait_policy")


@dataclass(frozen=True)
class Side:
    """One side: a run, and further runs of the same code that its launches are added to."""

    run: RunComparison
    more: tuple[RunComparison, ...] = ()

    @cached_property
    def cases(self) -> dict[str, CaseComparison]:
        """The run's cases that were tried, by id."""
        return {case.case.case_id: case for case in self.run.cases if case.status not in _UNTRIED}

    def launches(self, case_ids: Sequence[str]) -> dict[str, tuple[CaseComparison, ...]]:
        """Every launch of these cases, the one that counts for the run first."""
        found: dict[str, tuple[CaseComparison, ...]] = dict.fromkeys(case_ids, ())
        for run in (self.run, *self.more):
            for case in run.cases:
                if case.case.case_id in found:
                    found[case.case.case_id] += launches_of(case)
        return found


@dataclass(frozen=True)
class OutcomeChange:
    """A case that ended in another way: worse where it does not end well any more."""

    case: Case
    before: str
    after: str
    reason: str
    verdict: Verdict


@dataclass(frozen=True)
class Row:
    """A case and one of its quantities, judged."""

    case: Case
    judgement: Judgement


@dataclass(frozen=True)
class PairComparison:
    """Everything that is said of two runs."""

    before: Side
    after: Side
    limits: Limits
    measures: tuple[Measure, ...]
    rows: tuple[Row, ...]
    """by quantity, and of each the cases in the first run's order"""
    outcomes: tuple[OutcomeChange, ...]
    surroundings: tuple[Difference, ...]

    @property
    def only_before(self) -> tuple[CaseComparison, ...]:
        """Cases of the first run that the second did not try."""
        return tuple(case for key, case in self.before.cases.items() if key not in self.after.cases)

    @property
    def only_after(self) -> tuple[CaseComparison, ...]:
        """Cases of the second run that the first did not try."""
        return tuple(case for key, case in self.after.cases.items() if key not in self.before.cases)

    @property
    def shared(self) -> int:
        """Cases that both tried."""
        return len(self.before.cases.keys() & self.after.cases.keys())

    @cached_property
    def worst_first(self) -> tuple[Row, ...]:
        """The rows: what was measured before predictions; worse, improved, noisy, same; the largest change first."""
        verdicts, groups = list(Verdict), list(Group)
        return tuple(
            sorted(
                self.rows,
                key=lambda row: (
                    groups.index(row.judgement.measure.group),
                    verdicts.index(row.judgement.verdict),
                    -_size(row.judgement.change),
                ),
            )
        )

    @property
    def counts(self) -> dict[Verdict, int]:
        """How many measured rows and outcomes have each verdict."""
        return _counts([*self.of_group(Group.MEASURED), *(each.verdict for each in self.outcomes)])

    @property
    def prediction_counts(self) -> dict[Verdict, int]:
        """How many rows of how far the formulas are off have each verdict."""
        return _counts(self.of_group(Group.PREDICTION))

    def of_group(self, group: Group) -> list[Verdict]:
        """The verdicts of a group's rows."""
        return [row.judgement.verdict for row in self.rows if row.judgement.measure.group is group]

    def fails(self, verdicts: Sequence[Verdict]) -> bool:
        """Has anything that was measured, or how a case ended, one of these verdicts? Predictions are not counted where
        measured quantities are there too."""
        groups = {measure.group for measure in self.measures}
        found = self.of_group(Group.MEASURED if Group.MEASURED in groups else Group.PREDICTION)
        return any(verdict in verdicts for verdict in (*found, *(each.verdict for each in self.outcomes)))

    @property
    def is_single(self) -> bool:
        """Is every timed case launched once on a side?"""
        timed = [row.judgement for row in self.rows if row.judgement.measure.kind is Kind.TIMED]
        return bool(timed) and all(min(each.launches) == 1 for each in timed)


def compare_runs(before: Side, after: Side, measures: tuple[Measure, ...], limits: Limits) -> PairComparison:
    """Join two sides by case; a case that one of them did not try is listed, not judged."""
    shared = [key for key in before.cases if key in after.cases]
    outcomes = [_outcome(before.cases[key], after.cases[key]) for key in shared]
    yardstick = software_of(before.run.run) == software_of(after.run.run)
    first, second = before.launches(shared), after.launches(shared)
    rows: list[Row] = []
    for measure in measures:
        keys, pairs = [], []
        for key in shared:
            pair = _pair(measure, first[key], second[key], yardstick)
            if pair:
                keys.append(key)
                pairs.append(pair)
        rows += [
            Row(before.cases[key].case, judgement) for key, judgement in zip(keys, judge(pairs, limits), strict=True)
        ]
    return PairComparison(
        before=before,
        after=after,
        limits=limits,
        measures=measures,
        rows=tuple(rows),
        outcomes=tuple(each for each in outcomes if each),
        surroundings=differences(before.run.run, after.run.run),
    )


def _pair(
    measure: Measure, before: Sequence[CaseComparison], after: Sequence[CaseComparison], yardstick: bool
) -> Pair | None:
    """The readings of both sides; None where either has none."""
    first = [readings for case in before if (readings := tuple(measure.read(case)))]
    second = [readings for case in after if (readings := tuple(measure.read(case)))]
    if not first or not second:
        return None
    apart = drift(measure, predicted_seconds(before[0]), predicted_seconds(after[0])) if yardstick else 0.0
    return Pair(measure, first, second, apart, max(map(other_cores, (*before, *after))))


def drift(measure: Measure, before: float | None, after: float | None) -> float:
    """By what a case's own operators, timed before each run in processes of their own, came out another time.

    The step as predicted from them serves as the measure: it weighs each as the case does. 0 where it is not known, and
    of what is no time.
    """
    if measure.kind is not Kind.TIMED or measure.group is not Group.MEASURED or not before or not after:
        return 0.0
    return max(before, after) / min(before, after) - 1


def software_of(run: Run) -> tuple[str | None, ...]:
    """What has to be equal for the same operators to take the same time, if the machine is as free."""
    found = facts(run)
    return tuple(found.get(name) for name in _YARDSTICK)


def _outcome(before: CaseComparison, after: CaseComparison) -> OutcomeChange | None:
    """None for a case that ended the same way twice."""
    if before.status == after.status:
        return None
    lost = Verdict.WORSE if before.is_ok else Verdict.SAME
    verdict = Verdict.IMPROVED if after.is_ok else lost
    return OutcomeChange(before.case, before.status, after.status, after.reason or before.reason, verdict)


def _size(change: float) -> float:
    return math.inf if math.isnan(change) else abs(change)


def _counts(verdicts: Sequence[Verdict]) -> dict[Verdict, int]:
    found = Counter(verdicts)
    return {verdict: found[verdict] for verdict in Verdict}
