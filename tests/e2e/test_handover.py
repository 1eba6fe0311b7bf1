"""An exported launch script, really run."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from reports.handover.torchrun import torchrun_script
from suite.case import case_from
from suite.environment import ROOT
from suite.outcome import Ending, judge
from suite.ranklog import RankExit, read_rank
from suite.record import Outcome, Quantity
from tests.e2e.commands import variables

pytestmark = pytest.mark.e2e


def test_a_torchrun_script_trains_its_case_on_two_ranks(tmp_path: Path) -> None:
    case = case_from(
        {
            "model": "gpt-1m",
            "layout": {"dp": 2},
            "workload": {"seq_len": 16},
            "recipe": {"steps": 2, "tokenizer": "byte"},
        }
    )
    (tmp_path / "launch.sh").write_text(torchrun_script(case).text)
    (tmp_path / "torchrun").write_text(f'#!/bin/sh\nexec {sys.executable} -m torch.distributed.run "$@"\n')
    (tmp_path / "torchrun").chmod(0o755)
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "launch.sh"],
        cwd=tmp_path,
        env=variables(PATH=path, PYTHONPATH=str(ROOT), OUT="rows"),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    # torchrun's own status stands for its ranks': here is no guard that notes each
    logs = [replace(read_rank(tmp_path / "rows", rank), exit=RankExit(rank, done.returncode, 0.0)) for rank in (0, 1)]
    assert judge(logs, Ending()) == (Outcome.OK, "")
    for log in logs:
        assert sum(sample.quantity is Quantity.STEP_TIME for sample in log.samples) == 2
    losses = [sample.value for sample in logs[0].samples if sample.quantity is Quantity.LOSS]
    assert len(losses) == 2
    assert losses[0] == pytest.approx(math.log(2048), rel=0.05)  # an untrained model's guess over its vocabulary
