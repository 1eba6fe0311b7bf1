"""`import` from the command line, with what is no configuration: a pickled snapshot, a config.json, nonsense."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest

from run_all import main
from tests.unit.hf_samples import FILES, write
from tests.unit.test_intake_measurements import CASE, MIB, SNAPSHOT

pytestmark = pytest.mark.unit


def test_a_pickled_snapshot_is_told_by_its_content(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "dump_snapshot.pickle"
    path.write_bytes(pickle.dumps(SNAPSHOT))
    assert main(["import", str(path), "--json", *CASE]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["peaks"][0]["measured"]["bytes"] == 30 * MIB
    assert "note: dump_snapshot.pickle does not say its rank: taken as rank 0" in captured.err


def test_a_config_json_becomes_a_case(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["import", write(tmp_path, FILES["llama"] | {"mup": 3}), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["source"], found["case"]["model"]["hidden"]) == ("hf", 48)
    assert found["unmodelled"] == ["'mup' 3: not known, so what it changes is not modelled"]


@pytest.mark.parametrize(
    "flags, words",
    [
        (["--runs", "x"], "--runs: FILE is a configuration, not a measurement; leave it out"),
        (["--from", "kinetto"], "--from: 'kinetto' is not known; did you mean kineto?"),
        (["--from", "snapshot", "--model", "gpt-1m"], "is no snapshot and no memory timeline that is known"),
        (["--from", "kineto", "--out", "x", "--model", "gpt-1m"], "--out: FILE is a measurement, not a case"),
    ],
)
def test_nonsense_is_one_line_and_2(
    flags: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["import", write(tmp_path, FILES["llama"]), *flags]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert words in captured.err
    assert captured.err.count("\n") == 1
