"""Many small cases in few launches: what a launch costs, seconds of imports on every rank, is paid once for many."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from itertools import dropwhile, islice
from pathlib import Path

from suite.case import Case
from suite.launch import Launcher, Part, measurement
from suite.outcome import Ending
from suite.passes import Pass, on_ranks
from suite.ranklog import RankExit, RankLog
from suite.record import Measurement
from suite.sweep import Runner

#: cases of one launch: enough to hide its cost, few enough to lose little when one fails
LAUNCH_CASES = 40
#: the same of cases that are trained, each of which takes longer: an interrupted run loses those of one launch
TRAINED_CASES = 12


@dataclass(frozen=True)
class BatchedLauncher:
    """Runs a sweep's cases, those of one size together, and hands their measurements out one by one."""

    launcher: Launcher
    cases: Sequence[Case]
    """the sweep's, in its order"""
    size: int = LAUNCH_CASES
    trains: bool = False
    """are steps taken? Then tensor parallelism's cases have a launch each: torch keeps the groups of its collectives by
    names that a later case of the same process would be given again"""
    _ready: dict[str, Measurement] = field(default_factory=dict)

    def run(self, case: Case, folder: Path) -> Measurement:
        """The case's measurement, from a launch before or from one that begins with it. Raises as Launcher.run."""
        if case.case_id not in self._ready:
            self._launch(self._together(case), folder.parent)
        return self._ready.pop(case.case_id)

    def _together(self, case: Case) -> list[Case]:
        """The case and those after it in the sweep that one launch can take too."""
        if self._is_alone(case):
            return [case]
        later = (other for other in dropwhile(lambda other: other != case, self.cases) if not self._is_alone(other))
        alike = (other for other in later if _size(other) == _size(case) and other.case_id not in self._ready)
        return list(islice(alike, self.size))

    def _is_alone(self, case: Case) -> bool:
        return self.trains and case.layout.tp > 1

    def _launch(self, cases: Sequence[Case], folder: Path) -> None:
        start = time.monotonic()
        parts = self.launcher.run_list(cases, folder, folder.parent / "launch")
        seconds = (time.monotonic() - start) / len(cases)
        for case, part in zip(cases, parts, strict=True):
            is_done = all(log.done for log in part.logs)
            if not is_done and case is not cases[0] and not any(map(_has_begun, part.logs)):
                return
            self._ready[case.case_id] = _measured(case, part, is_done, seconds)
            if not is_done:
                return  # those after it did not run: the next launch takes them


def batched(runner: Runner, cases: Sequence[Case], passes: Collection[Pass], shares_training: bool = False) -> Runner:
    """A sweep's runner: its cases share launches on one machine where one pass is all that is asked of them: memory's,
    the served cases' own, and where it is told so training's, whose times a launch of its own keeps apart."""
    trains = Pass.TRAIN in passes
    if not isinstance(runner, Launcher) or len(on_ranks(passes)) != 1 or Pass.TRAFFIC in passes:
        return runner
    if trains and not shares_training:
        return runner
    return BatchedLauncher(runner, cases, TRAINED_CASES if trains else LAUNCH_CASES, trains)


def _size(case: Case) -> tuple[int, int]:
    """What cases of one launch share."""
    return case.layout.world_size, case.cluster.nodes


def _has_begun(log: RankLog) -> bool:
    return log.skipped is None and bool(log.samples or log.heartbeat or log.failure)


def _measured(case: Case, part: Part, is_done: bool, seconds: float) -> Measurement:
    """A case of a launch; how the launch ended says nothing of a case that every rank had done."""
    if not is_done:
        return measurement(case, part.logs, part.ending, seconds)
    logs = [dataclasses.replace(log, exit=RankExit(log.rank, 0, part.ending.time)) for log in part.logs]
    return measurement(case, logs, Ending(other_cores=part.ending.other_cores), seconds)
