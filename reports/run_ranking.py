"""A run's choices: layouts of one model, work and number of ranks. Would the predictions have picked the right one?

Measured times scatter, so whether the pick is slower than the best is asked of all readings of both, by the test that
`compare` holds two runs to each other with.
"""

from __future__ import annotations

import statistics
from collections.abc import Hashable, Iterator
from dataclasses import replace
from enum import StrEnum
from typing import Any

from reports.compare import CaseComparison
from reports.judge import Judgement, Limits, Pair, Verdict, judge
from reports.launches import launches_of, other_cores
from reports.measures import MEASURES
from reports.ranking import Candidate, Choice, Entry, Ranking, choice_mapping, ranking_mapping, rankings_of
from reports.summary import RunComparison
from reports.text import plural
from suite.case import Case
from suite.units import percent_text

#: regret that is none: what a ranking is promised to stay within, in median
REGRET = 0.03
LIMITS = Limits(least=REGRET)
STEP = next(measure for measure in MEASURES if measure.name == "step_seconds")

RunRanking = Ranking[CaseComparison]
RunChoice = Choice[CaseComparison]


class Held(StrEnum):
    """What became of a choice's ranking."""

    EXACT = "held"  # the layout predicted fastest was measured fastest
    NEAR = "held within the limit"  # it is not, by less than REGRET
    UNSURE = "not to be told from noise"
    NO = "did not hold"


def run_ranking(comparison: RunComparison) -> RunRanking | None:
    """The choices among a run's cases that ended well and have a predicted time; None where there are none.

    Cases of a choice share everything but layout, micro-batch and number of micro-batches. Measured: the median over
    the steps of all launches.
    """
    found = rankings_of(_entries(comparison))
    return found[0] if found else None


def _entries(comparison: RunComparison) -> Iterator[Entry[CaseComparison]]:
    for case in comparison.cases:
        predicted, steps = case.speed.predicted_seconds, [each for launch in readings(case) for each in launch]
        if predicted is not None and steps and not case.serving:
            name, layout = case.case.case_id, layout_text(case.case)
            candidate = Candidate(case, name, layout, statistics.median(steps), predicted)
            yield Entry(comparison.run.suite, _work(case.case), choice_text(case.case), candidate)


def readings(case: CaseComparison) -> list[list[float]]:
    """Seconds of the steps of each launch that ended well, warm-up left out."""
    return [list(steps) for launch in launches_of(case) if (steps := STEP.read(launch))]


def _work(case: Case) -> Hashable:
    """What a choice's cases share: all but the layout and how the global batch is cut."""
    work = replace(case.workload, micro_batch=1, micro_batches=1)
    return case.model, work, case.global_batch, case.cluster, case.recipe


def choice_text(case: Case) -> str:
    """'gpt-1m, fp32, 2 ranks, batch 8 of 256 tokens'."""
    work = case.workload
    return (
        f"{case.model.name}, {work.precision}, {plural(case.layout.world_size, 'rank')},"
        f" batch {case.global_batch} of {work.seq_len} tokens"
    )


def layout_text(case: Case) -> str:
    """'dp2 2x4': the layout, sequences at once, times a step."""
    return f"{case.layout} {case.workload.micro_batch}x{case.workload.micro_batches}"


def regret_judged(choice: RunChoice) -> Judgement | None:
    """Is the pick slower than the best? Its change is the regret; None where they are one."""
    best, picked = choice.best.of, choice.picked.of
    if choice.regret == 0:
        return None
    busy = max(map(other_cores, (*launches_of(best), *launches_of(picked))))
    [found] = judge([Pair(STEP, readings(best), readings(picked), other_cores=busy)], LIMITS)
    return found


def held(choice: RunChoice) -> Held:
    """The ranking held where the pick is the best layout, or slower by less than REGRET."""
    found = regret_judged(choice)
    if found is None:
        return Held.EXACT
    if choice.regret < REGRET:
        return Held.NEAR
    return Held.NO if found.verdict is Verdict.WORSE else Held.UNSURE


def held_text(choice: RunChoice) -> str:
    """'did not hold: dp2 1x4 took 12.0 % longer than fsdp2 2x2 (interval 9.1 to 14 %)'."""
    verdict, found = held(choice), regret_judged(choice)
    if found is None:
        return f"{verdict}: {choice.picked.layout}, predicted fastest, was fastest"
    between = found.interval and f"{percent_text(found.interval.low, 1)} to {percent_text(found.interval.high, 1)}"
    return (
        f"{verdict}: {choice.picked.layout}, predicted fastest, took {percent_text(choice.regret, 1)} longer than"
        f" {choice.best.layout} ({f'95 % interval {between}; ' if between else ''}{found.why})"
    )


def run_ranking_mapping(ranking: RunRanking | None) -> dict[str, Any] | None:
    """As JSON-ready data; None where a run has no choice."""
    if ranking is None:
        return None
    of = ranking_mapping(ranking)
    return of | {"of_choices": [_choice_mapping(choice) for choice in ranking.choices]}


def _choice_mapping(choice: RunChoice) -> dict[str, Any]:
    found = regret_judged(choice)
    interval = [found.interval.low, found.interval.high] if found and found.interval else None
    order = sorted(choice.candidates, key=lambda candidate: candidate.predicted)
    layouts = [
        {
            "case_id": candidate.name,
            "layout": candidate.layout,
            "predicted_seconds": candidate.predicted,
            "measured_seconds": candidate.measured,
        }
        for candidate in order
    ]
    return choice_mapping(choice) | {
        "rank_correlation": choice.correlation,
        "held": held(choice).value,
        "regret_interval": interval,
        "of_layouts": layouts,
    }
