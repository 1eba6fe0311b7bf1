"""`import --from snapshot|kineto`: what it prints and records, and what it refuses."""

from __future__ import annotations

import argparse
import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from memory.allocator_settings import AllocatorSettings
from memory.assessment import Assessment
from memory.estimate import MemoryModel
from reports.intake.measurements import add_measurement_flags, is_measurement, run_measurement
from reports.load import load_run
from reports.summary import compare_run
from suite import flags
from suite.hardware import device
from suite.parse import SpecError
from suite.record import Moment, Quantity
from tests.unit.snapshot_samples import MIB, block, event, freed, segment, snapshot
from tests.unit.test_intake_kineto import memory, span, steps, trace

pytestmark = pytest.mark.unit
CASE = ["--model", "gpt-1m", "--device", "a100-sxm-80gb", "--seq-len", "128", "--dp", "2"]
SNAPSHOT = snapshot(
    [segment([block(10 * MIB)], 40 * MIB)], [event("alloc", 0, 20 * MIB), *freed(0, 20 * MIB), event("alloc", 0, 512)]
)
SNAPSHOT["segments"][0]["blocks"].append(block(512))


def options(*arguments: str) -> argparse.Namespace:
    parser = flags.OneLineParser()
    parser.set_defaults(verb="import", program="python run_all.py", arguments=arguments)
    parser.add_argument("file")
    parser.add_argument("--from", dest="source")
    parser.add_argument("--json", action="store_true")
    add_measurement_flags(parser)
    flags.add_case_flags(parser)
    return argparse.ArgumentParser.parse_args(parser, arguments)


def written(folder: Path, data: Any, name: str = "rank1_snapshot.json") -> str:
    path = folder / name
    path.write_text(json.dumps(data))
    return str(path)


def said(capsys: pytest.CaptureFixture[str], *arguments: str, status: int = 0) -> dict[str, Any]:
    assert run_measurement(options(*CASE, *arguments, "--json")) == status
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    found: dict[str, Any] = json.loads(out)
    return found


def test_a_snapshot_stands_beside_the_estimate_of_its_rank(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = said(capsys, written(tmp_path, SNAPSHOT), "--from", "snapshot")
    case = flags.case_of(options("f", *CASE))
    model = MemoryModel(case)
    estimate = model.estimate(1)
    fate = Assessment(model, device("a100-sxm-80gb"), of_rank=1)
    assert found["peaks"] == [
        {
            "rank": 1,
            "predicted": {"bytes": estimate.peak_bytes, "moment": estimate.peak_moment.value},
            "measured": {"bytes": 30 * MIB, "moment": estimate.peak_moment.value},
            "error": pytest.approx(estimate.peak_bytes / (30 * MIB) - 1),
        }
    ]
    assert found["reserved"] == [
        {
            "rank": 1,
            "predicted_bytes": fate.reserved_bytes,
            "upper_bytes": fate.reserved_upper_bytes,
            "measured_bytes": 40 * MIB,
            "error": pytest.approx((fate.reserved_bytes or 0) / (40 * MIB) - 1),
            "below_upper": fate.reserved_upper_bytes >= 40 * MIB,
        }
    ]
    assert found["run"] is None
    assert found["step"] is None
    assert f"held against {estimate.peak_moment}" in found["notes"][0]


def test_the_allocator_s_settings_are_the_file_s(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    larger = ("--model", "gpt-1m", "--seq-len", "512", "--micro-batch", "5")
    growing = {**SNAPSHOT, "allocator_settings": {"expandable_segments": True, "max_split_size": -1}}
    case = flags.case_of(options("f", *CASE, *larger))
    for data, settings in ((SNAPSHOT, AllocatorSettings()), (growing, AllocatorSettings(expandable_segments=True))):
        found = said(capsys, written(tmp_path, data), *CASE, *larger)["reserved"][0]["predicted_bytes"]
        assert found == Assessment(MemoryModel(case), device("a100-sxm-80gb"), settings, 1).reserved_bytes
    assert found != Assessment(MemoryModel(case), device("a100-sxm-80gb"), of_rank=1).reserved_bytes


def test_traces_of_all_ranks_give_step_time_parts_and_peaks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for rank in (0, 1):
        kernels = [span("gemm", 1100, 500, "kernel"), span("ncclDevKernel_AllReduce", 1500, 300, "kernel")]
        events = [*steps(1000, 1100, 1200), *kernels, memory(50, 5 * MIB, reserved=8 * MIB)]
        with gzip.open(tmp_path / f"trace{rank}.json.gz", "wt") as file:
            json.dump(trace(*events, rank=rank, world=2), file)
    found = said(capsys, str(tmp_path), "--from", "kineto")
    assert found["step"]["measured_seconds"] == pytest.approx(1.1e-3)
    assert found["step"]["tokens_per_second"] == pytest.approx(2 * 128 / 1.1e-3)
    assert found["step"]["predicted_seconds"] > 0
    assert [row["rank"] for row in found["reserved"]] == [0, 1]
    assert {row["moment"] for row in found["rows"] if row["quantity"] == Quantity.MEMORY} == {Moment.LOSS}
    assert [part["part"] for part in found["parts"]] == ["compute", "exposed_communication", "exposed_copies", "idle"]
    assert [part["measured_seconds"] for part in found["parts"]] == pytest.approx([5e-4, 2e-4, 0.0, 4e-4])
    assert found["hidden_communication_seconds"] == pytest.approx(1e-4)
    spent = sum(part["predicted_seconds"] or 0.0 for part in found["parts"])
    assert spent == pytest.approx(found["step"]["predicted_seconds"])


def test_a_recorded_import_is_a_run_like_any_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    events = [*steps(1000, 1100, 1200), memory(50, 5 * MIB)]
    path = written(tmp_path, trace(*events, world=2), "trace.json")
    assert run_measurement(options(path, "--runs", str(tmp_path / "runs"), *CASE)) == 0
    assert "peak allocated" in capsys.readouterr().out
    (folder,) = (tmp_path / "runs").iterdir()
    (case,) = compare_run(load_run(folder)).cases
    assert case.is_ok
    assert case.speed.measured_seconds == pytest.approx(1.1e-3)
    assert case.peak.measured is not None
    assert case.peak.measured.bytes == 5 * MIB
    assert case.peak.predicted is not None
    assert (folder / "report.html").is_file()


def test_a_count_that_began_when_the_model_was_there_is_not_compared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    events = [*steps(100, 100), memory(20, 90 * MIB, kind=0), memory(30, 16, nbytes=-8, kind=0)]
    found = said(capsys, written(tmp_path, trace(*events, world=2)))
    assert found["peaks"] == []
    assert any("memory is not compared: the count began with the profiler" in note for note in found["notes"])


def test_running_out_of_memory_is_told_and_ends_with_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    oom = {"action": "oom", "device_free": MIB, "size": 4 * MIB, "stream": 0}
    data = snapshot([segment([block(1024)])], [event("alloc", 0, 1024), oom])
    found = said(capsys, written(tmp_path, data), status=1)
    assert (found["outcome"], found["peaks"][0]["measured"]["bytes"]) == ("oom", 1024)
    assert "OutOfMemoryError" in found["reason"]


@pytest.mark.parametrize(
    "data, name, flags_given, words",
    [
        (SNAPSHOT, "rank2.json", [], "FILE: is of rank 2, but the case has 2 (0 to 1); give the layout that was run"),
        (trace(*steps(1), world=4), "a.json", [], "FILE: is of a job of 4 ranks, but the case has 2"),
        (SNAPSHOT, "a.json", ["--from", "kineto"], "'a.json' is no trace that is known; try --from snapshot"),
        (trace(*steps(1)), "a.json", ["--from", "snapshot"], "no memory timeline that is known; try --from kineto"),
        ({"train_batch_size": 8}, "a.json", ["--from", "kineto"], "'a.json' is no trace that is known"),
        (SNAPSHOT, "a.json", ["--calibration", "/none"], "/none"),
        (SNAPSHOT, "a.json", ["--micro-batch", "0"], "micro_batch"),
    ],
)
def test_what_does_not_fit_the_case_is_refused_before_anything_is_written(
    data: Any, name: str, flags_given: list[str], words: str, tmp_path: Path
) -> None:
    runs = tmp_path / "runs"
    with pytest.raises(SpecError) as caught:
        run_measurement(options(written(tmp_path, data, name), "--runs", str(runs), *CASE, *flags_given))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not runs.exists()


@pytest.mark.parametrize(
    "content, expected",
    [
        (b"\x80\x04}.", True),
        (gzip.compress(b"{}", mtime=0), True),
        (b"<html>", True),
        (b'{"traceEvents": []}', True),
        (b' {"segments": []}', True),
        (b"[\n  [1], [[0]]]", True),
        (b'{"train_batch_size": 8, "zero_optimization": {}}', False),
        (b"--num-layers 2", False),
        (b"", False),
    ],
)
def test_measurements_are_told_from_configurations(content: bytes, expected: bool, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    assert is_measurement(str(path), None) is expected
    assert is_measurement(str(path), "kineto")
    assert not is_measurement(str(path), "deepspeed")
    assert is_measurement(str(tmp_path), None)
    assert not is_measurement(str(tmp_path / "none"), None)
