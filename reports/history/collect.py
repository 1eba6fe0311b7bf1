"""Runs of a folder put in order: every case's readings by machine, run after run, and what changed between commits."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from reports.compare import CaseComparison, Run
from reports.judge import Judgement, Limits, Pair, judge
from reports.launches import launches_of, other_cores
from reports.load import load_run
from reports.measures import Measure, predicted_seconds
from reports.regress.pair import drift, software_of
from reports.regress.surroundings import commit_of, machine_of
from reports.summary import compare_run
from suite.parse import SpecError, require
from suite.stats import Summary, quartiles, summarize
from suite.store import RECORDS


@dataclass(frozen=True)
class Origin:
    """The run that a point comes from."""

    run: str
    created: str
    commit: str | None
    """with a + where files differed from it"""
    software: tuple[str | None, ...]

    @property
    def code(self) -> str:
        """What runs of the same code share: the commit, or the run itself where the commit does not say all."""
        return self.commit if self.commit and not self.commit.endswith("+") else self.run

    @property
    def label(self) -> str:
        """What stands under a point: the commit, where there is none the run."""
        return self.commit or self.run

    @property
    def short(self) -> str:
        """The same where there is little room: seven letters of a commit, the time in a run's name."""
        return f"{self.commit[:7]}{'+' if self.commit.endswith('+') else ''}" if self.commit else self.run[-6:]


@dataclass(frozen=True)
class Point:
    """A case in one run. `change` is against all runs of the code before it, where that code is another one's."""

    origin: Origin
    launches: tuple[tuple[float, ...], ...]
    predicted: float | None
    other_cores: float
    """that other processes kept busy meanwhile"""
    change: Judgement | None = None

    @property
    def readings(self) -> tuple[float, ...]:
        """Those of all launches."""
        return tuple(value for launch in self.launches for value in launch)

    @property
    def summary(self) -> Summary:
        """Median and range of the readings."""
        found = summarize(self.readings)
        assert found  # a point has readings
        return found

    @property
    def ends(self) -> tuple[float, float]:
        """First and third quartile."""
        return quartiles(self.readings)


@dataclass(frozen=True)
class Series:
    """One case on one machine, its runs in the order they were made."""

    case_id: str
    label: str
    machine: tuple[str, ...]
    points: tuple[Point, ...]

    @property
    def changes(self) -> tuple[Point, ...]:
        """The points where it got better or worse."""
        return tuple(point for point in self.points if point.change and point.change.is_found)


@dataclass(frozen=True)
class History:
    """A quantity over the runs of a folder."""

    measure: Measure
    series: tuple[Series, ...]


@dataclass
class _Found:
    label: str
    points: list[Point] = field(default_factory=list)


def read_runs(root: Path) -> tuple[list[Run], list[str]]:
    """Every run in a folder by the time it was made, and why others could not be read. SpecError where none can."""
    require(root.is_dir(), f"--history: {str(root)!r} is no folder; name the one that holds runs, as runs/")
    require(not (root / RECORDS).exists(), f"--history: {str(root)!r} is a run itself; name the folder that holds it")
    folders = sorted(path for path in root.iterdir() if path.is_dir())
    runs: list[Run] = []
    unread: list[str] = []
    for folder in folders:
        try:
            runs.append(load_run(folder))
        except (SpecError, OSError) as error:
            unread.append(str(error))
    first = f" ({unread[0]})" if unread else ""
    require(bool(runs), f"--history: {str(root)!r} holds no run that can be read, of {len(folders)} folders{first}")
    return sorted(runs, key=lambda run: (run.created, run.name)), unread


def histories(runs: Iterable[Run], measures: Sequence[Measure], limits: Limits) -> tuple[History, ...]:
    """Each quantity over the runs, in their order: cases by machine. A quantity that no case has is left out."""
    found: dict[str, dict[tuple[tuple[str, ...], str], _Found]] = {measure.name: {} for measure in measures}
    for run in runs:
        origin = Origin(run.name, run.created, commit_of(run), software_of(run))
        machine = machine_of(run)
        for case in compare_run(run).cases:
            for measure in measures:
                _add(found[measure.name], machine, case, measure, origin)
    return tuple(
        History(measure, _series(measure, rows, limits)) for measure in measures if (rows := found[measure.name])
    )


def _add(
    rows: dict[tuple[tuple[str, ...], str], _Found],
    machine: tuple[str, ...],
    case: CaseComparison,
    measure: Measure,
    origin: Origin,
) -> None:
    launches = tuple(found for launch in launches_of(case) if (found := tuple(measure.read(launch))))
    if launches:
        busiest = max(map(other_cores, launches_of(case)))
        entry = rows.setdefault((machine, case.case.case_id), _Found(case.case.label))
        entry.points.append(Point(origin, launches, predicted_seconds(case), busiest))


def _series(measure: Measure, rows: dict[tuple[tuple[str, ...], str], _Found], limits: Limits) -> tuple[Series, ...]:
    """Every case's points, judged together: p-values are adjusted over all changes of code of all cases."""
    asked: list[tuple[tuple[tuple[str, ...], str], int]] = []
    pairs: list[Pair] = []
    for key, entry in rows.items():
        for place, pair in _pairs(measure, entry.points):
            asked.append((key, place))
            pairs.append(pair)
    for (key, place), judgement in zip(asked, judge(pairs, limits), strict=True):
        points = rows[key].points
        points[place] = replace(points[place], change=judgement)
    return tuple(
        Series(case_id, entry.label, machine, tuple(entry.points)) for (machine, case_id), entry in rows.items()
    )


def _pairs(measure: Measure, points: Sequence[Point]) -> list[tuple[int, Pair]]:
    """Where the code changes: the place of the first run of the new code, and both codes' runs."""
    stretches: list[list[int]] = []
    for place, point in enumerate(points):
        if stretches and points[stretches[-1][0]].origin.code == point.origin.code:
            stretches[-1].append(place)
        else:
            stretches.append([place])
    found = []
    for old, new in itertools.pairwise(stretches):
        before, after = points[old[-1]], points[new[0]]
        is_alike = before.origin.software == after.origin.software
        apart = drift(measure, before.predicted, after.predicted) if is_alike else 0.0
        first, second = ([found for place in stretch for found in points[place].launches] for stretch in (old, new))
        found.append(
            (new[0], Pair(measure, first, second, apart, max(points[place].other_cores for place in (*old, *new))))
        )
    return found
