"""What a sweep tells on standard error: plain text, one line a case."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from suite.case import Case, case_from
from suite.progress import ConsoleProgress
from suite.record import Measurement, Outcome

pytestmark = pytest.mark.unit


def case_named(name: str) -> Case:
    return case_from({"model": {"layers": 1, "name": name}, "layout": {"dp": 2}})


def told(is_terminal: bool, case: Case, *measurements: Measurement) -> str:
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=is_terminal, width=60, color_system=None, legacy_windows=False)
    with ConsoleProgress(console) as progress:
        progress.begin(total=5, done=1)
        for measurement in measurements:
            progress.case_started(case)
            progress.case_ended(case, measurement)
    return stream.getvalue()


def test_one_plain_line_a_case_when_not_a_terminal() -> None:
    case = case_named("tiny")
    ok = Measurement(case.case_id, Outcome.OK, wall_seconds=2.0)
    oom = Measurement(case.case_id, Outcome.OOM, reason="rank 1: asked for 8 GiB", wall_seconds=4.0)
    assert told(False, case, ok, oom).splitlines() == [
        "1 of 5 cases are recorded already",
        "[2/5] tiny dp2 bf16-mixed flash, 2 ranks: ok, 2.00 s, about 6.00 s left",
        "[3/5] tiny dp2 bf16-mixed flash, 2 ranks: oom (rank 1: asked for 8 GiB), 4.00 s, about 6.00 s left",
    ]


@pytest.mark.parametrize("is_terminal", [False, True])
def test_brackets_are_text(is_terminal: bool) -> None:
    case = case_named("[red]x[/blue] :smile:")
    failed = Measurement(case.case_id, Outcome.FAILED, reason="list[int] [/] [bold]", wall_seconds=1.0)
    output = told(is_terminal, case, failed)
    assert "[red]x[/blue] :smile: dp2" in output
    assert "(list[int] [/] [bold])" in output


def test_a_terminal_shows_the_running_case() -> None:
    case = case_named("tiny")
    output = told(True, case, Measurement(case.case_id, Outcome.OK, wall_seconds=2.0))
    assert "1/5" in output
    assert "2/5" in output
    assert "tiny dp2 bf16-mixed flash, 2 ranks" in output


def test_time_left_is_the_mean_of_what_ended_here() -> None:
    progress = ConsoleProgress(Console(file=io.StringIO()))
    case = case_named("tiny")
    progress.begin(total=10, done=6)
    assert progress.seconds_left() is None
    progress.case_ended(case, Measurement(case.case_id, Outcome.OK, wall_seconds=1.0))
    progress.case_ended(case, Measurement(case.case_id, Outcome.HANG, wall_seconds=3.0))
    assert progress.seconds_left() == 4.0
