"""The sbatch file: what it asks for, that bash can read it, and whose cases it carries."""

from __future__ import annotations

import json
import subprocess
from typing import Any

import pytest

from suite.case import Case, case_from
from suite.slurm import sbatch

pytestmark = pytest.mark.unit

COMMAND = ("python", "run all.py", "bench", "--case", "-")


def case_of(nodes: int = 1, fsdp: int = 2, device: str = "cpu", **model: Any) -> Case:
    cluster = {"nodes": nodes, "device": device}
    return case_from({"model": {"layers": 1, **model}, "layout": {"fsdp": fsdp}, "cluster": cluster})


def asked(text: str) -> dict[str, str]:
    """The #SBATCH options, by name."""
    options = [line.removeprefix("#SBATCH --") for line in text.splitlines() if line.startswith("#SBATCH")]
    return {name: value for name, _, value in (option.partition("=") for option in options)}


def test_it_asks_for_what_the_largest_case_takes() -> None:
    cases = [case_of(nodes=2, fsdp=16, device="h100-sxm"), case_of(nodes=3, fsdp=3, device="h100-sxm")]
    assert asked(sbatch(cases, COMMAND, timeout_s=900)) == {
        "job-name": "shardscope",
        "nodes": "3",
        "ntasks-per-node": "1",
        "gpus-per-node": "8",
        "exclusive": "",
        "time": "35",  # minutes: twice 15, and 5 to begin and to report
    }


def test_a_cpu_case_asks_for_no_gpus_and_one_machine_meets_nobody() -> None:
    text = sbatch([case_of()], COMMAND, timeout_s=1)
    assert asked(text)["nodes"] == "1"
    assert "gpus-per-node" not in asked(text)
    assert "--rdzv" not in text
    assert "scontrol" not in text
    assert asked(text)["time"] == "6"  # 301 seconds are more than five minutes


def test_bash_reads_it_and_srun_is_given_the_cases(tmp_path: Any) -> None:
    """A name that the shell could act upon stays text."""
    cases = [case_of(nodes=2, name="$(touch made) `touch made` 'CASES'\nCASES\n")]
    text = sbatch(cases, COMMAND, timeout_s=60)
    assert subprocess.run(["bash", "-n"], input=text, text=True, capture_output=True).stderr == ""
    stub = """
    scontrol() { echo "$*" > scontrol.txt; echo node7; echo node8; }
    srun() { printf '%s\\n' "$@" > srun.txt; cat > cases.json; }
    SLURM_JOB_ID=123456 SLURM_JOB_NODELIST='node[7-8]'
    """
    done = subprocess.run(["bash", "-c", stub + text], cwd=tmp_path, text=True, capture_output=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "scontrol.txt").read_text() == "show hostnames node[7-8]\n"
    assert (tmp_path / "srun.txt").read_text().splitlines() == [*COMMAND, "--rdzv", "node7:23456"]
    assert [case_from(case) for case in json.loads((tmp_path / "cases.json").read_text())] == cases
    assert {path.name for path in tmp_path.iterdir()} == {"scontrol.txt", "srun.txt", "cases.json"}
