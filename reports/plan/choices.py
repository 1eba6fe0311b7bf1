"""Choices that prove a plan's order: tiny models on a few ranks, each with every layout that a plan has to rank.

A question of few layouts is run whole. Of one with more, those predicted fastest are run, and others spread evenly over
the predicted order: enough to see a layout that is faster than its prediction, not every one that may be.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from reports.plan.asked import Asked
from reports.plan.space import Space
from suite.case import Case, case_from
from suite.layout import Recompute
from suite.parse import SpecError

#: layouts of a question that are run, and how many of them are those predicted fastest; a question of a few more than
#: `MOST` is run whole where it says so
MOST, FASTEST = 24, 5
#: steps of a layout: three settle, the others are read
STEPS = 9


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


def covering(cases: Sequence[Case], seconds: Callable[[Case], float], most: int = MOST) -> tuple[Case, ...]:
    """So many of the cases by predicted seconds, fastest first: the FASTEST, then every n-th of the others, the slowest
    among them. All of them where they are no more."""
    ordered = sorted(cases, key=lambda case: (seconds(case), case.case_id))
    if len(ordered) <= most:
        return tuple(ordered)
    first, others = ordered[:FASTEST], ordered[FASTEST:]
    left = most - len(first)
    places = [round((number + 1) * len(others) / left) - 1 for number in range(left)]
    return (*first, *(others[place] for place in places))


def _asked(model: str, ranks: int, global_batch: int, fixed: Mapping[str, Any], **work: Any) -> Asked:
    recipe = {"steps": STEPS, "warmup_steps": 2}
    base = case_from({"model": model, "workload": work, "recipe": recipe})
    return Asked(base, 1, ranks, global_batch, fixed)


def questions() -> tuple[Asked, ...]:
    """Both decoder forms, two sizes and precisions, 2 to 8 ranks, with contexts to divide and without."""
    plain, free = {"recompute": Recompute()}, dict[str, Any]()
    return (
        _asked("gpt-1m", 2, 8, plain, seq_len=256, precision="fp32"),
        _asked("llama-1m", 2, 8, free, seq_len=256, precision="bf16-mixed"),
        _asked("gpt-1m", 2, 4, free, seq_len=1024, precision="fp32"),
        _asked("llama-10m", 2, 4, free, seq_len=128, precision="fp32"),
        _asked("gpt-1m", 4, 8, free, seq_len=128, precision="fp32"),
        _asked("llama-1m", 4, 16, free, seq_len=128, precision="bf16-mixed"),
        _asked("llama-1m", 8, 16, free, seq_len=128, precision="fp32"),
    )
