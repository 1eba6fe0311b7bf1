"""Language modelling: every token of a window from those before it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from suite.tasks.base import Examples, Task, TextWindows

if TYPE_CHECKING:
    from suite.case import Case


def examples(case: Case, windows: TextWindows, step: int, rows: int) -> Examples:
    """The windows as they are: labels are the ids one place on."""
    return Examples(*windows.global_batch(step, rows))


NEXT_TOKEN = Task(window=lambda case: case.workload.seq_len, examples=examples)
