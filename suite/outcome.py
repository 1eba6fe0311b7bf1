"""Telling the ends of a run apart: what the ranks left behind -> an outcome and a reason in one plain line.

Pure: it reads no file and asks no clock. A traceback is never a reason; its last line is.
"""

from __future__ import annotations

import math
import re
import signal
from collections.abc import Sequence
from dataclasses import dataclass

from suite.ranklog import TRACEBACK, FailureKind, RankFailure, RankLog, last_line
from suite.record import Outcome

REASON_CHARACTERS = 300
CRASH_LEAD_S = 0.5
#: ranks whose last words a reason repeats
RANKS_TOLD = 8
SIGKILL_CODES = (-signal.SIGKILL, 128 + signal.SIGKILL)  # ended by signal 9; a shell's or container's word for it


@dataclass(frozen=True)
class Ending:
    """How the launcher saw the run end."""

    stopped: Outcome | None = None
    """TIMEOUT or HANG where the launcher ended it, None where it ended by itself"""
    limit_s: float = 0.0
    """the limit that was passed, where it was stopped"""
    oom_kills: int | None = None
    """processes the kernel's out-of-memory killer ended on this machine during the run; None: it does not say"""
    launcher_line: str = ""
    """the last words of torchrun itself"""
    time: float = 0.0
    """when the ranks' logs were read, in seconds since the epoch; 0 where it was not noted"""
    other_cores: float | None = None
    """cores that other processes kept busy meanwhile, on average; None where it was not noted"""
    lost: tuple[str, ...] = ()
    """machines that went away while the case ran, each in words that name its ranks"""


def judge(logs: Sequence[RankLog], ending: Ending) -> tuple[Outcome, str]:
    """The outcome of a run and its reason (empty where it is OK), from every rank's log in order of rank.

    A rank's own word comes first (skipped, out of memory), then a machine that went away, then the first rank
    that failed, then the launcher's limits, then what is missing, then a cache that was full. Failures that follow from
    another's are not reasons.
    """
    for log in logs:
        if log.skipped is not None:
            return Outcome.SKIPPED, one_line(log.skipped)
    for log in logs:
        if log.failure and log.failure.kind is FailureKind.OOM:
            return Outcome.OOM, _rank_says(log, log.failure.message)
    if ending.lost:
        return Outcome.FAILED, one_line("; ".join(ending.lost))
    if failed := sorted(filter(_has_failed, logs), key=_failed_at):
        return _judge_failure(failed[0], ending)
    if ending.stopped:
        return ending.stopped, _stopped_reason(logs, ending)
    return _judge_ended(logs, ending)


def one_line(message: str) -> str:
    """A message in one line: its first line, or what a traceback raised; control characters out, length bounded."""
    first = message.strip().splitlines()[0] if message.strip() else ""
    line = last_line(message) if TRACEBACK in first else first
    line = "".join(character if character.isprintable() else " " for character in line).strip()
    if re.search(r"EADDRINUSE|address already in use", line, flags=re.IGNORECASE):
        return "no free port: another program took it first (address already in use); run the case again"
    return line if len(line) <= REASON_CHARACTERS else line[: REASON_CHARACTERS - 3] + "..."


def _judge_failure(log: RankLog, ending: Ending) -> tuple[Outcome, str]:
    """The rank that failed first, and why."""
    if broke := _broke(log):
        return Outcome.FAILED, _rank_says(log, broke.message or last_line(log.stderr_tail))
    assert log.exit is not None  # _has_failed
    if log.exit.code in SIGKILL_CODES:
        return _judge_kill(log, ending)
    how = f"ended by {_signal_text(-log.exit.code)}" if log.exit.code < 0 else f"exit status {log.exit.code}"
    how += " after its last row" if log.done else ""
    line = one_line(last_line(log.stderr_tail))
    return Outcome.FAILED, f"rank {log.rank}: {how}{': ' if line else ''}{line}"


def _judge_kill(log: RankLog, ending: Ending) -> tuple[Outcome, str]:
    """A rank ended by SIGKILL, which does not say who sent it; the kernel's own count does."""
    killed = f"rank {log.rank}: killed (signal 9)"
    if ending.oom_kills is None:
        return Outcome.OOM, f"{killed}: probably out of memory"
    if ending.oom_kills > 0:
        return Outcome.OOM, f"{killed}: the kernel's out-of-memory killer acted during the run"
    return Outcome.FAILED, f"{killed}, and not by the kernel's out-of-memory killer"


def _judge_ended(logs: Sequence[RankLog], ending: Ending) -> tuple[Outcome, str]:
    """A run that ended by itself, with no rank that failed: is everything there? Of a served case whose cache was full
    it is as well, and the answers were cut short."""
    if not any(log.exit or log.samples or log.heartbeat or log.done for log in logs):
        return Outcome.FAILED, f"no rank started: {one_line(ending.launcher_line) or 'the launcher said nothing'}"
    for log in logs:
        if log.exit is None:
            return Outcome.FAILED, f"rank {log.rank}: vanished without an exit status"
        if not log.done:
            return Outcome.FAILED, f"rank {log.rank}: ended without its last row (exit status 0)"
        if log.fault:
            return Outcome.FAILED, f"rank {log.rank}: wrote a row that cannot be read: {one_line(log.fault)}"
    for log in logs:
        if log.failure:
            return Outcome.CACHE_FULL, one_line(log.failure.message)
    return Outcome.OK, ""


def _stopped_reason(logs: Sequence[RankLog], ending: Ending) -> str:
    """What passed its limit, where the ranks were, and which of them has said nothing for longest."""
    what = "no new row from any rank for" if ending.stopped is Outcome.HANG else "still running after"
    last = [f"rank {log.rank} {'was done' if log.done else repr(log.heartbeat)}" for log in logs[:RANKS_TOLD]]
    last += [f"{len(logs) - RANKS_TOLD} more"] if len(logs) > RANKS_TOLD else []
    return one_line(f"{what} {ending.limit_s:g} s; last: {', '.join(last)}{_silence(logs, ending)}")


def _silence(logs: Sequence[RankLog], ending: Ending) -> str:
    """The rank, of those that were not done, whose last row is oldest; empty where no row has a time."""
    running = [log for log in logs if not log.done]
    if silent := [log for log in running if not log.row_time]:
        return f"; rank {silent[0].rank} has written no row at all" if ending.time else ""
    if not running or not ending.time:
        return ""
    oldest = min(running, key=lambda log: log.row_time)
    return f"; silent for longest: rank {oldest.rank}, {ending.time - oldest.row_time:.1f} s"


def _broke(log: RankLog) -> RankFailure | None:
    """What a rank says stopped it; a full cache stops its answers alone."""
    return log.failure if log.failure and log.failure.kind is not FailureKind.CACHE_FULL else None


def _has_failed(log: RankLog) -> bool:
    return _broke(log) is not None or (log.exit is not None and log.exit.code != 0)


def _failed_at(log: RankLog) -> tuple[bool, float]:
    """Order of failures: whether the rank was merely told to end, then when it failed (s since the epoch).

    A rank that died without a word is dated CRASH_LEAD_S earlier: its peers can meet the broken connection
    before its guard is woken. One ended by SIGTERM was told to by torchrun, because another had failed.
    """
    broke = _broke(log)
    if broke and broke.time:
        return False, broke.time
    if log.exit is None:
        return False, math.inf
    if broke:
        return False, log.exit.time
    return log.exit.code == -signal.SIGTERM, log.exit.time - CRASH_LEAD_S


def _rank_says(log: RankLog, message: str) -> str:
    return f"rank {log.rank}: {one_line(message) or 'failed without a word'}"


def _signal_text(number: int) -> str:
    try:
        return f"signal {number} ({signal.Signals(number).name})"
    except ValueError:
        return f"signal {number}"
