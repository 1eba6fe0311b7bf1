"""The speed suite as it is started: rows that can be read back, one line for bad input."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from parallelism.speed_report import BY_HAND, FUSED, OURS, REFERENCE, SpeedReport, lines
from suite.parse import from_mapping, to_mapping

ROOT = Path(__file__).resolve().parents[2]
SMALL = ("--rounds", "2", "--model-scale", "1m", "--seq-len", "8", "--micro-batch", "1")


def speed(*arguments: str, without: str = "") -> subprocess.CompletedProcess[str]:
    """`python -m parallelism.speed`, on one thread: small steps need no more. `without` hides a package."""
    code = (
        f"import runpy, sys; sys.modules.update({{name: None for name in {without.split()}}});"
        "runpy.run_module('parallelism.speed', run_name='__main__')"
    )
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True, check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip


@pytest.mark.e2e
def test_the_rows_come_as_one_document_and_read_back() -> None:
    done = speed("--json", *SMALL)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    report = from_mapping(SpeedReport, document, "speed")
    assert to_mapping(report) == document
    assert [(row.model, row.precision.value) for row in report.races] == [
        ("gpt-1m", "fp32"),
        ("gpt-1m", "bf16-mixed"),
        ("llama-1m", "fp32"),
        ("llama-1m", "bf16-mixed"),
    ]
    for row in report.races:
        others = {REFERENCE, BY_HAND} | ({FUSED} if row.model.startswith("gpt") else set())
        assert set(row.ratios) == others
        assert set(row.seconds) == others | {OURS}
        assert {len(seconds) for seconds in row.seconds.values()} == {2}
        assert max(row.losses.values()) - min(row.losses.values()) <= 1e-2
    assert set(report.overhead.fraction) == {f"{row.model} {row.precision.value} flash" for row in report.races}
    assert len(lines(report)) == 3 + 3 + 2 + 2 + 1


@pytest.mark.e2e
@pytest.mark.parametrize(
    "arguments, words",
    [
        (("--rounds", "0"), "rounds: must be at least 1, got 0"),
        (("--seq-len", "0"), "workload.seq_len: must be at least 1, got 0"),
        (
            ("--seq-len", "4096", "--model-scale", "1m"),
            "workload.seq_len: 4096 is beyond the model's max_positions(1024)",
        ),
    ],
)
def test_bad_input_is_one_line_and_status_2(arguments: tuple[str, ...], words: str) -> None:
    done = speed(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert words in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.e2e
def test_without_transformers_it_says_what_to_install() -> None:
    done = speed(*SMALL, without="transformers")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "transformers: not installed, and the model asked for is its own; pip install 'shardscope[test]'\n"
    )
