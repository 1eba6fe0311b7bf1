"""Case -> torchrun -> Measurement. One torchrun a case; whatever happens, none of its processes is left behind."""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import psutil

from suite.case import Case
from suite.environment import OTHER_CORES, ROOT, available_cores, oom_kills, others_cpu_seconds
from suite.outcome import Ending, judge
from suite.parse import require
from suite.ranklog import RankLog, last_line, logs_path, read_rank, tail_text
from suite.record import Measurement, Outcome

GUARD = "suite.guard"
#: seconds after the hang limit at which the ranks give a collective up by themselves
COLLECTIVE_MARGIN_S = 30.0


def rank_variables(threads: int) -> dict[str, str]:
    """What a rank's process is told of threads and memory; whatever measures for ranks is told the same.

    The heap keeps what it has been given, as CUDA's caching allocator does. glibc returns the top of it after every
    backward pass and takes large tensors from the system one by one, and each page's first touch then costs anew:
    gpt-1m took 232 ms a step with 14,816 such touches, 133 ms with 2,272, by the chance of where a free block lay.
    """
    return {
        "OMP_NUM_THREADS": str(threads),
        "MALLOC_MMAP_MAX_": "0",
        "MALLOC_TRIM_THRESHOLD_": str(2**62),
    }


@dataclass(frozen=True)
class Place:
    """This machine's place among those that run a case together: what its torchrun needs to meet the others."""

    endpoint: str
    """HOST:PORT of torchrun's own rendezvous"""
    run_id: str
    is_host: bool
    """does this machine's torchrun keep the store?"""
    address: str
    """the address at which the other machines reach this one"""


class Watch(Protocol):
    """What a launcher listens to between two looks at a running case."""

    def look(self, seconds: float) -> bool:
        """Wait so long at most; True where this machine's part is to end now."""
        ...


class Alone:
    """No other machine takes part."""

    def look(self, seconds: float) -> bool:
        """Sleep."""
        time.sleep(seconds)
        return False


@dataclass(frozen=True)
class Part:
    """How a case ended on this machine: every rank's log (empty where it ran elsewhere) before any was ended."""

    logs: tuple[RankLog, ...]
    ending: Ending
    code: int | None
    """torchrun's exit status; None where it was ended"""


@dataclass(frozen=True)
class Job:
    """What one torchrun runs: cases of one size, the file that lists them, where each case's rows go, and where the
    launch itself writes."""

    cases: tuple[Case, ...]
    file: Path
    out: Path
    """what the ranks are told: a case's own folder, or for a list the folder above those"""
    folders: tuple[Path, ...]
    home: Path

    @property
    def ranks(self) -> int:
        """Ranks on one machine."""
        return self.cases[0].cluster.per_node


@dataclass(frozen=True)
class Launcher:
    """Runs a case's ranks on this machine and reads what they leave, within two limits.

    A run that says nothing new for `hang_s` hangs; one that is alive at `timeout_s` is out of time. Both count
    from the start of torchrun, so they include the seconds that it and the ranks' imports take.
    """

    module: str
    """what each rank runs: python -m MODULE CASE.json --out FOLDER --timeout SECONDS"""
    timeout_s: float = 600.0
    """seconds a case may take"""
    hang_s: float = 120.0
    """seconds without a new row from any rank before the case is taken to hang"""
    grace_s: float = 5.0
    """seconds between SIGTERM and SIGKILL"""
    look_s: float = 0.2
    """seconds between two looks at a running case; one look is a stat of each rank's file"""
    environment: dict[str, str] = field(default_factory=dict)
    """variables for the ranks, on top of this process's own"""
    arguments: tuple[str, ...] = ()
    """more arguments for the worker"""

    def __post_init__(self) -> None:
        for name in ("timeout_s", "hang_s", "grace_s"):
            require(getattr(self, name) > 0, f"launcher.{name}: must be positive, got {getattr(self, name)}")
        require(self.look_s >= 0.2, f"launcher.look_s: must be at least 0.2, got {self.look_s}")

    def run(self, case: Case, folder: Path) -> Measurement:
        """Run the case in `folder` (earlier rows of it there are removed) and say how it ended.

        A case that fails is a Measurement like any other, with the samples its ranks wrote until then.
        Raises OSError where the folder cannot be written, KeyboardInterrupt after the ranks have ended.
        """
        if case.cluster.nodes > 1:
            return Measurement(case.case_id, Outcome.SKIPPED, reason=self._several_machines(case))
        start = time.monotonic()
        part = self.run_part(case, folder)
        return measurement(case, part.logs, part.ending, time.monotonic() - start)

    def run_part(self, case: Case, folder: Path, place: Place | None = None, watch: Watch | None = None) -> Part:
        """Run this machine's ranks of the case: all, or those that `place` makes its own. As `run` otherwise."""
        folder = folder.resolve()
        job = Job((case,), folder / "case.json", folder, (folder,), folder)
        [part] = self._run(job, case.to_mapping(), place, watch)
        return part

    def run_list(self, cases: Sequence[Case], folder: Path, home: Path) -> tuple[Part, ...]:
        """Run cases of one size, one after another, in one launch: of each the rows go to `folder`/<case id>.

        What a launch costs, some seconds of imports, is paid once. The first case that fails ends it: the parts of
        those after it are empty, or say that they were skipped. The time limit is that of a case for each.
        """
        folder, home = folder.resolve(), home.resolve()
        folders = tuple(folder / case.case_id for case in cases)
        job = Job(tuple(cases), home / "cases.json", folder, folders, home)
        return self._run(job, [case.to_mapping() for case in cases])

    def _run(self, job: Job, content: Any, place: Place | None = None, watch: Watch | None = None) -> tuple[Part, ...]:
        for folder in {*job.folders, job.home}:
            _clear(folder)
        job.file.write_text(json.dumps(content, indent=1) + "\n", encoding="ascii")
        start, kills_before, others_before = time.monotonic(), oom_kills(), others_cpu_seconds()
        with self._torchrun(job, place) as process:
            stopped = self._wait(process, job, start, watch or Alone())
            # Before the ranks are ended: what they say of being ended is no reason for anything.
            logs, now = (
                [_logs(case, folder, job.home) for case, folder in zip(job.cases, job.folders, strict=True)],
                time.time(),
            )
            code = process.poll()
        kills_after, others = oom_kills(), others_cpu_seconds() - others_before
        ending = Ending(
            stopped=stopped,
            limit_s=self.timeout_s * len(job.cases) if stopped is Outcome.TIMEOUT else self.hang_s,
            oom_kills=None if kills_before is None or kills_after is None else kills_after - kills_before,
            launcher_line=last_line(tail_text(job.home / "torchrun.log")),
            time=now,
            other_cores=max(0.0, others / (time.monotonic() - start)),
        )
        return tuple(Part(own, ending, code) for own in logs)

    def _several_machines(self, case: Case) -> str:
        """What would run a case that one machine alone cannot."""
        nodes, ranks = case.cluster.nodes, case.cluster.per_node
        return (
            f"cluster.nodes: {nodes} machines; give --rdzv HOST:PORT and run the same command on each, or run on each:"
            f" torchrun --nnodes {nodes} --nproc-per-node {ranks} --rdzv-backend c10d --rdzv-endpoint HOST:PORT"
            f" -m {self.module} CASE.json --out FOLDER"
        )

    @contextlib.contextmanager
    def _torchrun(self, job: Job, place: Place | None) -> Iterator[subprocess.Popen[bytes]]:
        """torchrun under its guard; on the way out, however that is, the guard and all below it have ended."""
        with (job.home / "torchrun.log").open("wb") as log:
            process = subprocess.Popen(
                self._command(job, place),
                env=self._variables(job.ranks),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # a Ctrl-C at the terminal is ours to hear, not the ranks'
            )
        try:
            yield process
        finally:
            _end(process, self.grace_s)

    def _command(self, job: Job, place: Place | None) -> list[str]:
        """guard -> torchrun -> a guard for each rank -> the rank."""
        python = [sys.executable, "-m"]
        grace = ["--grace", str(self.grace_s)]
        worker = [*python, self.module, str(job.file), "--out", str(job.out)]
        worker += ["--timeout", f"{self.hang_s + COLLECTIVE_MARGIN_S:g}", *self.arguments]
        return [
            *[*python, GUARD, "--parent", str(os.getpid()), *grace, "--"],
            *[*python, "torch.distributed.run", "--nproc-per-node", str(job.ranks)],
            *self._meeting(job.cases[0], place),
            *["--max-restarts", "0", "--monitor-interval", "0.2"],
            *["--shutdown-timeout", str(math.ceil(self.grace_s) + 1)],  # the ranks' guards come first
            *["--redirects", "3", "--log-dir", str(logs_path(job.home)), "--no-python"],
            *[*python, GUARD, "--exits", str(job.home), *grace, "--"],
            *worker,
            *(["--rows", "local"] if place else []),  # the launchers bring the rows together, whatever happens
        ]

    def _meeting(self, case: Case, place: Place | None) -> list[str]:
        """torchrun's flags for where its machines meet."""
        if place is None:
            return ["--standalone", "--local-addr", "127.0.0.1"]  # the name of this machine need not resolve
        # is_host: torch compares the host with what this machine's name resolves to, which may be nothing
        settings = f"is_host={int(place.is_host)},join_timeout={math.ceil(self.timeout_s)}"
        return [
            *["--nnodes", str(case.cluster.nodes), "--rdzv-backend", "c10d", "--rdzv-endpoint", place.endpoint],
            *["--rdzv-id", place.run_id, "--rdzv-conf", settings, "--local-addr", place.address],
        ]

    def _variables(self, ranks: int) -> dict[str, str]:
        """The ranks share the cores; what they print is not held back; they import this very code."""
        variables = {
            # Threads that spin while they wait cost a busy machine a factor of nine (docs/log.md).
            "OMP_WAIT_POLICY": "passive",
            **os.environ,
            **rank_variables(max(1, available_cores() // ranks)),
            "PYTHONUNBUFFERED": "1",
            "PYTHONSAFEPATH": "1",  # a folder called `suite` where the user stands is not this one
        }
        if ROOT.name not in ("site-packages", "dist-packages"):
            paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
            variables["PYTHONPATH"] = os.pathsep.join(paths)
        return variables | self.environment

    def _wait(self, process: subprocess.Popen[bytes], job: Job, start: float, watch: Watch) -> Outcome | None:
        """Sleep until torchrun has ended or the watch wants it ended (None), or a limit is passed (which one)."""
        seen, grown_at = sum(map(row_bytes, job.folders)), start
        while process.poll() is None:
            now, size = time.monotonic(), sum(map(row_bytes, job.folders))
            if size != seen:
                seen, grown_at = size, now
            if now - start > self.timeout_s * len(job.cases):
                return Outcome.TIMEOUT
            if now - grown_at > self.hang_s:
                return Outcome.HANG
            if watch.look(self.look_s):
                return None
        return None


def measurement(case: Case, logs: Sequence[RankLog], ending: Ending, wall_seconds: float) -> Measurement:
    """The ranks' logs as one Measurement."""
    outcome, reason = judge(logs, ending)
    around = {} if ending.other_cores is None else {OTHER_CORES: round(ending.other_cores, 3)}
    return Measurement(
        case_id=case.case_id,
        outcome=outcome,
        samples=tuple(sample for log in logs for sample in log.samples),
        reason=reason,
        wall_seconds=wall_seconds,
        stderr_tails={log.rank: log.stderr_tail for log in logs if log.stderr_tail},
        environment={**next((log.environment for log in logs if log.environment), {}), **around},
    )


def _logs(case: Case, folder: Path, home: Path) -> tuple[RankLog, ...]:
    return tuple(read_rank(folder, rank, home) for rank in range(case.layout.world_size))


def row_bytes(folder: Path) -> int:
    """Bytes in all ranks' rows: it grows with every row."""
    return sum(path.stat().st_size for path in folder.glob("rank-*.jsonl"))


def _clear(folder: Path) -> None:
    """Make the folder, without what an earlier run of the case left in it."""
    folder.mkdir(parents=True, exist_ok=True)
    for pattern in ("rank-*.jsonl", "exit-*.json"):
        for path in folder.glob(pattern):
            path.unlink()
    shutil.rmtree(logs_path(folder), ignore_errors=True)


def _end(process: subprocess.Popen[bytes], grace_s: float) -> None:
    """Ask the guard to end what is below it and wait; if the guard itself does not answer, end all by force."""
    if process.poll() is not None:  # a guard ends after everything below it
        if process.returncode < 0:  # unless it was killed: the ranks' own guards need their grace
            time.sleep(grace_s)
        return
    tree = psutil.Process(process.pid).children(recursive=True)
    process.terminate()
    try:
        process.wait(grace_s + 5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        for child in tree:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
