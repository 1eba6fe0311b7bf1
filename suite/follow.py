"""A machine that follows: it runs its part of each case that the recording machine calls, and sends its ranks' rows."""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from suite.case import Case
from suite.launch import Launcher, Part, Place
from suite.parse import to_mapping
from suite.ranklog import RankExit
from suite.rendezvous import Endpoint, Link, connect

#: seconds between two sendings of new rows
SEND_EVERY_S = 1.0
#: seconds of one wait for the recording machine; there is no limit to their number while the link holds
NEXT_S = 60.0
#: seconds by which this machine's limits lie beyond the recording machine's, whose word on the whole run counts
LIMIT_MARGIN_S = 15.0


@dataclass(frozen=True)
class PartEnd:
    """How a machine's part of a case ended, as it is sent. What the ranks wrote has been sent before."""

    code: int | None
    """torchrun's exit status; None where it was ended"""
    exits: dict[int, RankExit]
    stderr: dict[int, str]
    """the last lines of each rank's standard error"""
    oom_kills: int | None
    launcher_line: str

    @classmethod
    def of(cls, part: Part) -> PartEnd:
        """From what the launcher found."""
        return cls(
            code=part.code,
            exits={log.rank: log.exit for log in part.logs if log.exit},
            stderr={log.rank: log.stderr_tail for log in part.logs if log.stderr_tail},
            oom_kills=part.ending.oom_kills,
            launcher_line=part.ending.launcher_line,
        )


@dataclass(frozen=True)
class PartDone:
    """A case's part on this machine that has ended."""

    case_id: str
    ranks: tuple[int, ...]
    code: int | None
    """torchrun's exit status; None where it was told to stop"""

    def __str__(self) -> str:
        how = "done" if self.code == 0 else "stopped" if self.code is None else f"torchrun's exit status {self.code}"
        return f"{self.case_id}: ranks {', '.join(map(str, self.ranks)) or 'none'}: {how}"


class Called:
    """The recording machine's word while a part runs; this machine's new rows go there."""

    def __init__(self, link: Link, folder: Path) -> None:
        self._link = link
        self._folder = folder
        self._sent: dict[Path, int] = {}
        self._sent_at = 0.0

    def look(self, seconds: float) -> bool:
        """Wait so long at most; True where this machine is told to stop."""
        if time.monotonic() - self._sent_at >= SEND_EVERY_S:
            self.send_rows()
        return "stop" in (self._link.receive(seconds) or {})

    def send_rows(self) -> None:
        """Send the whole rows that were written since the last time."""
        rows = {}
        for path in sorted(self._folder.glob("rank-*.jsonl")):
            with path.open("rb") as file:
                file.seek(self._sent.get(path, 0))
                whole, end, _ = file.read().rpartition(b"\n")
            if end:
                self._sent[path] = self._sent.get(path, 0) + len(whole) + 1
                rows[path.stem.removeprefix("rank-")] = (whole + end).decode("ascii", errors="replace")
        if rows:
            self._link.send({"rows": rows})
        self._sent_at = time.monotonic()


@contextlib.contextmanager
def following(endpoint: Endpoint, cases: Mapping[str, Case], wait_s: float) -> Iterator[tuple[Link, int, int]]:
    """The link to the recording machine, this machine's number, and how many there are. OSError where there is none."""
    link = connect(endpoint, wait_s)
    with contextlib.closing(link):
        link.send({"hello": list(cases)})
        welcome = _next(link).get("welcome", {})
        link.send({"clock": time.time()})
        yield link, int(welcome["node"]), int(welcome["nodes"])


def follow(
    launcher: Launcher, link: Link, cases: Mapping[str, Case], tell: Callable[[PartDone], None]
) -> tuple[PartDone, ...]:
    """Run this machine's part of each case that is called, to the end. ConnectionError where the other has gone."""
    patient = replace(launcher, timeout_s=launcher.timeout_s + LIMIT_MARGIN_S, hang_s=launcher.hang_s + LIMIT_MARGIN_S)
    done: list[PartDone] = []
    while "bye" not in (message := _next(link)):
        if "run" in message:
            done.append(_run(patient, link, cases[message["run"]["case"]], str(message["run"]["endpoint"])))
            tell(done[-1])
    return tuple(done)


def _run(launcher: Launcher, link: Link, case: Case, endpoint: str) -> PartDone:
    """One case's part, its rows and its end sent."""
    with tempfile.TemporaryDirectory(prefix="shardscope-") as name:
        folder = Path(name)
        called = Called(link, folder.resolve())
        part = launcher.run_part(case, folder, Place(endpoint, case.case_id, False, link.local_address), called)
        called.send_rows()
    link.send({"ended": to_mapping(PartEnd.of(part))})
    ranks = tuple(log.rank for log in part.logs if log.exit or log.row_time)
    return PartDone(case.case_id, ranks, part.code)


def _next(link: Link) -> dict[str, Any]:
    """The next word of the recording machine, which may run other cases meanwhile."""
    while (message := link.receive(NEXT_S)) is None:
        pass
    return message
