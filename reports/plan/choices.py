"""Choices that prove a plan's order: tiny models on a few ranks, each with every layout that a plan has to rank.

A question of few layouts is run whole. Of one with more, those predicted fastest are run, and others spread evenly over
the predicted order: enough to see a layout that is faster than its prediction, not every one that may be.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from memory.search import Search as MemorySearch
from reports.calibrate import Budget, calibrate
from reports.calibrated import calibration_given
from reports.plan.asked import Asked
from reports.plan.solve import limit_bytes
from reports.plan.space import Space
from reports.plan.timing import Timing, timing_of
from suite.case import Case, case_from
from suite.layout import Recompute
from suite.parse import SpecError
from suite.passes import Pass

if TYPE_CHECKING:
    from suite.hardware.calibration import Calibration

#: layouts of a question that are run, and how many of them are those predicted fastest
MOST, FASTEST = 12, 5
#: steps of a layout: three settle, the others are read
STEPS = 9
#: times alone: small cases of one pass share launches
PASSES = (Pass.TRAIN,)
#: of the calibration: every shape that any layout has, so more than a few cases need
BUDGET = Budget(operators=30.0, products=2.0, collectives=60.0, overheads=40.0)


@dataclass(frozen=True)
class Question:
    """A question, and how many of its layouts are run."""

    asked: Asked
    most: int = MOST


def layouts_of(asked: Asked) -> Iterator[Case]:
    """Every layout that the rules take, in the order of the space; whether it fits is not asked."""
    space = Space(asked)
    for grain, pp in space.grains():
        if space.refuses_grain(grain):
            continue
        for pipe in space.pipes(grain, pp).legal:
            for spread in space.spreads(grain, pipe).legal:
                try:
                    yield space.case(grain, pipe, spread)
                except SpecError:  # a rule about the layout as a whole
                    continue


def covering(cases: Sequence[Case], timing: Timing, most: int = MOST) -> tuple[Case, ...]:
    """So many of the cases by predicted seconds, fastest first: the FASTEST, then every n-th of the others, the slowest
    among them; of equal ones the first given. All of them where they are no more."""
    timed = sorted(zip(timing.seconds(cases), range(len(cases)), strict=True))
    ordered = [cases[place] for _, place in timed]
    if len(ordered) <= most:
        return tuple(ordered)
    first, others = ordered[:FASTEST], ordered[FASTEST:]
    left = most - len(first)
    places = [round((number + 1) * len(others) / left) - 1 for number in range(left)]
    return (*first, *(others[place] for place in places))


def questions() -> tuple[Question, ...]:
    """Both decoder forms, two sizes and precisions, 2 to 8 ranks, with contexts to divide and without; the first, which
    leaves recomputation out, whole."""
    plain, free = {"recompute": Recompute()}, dict[str, Any]()
    return (
        _question("gpt-1m", 2, 8, plain, 60, seq_len=256, precision="fp32"),
        _question("llama-1m", 2, 8, free, seq_len=256, precision="bf16-mixed"),
        _question("gpt-1m", 2, 4, free, seq_len=1024, precision="fp32"),
        _question("llama-10m", 2, 4, free, 16, seq_len=128, precision="fp32"),
        _question("gpt-1m", 4, 8, free, seq_len=128, precision="fp32"),
        _question("llama-1m", 4, 16, free, seq_len=128, precision="bf16-mixed"),
        _question("llama-1m", 8, 16, free, seq_len=128, precision="fp32"),
    )


def proof_cases(path: str | None, asked: Sequence[Question] | None = None) -> tuple[tuple[Case, ...], Calibration]:
    """The cases of all questions, and the calibration that their order rests on: of the file, or measured now at every
    shape that a layout has. SpecError for what is no calibration; CalibrationError where measuring fails."""
    found = questions() if asked is None else asked
    fitting = [_fitting(question.asked) for question in found]
    calibration = calibration_given(path)
    if calibration is None:
        calibration = calibrate([case for cases in fitting for case in cases], BUDGET)
    chosen: list[Case] = []
    for question, cases in zip(found, fitting, strict=True):
        chosen += covering(cases, timing_of(question.asked.base, calibration), question.most)
    return tuple(chosen), calibration


def _fitting(asked: Asked) -> list[Case]:
    """Every layout that a plan would rank here, by its peak: as a plan has those that take equally long."""
    memory, limit = MemorySearch(), limit_bytes(asked)
    peaks = [(memory.peak_bytes(case), case) for case in layouts_of(asked)]
    return [case for peak, case in sorted(peaks, key=lambda pair: pair[0]) if peak <= limit]


def _question(
    model: str, ranks: int, global_batch: int, fixed: Mapping[str, Any], most: int = MOST, **work: Any
) -> Question:
    recipe = {"steps": STEPS, "warmup_steps": 2}
    base = case_from({"model": model, "workload": work, "recipe": recipe})
    return Question(Asked(base, 1, ranks, global_batch, fixed), most)
