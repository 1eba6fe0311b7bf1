"""`calibrate`: bad input is refused before anything is measured; what cases need is asked for beside their ranks."""

from __future__ import annotations

from pathlib import Path

import pytest

from reports.calibrate import items_by_crowd, needed_by, ranks_given
from run_all import main
from suite.case import case_from
from suite.environment import available_cores
from suite.hardware.operator_times import Crowd, Timed

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["--ranks", "two"], "--ranks: 'two' is not a number from 1 to 64"),
        (["--ranks", "1,0"], "--ranks: '0' is not a number"),
        (["--ranks", "7"], "--ranks: no case of the suites default and strategies has 7 ranks; try 1,2,4"),
        (["--out", "/no/such/folder/x.json"], "--out: '/no/such/folder' is no folder"),
    ],
)
def test_bad_input_is_one_line(given: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["calibrate", *given]) == 2
    said = capsys.readouterr().err
    assert words in said
    assert len(said.splitlines()) == 1


def test_a_folder_is_no_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["calibrate", "--out", str(tmp_path)]) == 2
    assert "is a folder; name a file" in capsys.readouterr().err


def test_ranks_are_read_once_each() -> None:
    assert ranks_given("4,1,4") == (1, 4)


def test_what_cases_need_is_measured_beside_as_many_ranks_as_they_have() -> None:
    cases = [case_from({"model": "llama-1m", "layout": layout}) for layout in ({}, {"dp": 2})]
    found = items_by_crowd(cases)
    cores = available_cores()
    assert set(found) == {Crowd.of(1, cores), Crowd.of(2, cores)}
    assert all(any(item.operator is Timed.ADAMW for item in items) for items in found.values())
    assert not needed_by(cases[:1]).exchanges
    assert {exchange.ranks for exchange in needed_by(cases).exchanges} == {2}
