"""A case on several machines: one launcher records, the others run their part of it and send their ranks' rows.

Each machine starts its own torchrun. The recording machine writes the others' rows into the case's folder as they
come, so that every rank is watched, judged and kept as if it ran here, and no file system need be shared.
"""

from __future__ import annotations

import contextlib
import json
import select
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from suite.case import Case
from suite.follow import PartEnd
from suite.launch import Launcher, Part, Place, measurement
from suite.parse import SpecError, convert, from_mapping, require, to_mapping
from suite.ranklog import RankLog, exit_path, logs_path, read_rank, rows_path
from suite.record import Measurement, Outcome
from suite.rendezvous import Endpoint, Link, accept, free_port, listening

#: seconds beyond its grace that a machine which is told to stop may take
STOP_S = 15.0
#: seconds within which a machine that has connected says who it is
HELLO_S = 10.0
RANKS_TOLD = 8


@dataclass(frozen=True)
class Follower:
    """Another machine, as the recording one knows it."""

    node: int
    link: Link
    cases: tuple[str, ...]
    """ids of the cases that its own command describes"""
    clock_lead_s: float
    """what to add to its time of day to have ours"""

    def __str__(self) -> str:
        return f"node {self.node} ({self.link.remote_address})"


class Others:
    """The other machines' parts of one running case."""

    def __init__(self, followers: Sequence[Follower], folder: Path, world: int, settle_s: float) -> None:
        self.node_of: dict[int, Follower] = {}  # rank -> where it runs, as its rows come
        self.ended: dict[int, PartEnd] = {}  # node -> how its part ended
        self.lost: dict[int, str] = {}  # node -> why nothing more will come from it
        self._followers = followers
        self._folder = folder
        self._world = world
        self._settle_s = settle_s
        self._bad_since: float | None = None

    def look(self, seconds: float) -> bool:
        """Take what the others send for so long; True once the rest has had its time to end after a failure."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            self._take(left)
        return self._bad_since is not None and time.monotonic() - self._bad_since > self._settle_s

    def running(self) -> list[Follower]:
        """The machines whose part has not ended."""
        return [other for other in self._followers if other.node not in self.ended and other.node not in self.lost]

    def settle(self, seconds: float, stop_s: float) -> bool:
        """Wait for the others' ends, `seconds` after their last row at most; then they are told to stop.

        False where one had to be told. One that does not stop within `stop_s` is lost.
        """
        grown_at = time.monotonic()
        while self.running() and time.monotonic() - grown_at < seconds:
            if self._take(0.2):
                grown_at = time.monotonic()
        told = self.stop()
        deadline = time.monotonic() + stop_s
        while self.running() and time.monotonic() < deadline:
            self._take(0.2)
        for other in self.running():
            self._lose(other, "it does not stop")
        return not told

    def stop(self) -> bool:
        """Tell those that still run to stop; were there any?"""
        running = self.running()
        for other in running:
            try:
                other.link.send({"stop": True})
            except ConnectionError as error:
                self._lose(other, str(error))
        return bool(running)

    def losses(self) -> tuple[str, ...]:
        """The machines that went away, each in words that name its ranks."""
        return tuple(
            f"{_ranks_text(rank for rank, other in self.node_of.items() if other.node == node)}: {why}"
            for node, why in self.lost.items()
        )

    def logs(self, part: Part) -> tuple[RankLog, ...]:
        """Every rank's log: this machine's as its part has them, the others' with all that came."""
        return tuple(
            _in_our_time(read_rank(self._folder, log.rank), self.node_of[log.rank].clock_lead_s)
            if log.rank in self.node_of
            else log
            for log in part.logs
        )

    def _take(self, seconds: float) -> bool:
        """What comes within so long from any machine; True where rows did."""
        running = {other.link: other for other in self.running()}
        if not running:
            time.sleep(seconds)
            return False
        ready, _, _ = select.select(list(running), [], [], seconds)
        grown = False
        for link in ready:
            try:
                while (message := link.receive(0)) is not None:
                    grown |= self._note(running[link], message)
            except (ConnectionError, SpecError) as error:
                self._lose(running[link], str(error))
        return grown

    def _note(self, other: Follower, message: Mapping[str, Any]) -> bool:
        """Write down what a machine sent; True for rows. SpecError for what is neither rows nor an end."""
        rows: dict[int, str] = convert(message.get("rows", {}), dict[int, str], "rows")
        for rank, text in rows.items():
            self._known(rank, other)
            with rows_path(self._folder, rank).open("a", encoding="ascii", errors="replace") as file:
                file.write(text)
        if "ended" in message:
            self._note_end(other, from_mapping(PartEnd, message["ended"], "ended"))
        return bool(rows)

    def _note_end(self, other: Follower, end: PartEnd) -> None:
        for rank, row in end.exits.items():
            self._known(rank, other)
            exit_path(self._folder, rank).write_text(json.dumps(to_mapping(row)), encoding="ascii")
        for rank, text in end.stderr.items():
            self._known(rank, other)
            log = logs_path(self._folder) / f"node-{other.node}" / "attempt_0" / str(rank) / "stderr.log"
            log.parent.mkdir(parents=True, exist_ok=True)
            log.write_text(text, encoding="utf-8")
        self.ended[other.node] = end
        if end.code != 0:
            self._bad_since = self._bad_since or time.monotonic()

    def _known(self, rank: int, other: Follower) -> None:
        """The rank runs there."""
        require(0 <= rank < self._world, f"rank {rank} of {self._world} is none of this case")
        self.node_of[rank] = other

    def _lose(self, other: Follower, why: str) -> None:
        self.lost[other.node] = f"{other} is gone ({why})"
        self._bad_since = self._bad_since or time.monotonic()


@dataclass(frozen=True)
class Recorder:
    """Runs cases on this machine and those that follow it; what one machine can run alone, it runs here."""

    launcher: Launcher
    followers: tuple[Follower, ...]
    settle_s: float = 10.0
    """seconds that the rest of a run has to end by itself, once one machine's part has failed or its link is lost"""

    def run(self, case: Case, folder: Path) -> Measurement:
        """As Launcher.run. ConnectionError where a machine that the case needs has gone before it began."""
        if case.cluster.nodes == 1:
            return self.launcher.run(case, folder)
        followers, start = self.followers[: case.cluster.nodes - 1], time.monotonic()
        for other in followers:
            if case.case_id not in other.cases:
                return Measurement(case.case_id, Outcome.FAILED, reason=_mismatch(case, other))
        folder = folder.resolve()
        others = Others(followers, folder, case.layout.world_size, self.settle_s)
        part = self.launcher.run_part(case, folder, self._call(case, followers), others)
        limit_s = self.launcher.hang_s if part.code == 0 else 0.0 if part.ending.stopped else self.settle_s
        all_ended = others.settle(limit_s, self.launcher.grace_s + STOP_S)
        stopped = part.ending.stopped or (Outcome.HANG if part.code == 0 and not all_ended else None)
        ending = replace(
            part.ending,
            stopped=stopped,
            lost=() if part.ending.stopped else others.losses(),
            oom_kills=_sum([part.ending.oom_kills, *(end.oom_kills for end in others.ended.values())]),
            launcher_line=_launcher_line(part, others, followers),
        )
        logs = part.logs if part.ending.stopped else others.logs(part)
        return measurement(case, logs, ending, time.monotonic() - start)

    def _call(self, case: Case, followers: Sequence[Follower]) -> Place:
        """Have the others begin, and say where this machine stands."""
        address = followers[0].link.local_address
        endpoint = Endpoint(address, free_port(address))
        for other in followers:
            try:
                while other.link.receive(0) is not None:  # left over; and notices a machine that has gone meanwhile
                    pass
                other.link.send({"run": {"case": case.case_id, "endpoint": str(endpoint)}})
            except ConnectionError as error:
                message = f"{other} is gone ({error}); run the same command on it again, and go on here with --resume"
                raise ConnectionError(message) from None
        return Place(str(endpoint), case.case_id, True, address)


@contextlib.contextmanager
def recording(endpoint: Endpoint, nodes: int, launcher: Launcher, wait_s: float) -> Iterator[Recorder]:
    """Wait for the other machines, `wait_s` seconds at most; at the end they are told that it is over.

    OSError where not all of them come.
    """
    deadline = time.monotonic() + wait_s
    with listening(endpoint) as listener, contextlib.ExitStack() as links:
        followers: list[Follower] = []
        while len(followers) < nodes - 1:
            link = accept(listener, deadline)
            if link is None:
                met = f"{len(followers) + 1} of {nodes} machines met at {endpoint} within {wait_s:g} s"
                raise OSError(f"--rdzv: {met}; run the same command on each of them")
            links.callback(link.close)
            if follower := _greeted(link, len(followers) + 1, nodes):
                followers.append(follower)
        yield Recorder(launcher, tuple(followers))
        for follower in followers:
            with contextlib.suppress(ConnectionError):
                follower.link.send({"bye": True})


def _greeted(link: Link, node: int, nodes: int) -> Follower | None:
    """The machine that has connected; None for a stranger."""
    try:
        hello = _answer(link, "hello")
        link.send({"welcome": {"node": node, "nodes": nodes}})
        lead_s = -float(_answer(link, "clock")) + time.time()
        return Follower(node, link, tuple(map(str, hello)), lead_s)
    except (ConnectionError, TypeError, ValueError):
        return None


def _answer(link: Link, key: str) -> Any:
    message = link.receive(HELLO_S)
    if message is None or key not in message:
        raise ConnectionError("it is no launcher")
    return message[key]


def _mismatch(case: Case, other: Follower) -> str:
    others = ", ".join(other.cases[:RANKS_TOLD]) or "none"
    return f"case: {other} has not case {case.case_id} of node 0; its cases: {others}; give every machine the same ones"


def _launcher_line(part: Part, others: Others, followers: Sequence[Follower]) -> str:
    """The last words of a torchrun that failed, another machine's first: this one may merely have waited for it."""
    for other in followers:
        end = others.ended.get(other.node)
        if end and end.code and end.launcher_line:
            return f"{other}: {end.launcher_line}"
    return part.ending.launcher_line


def _in_our_time(log: RankLog, lead_s: float) -> RankLog:
    """A log of another machine, its times of day as ours."""
    failure, ended = log.failure, log.exit
    return replace(
        log,
        failure=replace(failure, time=failure.time + lead_s) if failure and failure.time else failure,
        exit=replace(ended, time=ended.time + lead_s) if ended else None,
    )


def _ranks_text(ranks: Iterable[int]) -> str:
    names = [str(rank) for rank in sorted(ranks)]
    shown = ", ".join(names[:RANKS_TOLD]) + (", ..." if len(names) > RANKS_TOLD else "")
    return f"rank{'s' if len(names) > 1 else ''} {shown}" if names else "no row of its ranks yet"


def _sum(counts: Sequence[int | None]) -> int | None:
    """The sum; None where one is not known."""
    known = [count for count in counts if count is not None]
    return sum(known) if len(known) == len(counts) else None
