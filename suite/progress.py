"""How far a sweep is, told on standard error: a bar on a terminal, one plain line a case elsewhere."""

from __future__ import annotations

from types import TracebackType
from typing import Protocol, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
from rich.progress import Progress as Bar

from suite.case import Case
from suite.record import Measurement
from suite.units import seconds_text


class Progress(Protocol):
    """What a sweep tells as it goes."""

    def begin(self, total: int, done: int) -> None:
        """So many cases, of which so many are done already."""
        ...

    def case_started(self, case: Case) -> None:
        """The case runs now."""
        ...

    def case_ended(self, case: Case, measurement: Measurement) -> None:
        """The case has ended and is recorded."""
        ...


class Silent:
    """Tells nothing."""

    def begin(self, total: int, done: int) -> None:
        """Nothing."""

    def case_started(self, case: Case) -> None:
        """Nothing."""

    def case_ended(self, case: Case, measurement: Measurement) -> None:
        """Nothing."""


class ConsoleProgress:
    """Tells a console: `with ConsoleProgress() as progress: sweep(..., progress)`.

    The bar is redrawn when a case starts or ends, never by a clock: nothing runs beside what is timed.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True)
        self.total = 0
        self.done = 0
        self.took_s: list[float] = []
        columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}", markup=False))
        self._bar = Bar(*columns, console=self.console, auto_refresh=False, transient=True)
        self._task = self._bar.add_task("", total=None)

    def __enter__(self) -> Self:
        if self.console.is_terminal:
            self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self.console.is_terminal:
            self._bar.stop()

    def begin(self, total: int, done: int) -> None:
        """So many cases, of which so many are done already."""
        self.total, self.done = total, done
        if done:
            self._say(f"{done} of {total} cases are recorded already")
        self._draw("")

    def case_started(self, case: Case) -> None:
        """The bar shows the running case, its ranks and the time left."""
        self._draw(f"{case.label}, {_ranks_text(case)}{self._left_text()}")

    def case_ended(self, case: Case, measurement: Measurement) -> None:
        """A line for the case: how it ended, why, and how long it took."""
        self.done += 1
        self.took_s.append(measurement.wall_seconds)
        reason = f" ({measurement.reason})" if measurement.reason else ""
        took = seconds_text(measurement.wall_seconds)
        left = "" if self.console.is_terminal else self._left_text()
        outcome = measurement.outcome.value
        self._say(f"[{self.done}/{self.total}] {case.label}, {_ranks_text(case)}: {outcome}{reason}, {took}{left}")
        self._draw("")

    def seconds_left(self) -> float | None:
        """Mean time of the cases that ended in this sweep times the cases left; None before the first."""
        if not self.took_s:
            return None
        return sum(self.took_s) / len(self.took_s) * (self.total - self.done)

    def _left_text(self) -> str:
        left = self.seconds_left()
        return f", about {seconds_text(left)} left" if left else ""

    def _say(self, line: str) -> None:
        # A case's label is text, whatever brackets it holds; a line is one line, whatever the width.
        self.console.print(line, markup=False, highlight=False, emoji=False, soft_wrap=True)

    def _draw(self, description: str) -> None:
        if self.console.is_terminal:
            self._bar.update(self._task, total=self.total, completed=self.done, description=description, refresh=True)


def _ranks_text(case: Case) -> str:
    ranks = case.layout.world_size
    return f"{ranks} rank{'s' if ranks > 1 else ''}"
