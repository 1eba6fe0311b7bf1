"""Which cases share launches, and what a shared launch keeps of how busy the machine was."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from suite.batches import LAUNCH_CASES, TRAINED_CASES, BatchedLauncher, batched
from suite.case import Case
from suite.environment import OTHER_CORES
from suite.launch import Launcher, Part
from suite.layout import Layout
from suite.outcome import Ending
from suite.passes import ON_RANKS, Pass
from suite.ranklog import RankLog
from suite.record import Outcome
from tests.unit import report_samples as made

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("passes", "size"),
    [
        ((Pass.TRAIN,), None),
        ((Pass.MEMORY,), LAUNCH_CASES),
        ((Pass.MEMORY, Pass.TRACE), LAUNCH_CASES),
        ((Pass.SERVE,), LAUNCH_CASES),
        ((Pass.TRAFFIC,), None),
        ((Pass.TRAIN, Pass.MEMORY), None),
        (ON_RANKS, None),
    ],
)
def test_cases_share_launches_where_one_pass_is_asked_for(passes: tuple[Pass, ...], size: int | None) -> None:
    found = batched(Launcher("x"), [made.case()], passes)
    assert (found.size if isinstance(found, BatchedLauncher) else None) == size


def test_trained_cases_share_launches_where_told_but_those_of_tp() -> None:
    """torch names the groups of tensor parallelism's collectives, and a later case of a process meets those names."""
    cases = [made.case(layout=Layout(**axis)) for axis in ({"dp": 2}, {"tp": 2}, {"fsdp": 2})]
    found = batched(Launcher("x"), cases, (Pass.TRAIN,), shares_training=True)
    assert isinstance(found, BatchedLauncher)
    assert found.size == TRAINED_CASES
    assert found._together(cases[0]) == [cases[0], cases[2]]
    assert found._together(cases[1]) == [cases[1]]


class Busy(Launcher):
    """A launcher all of whose cases are done, on a machine that others kept busy."""

    def run_list(self, cases: Sequence[Case], folder: Path, home: Path) -> tuple[Part, ...]:
        """No process is started."""
        log = RankLog(0, done=True)
        return tuple(Part((log,), Ending(other_cores=0.4, time=1.0), 0) for _ in cases)


def test_a_case_of_a_shared_launch_knows_how_busy_the_machine_was(tmp_path: Path) -> None:
    case = made.case()
    found = BatchedLauncher(Busy("x"), [case]).run(case, tmp_path / case.case_id)
    assert (found.outcome, found.environment[OTHER_CORES]) == (Outcome.OK, 0.4)
