"""The verb `simulate`: its text, its document, its files, and one line for what it cannot do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from reports.trace_events import TRACE_LIMIT
from run_all import main

pytestmark = pytest.mark.unit

CASE = ["--model", "llama-1m", "--device", "h100-sxm", "--seq-len", "256"]
PIPELINE = [*CASE, "--pp", "2", "--fsdp", "2", "--micro-batches", "4"]


def document(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert main(["simulate", *arguments, "--json"]) == 0
    said = json.loads(capsys.readouterr().out, parse_constant=lambda word: pytest.fail(word))
    assert isinstance(said, dict)
    return said


def test_the_document(capsys: pytest.CaptureFixture[str]) -> None:
    said = document(capsys, *PIPELINE)
    time = said["time"]
    assert sum(time["parts"].values()) == pytest.approx(time["step_seconds"])
    assert time["tokens_per_second"] == pytest.approx(256 * 4 * 2 / time["step_seconds"])
    assert time["mfu"] < time["mfu_full_attention"]
    assert time["mfu"] == time["hfu"]
    assert time["basis"].startswith("NVIDIA H100")
    gains = [each["gain"] for each in said["sensitivities"]]
    assert gains == sorted(gains, reverse=True)
    assert {"matrix rate", "memory bandwidth", "nvlink bandwidth", "micro-batches a step"} <= {
        each["resource"] for each in said["sensitivities"]
    }
    assert {row["stage"] for row in said["terms"]} == {0, 1}
    assert said["memory"]["verdict"] == "fits"
    assert (said["world_size"], said["global_batch"]) == (4, 8)


def test_compiled_kernels_are_quicker(capsys: pytest.CaptureFixture[str]) -> None:
    eager, compiled = (document(capsys, *CASE, "--execution", mode) for mode in ("eager", "compiled"))
    assert compiled["time"]["step_seconds"] < eager["time"]["step_seconds"]
    assert eager["time"]["parts"]["host"] > 0  # a small model waits for its host


def test_a_person_is_told_what_bounds_the_step(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["simulate", *PIPELINE]) == 0
    said = capsys.readouterr().out
    for words in ("Bottleneck: ", "What more would buy", "matrix rate", "PaLM", "tokens/s", "basis: NVIDIA H100"):
        assert words in said
    assert "beware" not in said


def test_a_case_that_does_not_fit_is_timed_with_a_warning(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["simulate", "--model", "llama3-8b", "--device", "h100-sxm"]) == 0
    assert "beware: the case does not fit: peak" in capsys.readouterr().out


def test_files_are_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trace, page = tmp_path / "t.json", tmp_path / "p.html"
    assert main(["simulate", *PIPELINE, "--trace", str(trace), "--page", str(page), "--sweep", "gpus=4,8"]) == 0
    assert json.loads(trace.read_text())["otherData"]["case"].startswith("llama-1m pp2-1f1b+fsdp2")
    text = page.read_text()
    assert 'class="pipeline"' in text
    assert 'id="scaling-title"' in text
    said = capsys.readouterr()
    assert f"wrote {trace}" in said.err
    assert "Added GPUs go to fsdp" in said.out


def test_a_sweep_alone(capsys: pytest.CaptureFixture[str]) -> None:
    said = document(capsys, *CASE, "--sweep", "gpus=1..4", "--micro-batches", "2")
    assert set(said) == {"case_id", "case", "world_size", "global_batch", "sweep"}
    strong = [point for point in said["sweep"]["points"] if point["scaling"] == "strong"]
    assert [point["global_batch"] for point in strong] == [2, 2, None]
    assert said["sweep"]["grows"] == "dp"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--sweep", "depth=1..2"], "--sweep: 'depth' is not known"),
        (["--sweep", "gpus=7..7", "--tp", "2"], "--sweep: nothing runs at any gpus; at 7: gpus: 7 is not a multiple"),
        (["--execution", "jit"], "--execution: 'jit' is not known; known: eager, compiled"),
        (["--grow", "dp"], "--grow: says nothing without --sweep"),
        (["--trace-limit", "5"], "--trace-limit: says nothing without --trace"),
        (["--trace", "FILE", "--trace-limit", "1"], "tasks are beyond --trace-limit(1)"),
        (["--trace-limit", "0", "--trace", "FILE"], "--trace-limit: '0' is not a whole number above zero"),
        (["--trace", "FOLDER/t.json"], "No such file or directory"),
        (["--page", "FOLDER/p.html"], "No such file or directory"),
        (["--pp", "2", "--schedule", "zbv"], "virtual_stages"),
        (["--offload", "parameters", "--fsdp", "2"], "layout.offload: parameters has no time yet"),
    ],
)
def test_bad_input_is_one_line(
    arguments: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = {"FILE": str(tmp_path / "t.json"), "FOLDER/t.json": str(tmp_path / "no" / "t.json")}
    places["FOLDER/p.html"] = str(tmp_path / "no" / "p.html")
    assert main(["simulate", *CASE, *(places.get(word, word) for word in arguments)]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.count("\n") == 1
    assert said in told.err
    assert not list(tmp_path.iterdir())


def test_the_help_names_the_limit(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["simulate", "--help"])
    assert f"[{TRACE_LIMIT}]" in capsys.readouterr().out
