"""Cases run as `bench` runs them: a store is begun, each case estimated, run and recorded; a stopped run goes on."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from memory.trace_asking import record_traces
from parallelism.peers.asking import record_answers
from reports.calibrated import keep_calibration
from reports.predict import Predictor
from reports.routed import record_routed
from reports.streams import tell
from suite.batches import batched
from suite.case import Case
from suite.data import check_data
from suite.environment import environment
from suite.formats import check_trainable
from suite.hardware import device
from suite.launch import Launcher
from suite.machines import Machines
from suite.parse import require
from suite.passes import Pass, on_ranks
from suite.peers import Peer
from suite.progress import ConsoleProgress
from suite.store import RunRow, RunStore
from suite.sweep import sweep

if TYPE_CHECKING:
    from suite.hardware.calibration import Calibration

#: suites of so many short trainings that they share launches
SHARES_TRAINING = frozenset({"plan"})
WORKER = "parallelism.worker"
#: seconds that a case may take, and of silence from all ranks, unless others are asked for
TIMEOUT_S, HANG_S = 900.0, 180.0
HERE = Machines(None, None)


def check_cases(cases: Iterable[Case]) -> None:
    """Refuse, before anything runs, devices that are not known, formats and pipelines that are only estimated, and data
    that cannot be trained on."""
    for case in cases:
        device(case.cluster.device)
        require(
            not (case.serves and case.layout.pp > 1),
            f"layout.pp({case.layout.pp}): pipelines are not served yet; `estimate` takes them, and tp and dp"
            " can be served",
        )
        check_trainable(case)
        check_data(case)


@dataclass(frozen=True)
class Running:
    """How cases are run, whichever verb asks."""

    program: str
    """what the user types before the verb"""
    arguments: tuple[str, ...]
    runs: str | None = None
    """the folder of runs; None: `runs`"""
    timeout_s: float = TIMEOUT_S
    """that a case may take"""
    hang_s: float = HANG_S
    """of silence from all ranks"""
    launches: int = 1
    """of each case"""

    def folder(self) -> Path:
        """Where runs are kept; SpecError where it cannot be written."""
        root = Path("runs" if self.runs is None else self.runs)
        root.mkdir(parents=True, exist_ok=True)
        require(os.access(root, os.W_OK), f"--runs: {str(root)!r} cannot be written; name a folder that can")
        return root

    def begin(
        self,
        cases: Sequence[Case],
        suite: str,
        passes: tuple[Pass, ...],
        calibration: Calibration | None,
        peers: tuple[Peer, ...] = (),
    ) -> RunStore:
        """A new run's store, which says what was asked for, with the calibration that its times rest on."""
        store = RunStore.create(self.folder())
        keep_calibration(calibration, store.folder)
        store.append(
            RunRow(
                created=datetime.now(UTC).isoformat(timespec="seconds"),
                suite=suite,
                cases=tuple(case.to_mapping() for case in cases),
                command=(*shlex.split(self.program), *self.arguments),
                environment=environment(),
                passes=passes,
                peers=peers,
                launches=self.launches,
            )
        )
        return store

    def carry_out(
        self, store: RunStore, cases: Sequence[Case], predictor: Predictor, machines: Machines = HERE
    ) -> None:
        """Run what the store has no measurement of. Interrupted, it says how to go on, and raises."""
        launcher = self.launcher(predictor.passes)
        try:
            with ConsoleProgress() as progress, machines.runner(cases, launcher, self.timeout_s) as runner:
                # small cases of one pass share launches, whose cost they would be lost in
                asked = store.rows(RunRow)[0]
                runner = batched(runner, cases, predictor.passes, asked.suite in SHARES_TRAINING)
                sweep(cases, store, runner, predictor, progress, asked.launches)
            record_routed(store, cases, predictor, tell)
            record_answers(store, cases, tell)
            record_traces(store, cases, tell, self.timeout_s)
        except (KeyboardInterrupt, OSError):
            tell(f"stopped; go on with: {self.program} bench --resume {shlex.quote(str(store.folder))}")
            raise

    def launcher(self, passes: Sequence[Pass]) -> Launcher:
        """What starts the ranks, with the limits and the passes that were asked for."""
        return Launcher(WORKER, self.timeout_s, self.hang_s, arguments=("--passes", ",".join(on_ranks(passes))))
