"""What a rank writes is what the launcher reads, up to the byte at which the rank was killed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from suite.ranklog import FailureKind, RankExit, RankWriter, last_line, read_rank, rows_path
from suite.record import Component, Moment, Quantity, Sample

pytestmark = pytest.mark.unit

SAMPLE = Sample(Quantity.MEMORY, 3.5, 1, 2, Component.LOSS, Moment.LOSS)
BARE = Sample(Quantity.STEP_TIME, 0.25, 1)


def test_a_rank_that_said_nothing(tmp_path: Path) -> None:
    log = read_rank(tmp_path, 3)
    assert (log.rank, log.samples, log.heartbeat, log.environment) == (3, (), "", {})
    assert (log.failure, log.skipped, log.exit) == (None, None, None)
    assert (log.done, log.stderr_tail, log.fault, log.row_time) == (False, "", "", 0.0)


def test_rows_are_read_while_the_rank_still_writes(tmp_path: Path) -> None:
    writer = RankWriter(tmp_path, 1)
    writer.environment({"device": "cpu", "threads": 1})
    writer.heartbeat("step 0")
    writer.sample(SAMPLE)
    writer.heartbeat("step 1")
    writer.sample(BARE)
    log = read_rank(tmp_path, 1)  # nothing was closed: every row is flushed
    assert log.samples == (SAMPLE, BARE)
    assert log.heartbeat == "step 1"
    assert log.row_time == rows_path(tmp_path, 1).stat().st_mtime > 1.7e9
    assert log.environment == {"device": "cpu", "threads": 1}
    assert not log.done
    writer.done()
    writer.close()
    assert read_rank(tmp_path, 1).done


def test_the_first_failure_is_kept(tmp_path: Path) -> None:
    writer = RankWriter(tmp_path, 0)
    writer.failure(FailureKind.OOM, "first")
    writer.failure(FailureKind.ERROR, "second")
    writer.skipped("no such device")
    log = read_rank(tmp_path, 0)
    assert log.failure is not None
    assert (log.failure.kind, log.failure.message) == (FailureKind.OOM, "first")
    assert log.failure.time > 1.7e9
    assert log.skipped == "no such device"


def test_a_failure_without_its_time(tmp_path: Path) -> None:
    rows_path(tmp_path, 0).write_text('{"failure": {"kind": "error", "message": "m"}}\n')
    failure = read_rank(tmp_path, 0).failure
    assert failure is not None
    assert (failure.kind, failure.message, failure.time) == (FailureKind.ERROR, "m", 0.0)


def test_a_torn_last_row_is_passed_over(tmp_path: Path) -> None:
    RankWriter(tmp_path, 1).sample(SAMPLE)
    path = rows_path(tmp_path, 1)
    whole = path.read_bytes()
    for kept in range(len(whole)):
        path.write_bytes(whole + whole[:kept])
        log = read_rank(tmp_path, 1)
        assert (log.samples, log.fault) == ((SAMPLE,), ""), kept


@pytest.mark.parametrize(
    "line, fault",
    [
        ("{", "rank-1.jsonl: line 2: not a row: b'{'"),
        ('{"note": 1}', "rank-1.jsonl: line 2: expected one of sample, heartbeat, environment, failure, skipped, done"),
        ('{"sample": {"quantity": "x"}}', "rank-1.jsonl: line 2: sample.rank: missing; it has no default"),
        ('{"heartbeat": 3}', "rank-1.jsonl: line 2: heartbeat: expected text, got 3"),
    ],
)
def test_a_bad_row_is_told_and_the_rest_is_kept(tmp_path: Path, line: str, fault: str) -> None:
    writer = RankWriter(tmp_path, 1)
    writer.sample(SAMPLE)
    with rows_path(tmp_path, 1).open("a") as file:
        file.write(line + "\n")
    writer.sample(BARE)
    log = read_rank(tmp_path, 1)
    assert log.samples == (SAMPLE, BARE)
    assert log.fault.startswith(fault)


def test_the_exit_and_the_last_words(tmp_path: Path) -> None:
    (tmp_path / "exit-1.json").write_text(json.dumps({"rank": 1, "code": -9, "time": 5.5}))
    folder = tmp_path / "logs" / "some-run" / "attempt_0" / "1"
    folder.mkdir(parents=True)
    (folder / "stderr.log").write_bytes(b"".join(b"line %d\n" % number for number in range(50)) + b"\xff\n")
    log = read_rank(tmp_path, 1)
    assert log.exit == RankExit(1, -9, 5.5)
    assert log.stderr_tail.splitlines() == [*(f"line {number}" for number in range(31, 50)), "\ufffd"]


def test_an_exit_that_is_torn(tmp_path: Path) -> None:
    (tmp_path / "exit-1.json").write_text('{"rank": 1, "co')
    assert read_rank(tmp_path, 1).exit is None


@pytest.mark.parametrize(
    "text, line",
    [
        ("", ""),
        ("one\ntwo\n\n", "two"),
        ("said\n=======\n", "said"),
        ("said\n[W1122 01:02:03.4 reducer.cpp:88] Warning: slow", "said"),
        (
            "W1122 01:02:03.4 12 api.py:1028] Sending process 7 closing signal",
            "W1122 01:02:03.4 12 api.py:1028] Sending process 7 closing signal",
        ),
        (
            'Traceback (most recent call last):\n  File "x.py", line 1\n    f()\nKeyError: 1\n\nDuring handling of'
            ' the above exception, another exception occurred:\n\nTraceback (most recent call last):\n  File "x.py"\n'
            "    g()\nValueError: the weights\nare upside down",
            "ValueError: the weights",
        ),
        ("[rank1]: Traceback (most recent call last):\n[rank1]:   File 'x'\n[rank1]: OSError: gone", "OSError: gone"),
    ],
)
def test_the_line_that_says_what_went_wrong(text: str, line: str) -> None:
    assert last_line(text) == line
