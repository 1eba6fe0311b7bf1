"""The ends of a run, told apart: every case by hand."""

from __future__ import annotations

import pytest

from suite.outcome import Ending, judge, one_line
from suite.parse import SpecError
from suite.ranklog import FailureKind, RankExit, RankFailure, RankLog
from suite.record import Outcome

pytestmark = pytest.mark.unit


def finished(rank: int) -> RankLog:
    return RankLog(rank, heartbeat="step 9", done=True, exit=RankExit(rank, 0, 100.0))


def died(rank: int, code: int, at: float = 50.0, stderr: str = "", failure: RankFailure | None = None) -> RankLog:
    return RankLog(rank, heartbeat="step 3", exit=RankExit(rank, code, at), stderr_tail=stderr, failure=failure)


def says(message: str, at: float, kind: FailureKind = FailureKind.ERROR) -> RankFailure:
    return RankFailure(kind, message, at)


CLOSED = "RuntimeError: Connection closed by peer"
TRACEBACK = 'Traceback (most recent call last):\n  File "x.py", line 3, in f\n    g()\nValueError: upside\ndown\n'


def test_ok() -> None:
    assert judge([finished(0), finished(1)], Ending(oom_kills=0)) == (Outcome.OK, "")


@pytest.mark.parametrize("stopped", [Outcome.TIMEOUT, Outcome.HANG, None])
def test_a_rank_that_says_out_of_memory(stopped: Outcome | None) -> None:
    logs = [
        died(0, 1, 40.0, failure=says(CLOSED, 40.0)),
        died(1, 1, failure=says("asked for 8 GiB", 45.0, FailureKind.OOM)),
    ]
    assert judge(logs, Ending(stopped=stopped, limit_s=60)) == (Outcome.OOM, "rank 1: asked for 8 GiB")


def test_skipped() -> None:
    logs = [RankLog(0, skipped="needs 8 GPUs", exit=RankExit(0, 0, 1.0)), finished(1)]
    assert judge(logs, Ending()) == (Outcome.SKIPPED, "needs 8 GPUs")


def full(rank: int) -> RankLog:
    return RankLog(rank, done=True, exit=RankExit(rank, 0, 100.0), failure=says("full after 3", 40.0, FULL))


FULL = FailureKind.CACHE_FULL


def test_a_full_cache_is_an_end_of_its_own() -> None:
    assert judge([full(0), full(1)], Ending(oom_kills=0)) == (Outcome.CACHE_FULL, "full after 3")


def test_a_rank_that_broke_later_is_no_full_cache() -> None:
    logs = [full(0), died(1, 1, stderr="ValueError: upside", failure=says("full after 3", 40.0, FULL))]
    assert judge(logs, Ending()) == (Outcome.FAILED, "rank 1: exit status 1: ValueError: upside")
    logs[1] = RankLog(1, failure=says("full after 3", 40.0, FULL), exit=RankExit(1, 0, 100.0))
    assert judge(logs, Ending())[1] == "rank 1: ended without its last row (exit status 0)"
    logs[1] = died(1, 1, failure=says("broken", 45.0))
    assert judge(logs, Ending()) == (Outcome.FAILED, "rank 1: broken")


@pytest.mark.parametrize("code", [-9, 137])
@pytest.mark.parametrize(
    "kills, outcome, reason",
    [
        (1, Outcome.OOM, "rank 1: killed (signal 9): the kernel's out-of-memory killer acted during the run"),
        (None, Outcome.OOM, "rank 1: killed (signal 9): probably out of memory"),
        (0, Outcome.FAILED, "rank 1: killed (signal 9), and not by the kernel's out-of-memory killer"),
    ],
)
def test_killed(code: int, kills: int | None, outcome: Outcome, reason: str) -> None:
    # rank 0 meets the broken connection a moment before rank 1's guard is woken
    logs = [died(0, 1, 50.1, failure=says(CLOSED, 49.9)), died(1, code, at=50.0)]
    assert judge(logs, Ending(oom_kills=kills)) == (outcome, reason)


@pytest.mark.parametrize(
    "log, reason",
    [
        (died(1, 3, stderr="said\n"), "rank 1: exit status 3: said"),
        (died(1, 1, stderr=TRACEBACK), "rank 1: exit status 1: ValueError: upside"),
        (died(1, 1, stderr=TRACEBACK, failure=says("ValueError: upside\ndown", 49.0)), "rank 1: ValueError: upside"),
        (died(1, 1, stderr="x", failure=says(TRACEBACK, 49.0)), "rank 1: ValueError: upside"),
        (died(1, 1, failure=says("", 49.0)), "rank 1: failed without a word"),
        (died(1, 0, failure=says("gave up", 49.0)), "rank 1: gave up"),
        (died(1, -11), "rank 1: ended by signal 11 (SIGSEGV)"),
        (
            died(1, -6, stderr="terminate called: bad_alloc"),
            "rank 1: ended by signal 6 (SIGABRT): terminate called: bad_alloc",
        ),
        (died(1, -63), "rank 1: ended by signal 63"),
        (
            RankLog(1, done=True, exit=RankExit(1, -11, 50.0)),
            "rank 1: ended by signal 11 (SIGSEGV) after its last row",
        ),
    ],
)
def test_crashed(log: RankLog, reason: str) -> None:
    ended_for_it = died(0, -15, at=50.2, stderr="other words")
    assert judge([ended_for_it, log], Ending(oom_kills=0)) == (Outcome.FAILED, reason)


def test_the_first_failure_is_the_reason() -> None:
    logs = [died(rank, 1, at=60.0, failure=says(f"error {rank}", 50.0 - rank)) for rank in range(3)]
    assert judge(logs, Ending()) == (Outcome.FAILED, "rank 2: error 2")


def test_a_rank_that_torchrun_ended_is_not_the_reason() -> None:
    logs = [died(0, -15, at=50.1), died(1, 1, at=50.3, failure=RankFailure(FailureKind.ERROR, "broken"))]
    assert judge(logs, Ending()) == (Outcome.FAILED, "rank 1: broken")


def test_a_failed_rank_outweighs_the_limits() -> None:
    logs = [RankLog(0, heartbeat="step 3"), died(1, 1, failure=says("broken", 49.0))]
    assert judge(logs, Ending(stopped=Outcome.HANG, limit_s=5)) == (Outcome.FAILED, "rank 1: broken")


@pytest.mark.parametrize(
    "stopped, reason",
    [
        (Outcome.HANG, "no new row from any rank for 5 s; last: rank 0 'step 3', rank 1 was done"),
        (Outcome.TIMEOUT, "still running after 5 s; last: rank 0 'step 3', rank 1 was done"),
    ],
)
def test_stopped_by_a_limit(stopped: Outcome, reason: str) -> None:
    logs = [RankLog(0, heartbeat="step 3"), RankLog(1, heartbeat="step 9", done=True)]
    assert judge(logs, Ending(stopped=stopped, limit_s=5.0)) == (stopped, reason)


@pytest.mark.parametrize(
    "logs, silence",
    [
        (
            [RankLog(0, heartbeat="a", row_time=95.5), RankLog(1, heartbeat="b", row_time=94.0)],
            "; silent for longest: rank 1, 6.0 s",
        ),
        ([RankLog(0, heartbeat="a", row_time=95.0), RankLog(1)], "; rank 1 has written no row at all"),
        (
            [RankLog(0, heartbeat="a", row_time=90.0, done=True), RankLog(1, heartbeat="b", row_time=99.0)],
            "; silent for longest: rank 1, 1.0 s",
        ),
        ([RankLog(0, heartbeat="a", row_time=90.0, done=True)], ""),
    ],
)
def test_the_rank_that_was_silent_for_longest(logs: list[RankLog], silence: str) -> None:
    outcome, reason = judge(logs, Ending(stopped=Outcome.HANG, limit_s=5.0, time=100.0))
    assert outcome is Outcome.HANG
    last = ", ".join(f"rank {log.rank} {'was done' if log.done else repr(log.heartbeat)}" for log in logs)
    assert reason == f"no new row from any rank for 5 s; last: {last}{silence}"


def test_of_many_ranks_a_few_are_told_and_the_silent_one() -> None:
    logs = [RankLog(rank, heartbeat="step 3", row_time=90.0 + rank) for rank in range(64)]
    _, reason = judge(logs, Ending(stopped=Outcome.TIMEOUT, limit_s=60.0, time=200.0))
    assert reason.endswith("rank 7 'step 3', 56 more; silent for longest: rank 0, 110.0 s")


def test_a_machine_that_went_away_is_the_reason_for_what_its_peers_met() -> None:
    logs = [died(0, 1, failure=says(CLOSED, 40.0)), RankLog(1, heartbeat="step 3")]
    gone = "rank 1: node 1 (10.0.0.2) is gone (connection closed)"
    assert judge(logs, Ending(lost=(gone,))) == (Outcome.FAILED, gone)
    logs[0] = died(0, 1, failure=says("asked for 8 GiB", 39.0, FailureKind.OOM))
    assert judge(logs, Ending(lost=(gone,))) == (Outcome.OOM, "rank 0: asked for 8 GiB")


def test_no_rank_started() -> None:
    logs = [RankLog(0), RankLog(1)]
    assert judge(logs, Ending(launcher_line="RuntimeError: no rendezvous")) == (
        Outcome.FAILED,
        "no rank started: RuntimeError: no rendezvous",
    )
    assert judge(logs, Ending()) == (Outcome.FAILED, "no rank started: the launcher said nothing")


@pytest.mark.parametrize(
    "message",
    [
        "DistNetworkError: ... port: 29500, useIpv6: false, code: -98, name: EADDRINUSE",
        "RuntimeError: Address already in use",
    ],
)
def test_no_free_port(message: str) -> None:
    plain = "no free port: another program took it first (address already in use); run the case again"
    assert judge([RankLog(0)], Ending(launcher_line=message)) == (Outcome.FAILED, f"no rank started: {plain}")
    assert judge([died(0, 1, stderr=message)], Ending()) == (Outcome.FAILED, f"rank 0: exit status 1: {plain}")


def test_something_is_missing() -> None:
    vanished = RankLog(1, heartbeat="step 3")
    silent = RankLog(1, heartbeat="step 3", exit=RankExit(1, 0, 5.0))
    garbled = RankLog(1, done=True, exit=RankExit(1, 0, 5.0), fault="rank-1.jsonl: line 2: not a row")
    reasons = [judge([finished(0), log], Ending()) for log in (vanished, silent, garbled)]
    assert reasons == [
        (Outcome.FAILED, "rank 1: vanished without an exit status"),
        (Outcome.FAILED, "rank 1: ended without its last row (exit status 0)"),
        (Outcome.FAILED, "rank 1: wrote a row that cannot be read: rank-1.jsonl: line 2: not a row"),
    ]


def test_a_reason_is_one_short_printable_line() -> None:
    assert one_line("  a\x1b[31mb\tc\nsecond ") == "a [31mb c"
    assert one_line("") == ""
    long = one_line("x" * 1000)
    assert len(long) == 300
    assert long.endswith("xxx...")
    assert one_line(str(SpecError("layout.dp: 0"))) == "layout.dp: 0"
