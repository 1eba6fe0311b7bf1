"""What is written down of the machine: enough to compare two runs, nothing that names a person or a host."""

from __future__ import annotations

import getpass
import json
import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from suite.environment import ROOT, available_cores, environment, git_state, oom_kills, package_version

pytestmark = pytest.mark.unit


def test_the_facts() -> None:
    facts = environment()
    assert json.loads(json.dumps(facts)) == facts
    assert facts["python"] == platform.python_version()
    assert facts["packages"]["torch"] == metadata.version("torch")
    assert facts["cores"] == len(os.sched_getaffinity(0)) == available_cores()
    assert facts["memory_bytes"] > 2**28
    assert facts["time"].endswith("+00:00")
    assert facts["cpu"]


def test_no_host_and_no_user(tmp_path: Path) -> None:
    words = json.dumps({**environment(tmp_path), "platform": ""}).split('"')
    assert platform.node() not in words
    assert getpass.getuser() not in words


def test_torch_is_named_without_being_imported() -> None:
    code = "import sys, suite.environment as e; e.environment(); print('torch' in sys.modules)"
    output = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert output.strip() == "False"


def test_a_package_that_is_not_there() -> None:
    assert package_version("no-such-package-here") is None


def test_the_commit_and_whether_files_differ(tmp_path: Path) -> None:
    git = ["git", "-C", str(tmp_path), "-c", "user.name=x", "-c", "user.email=x@example.org"]
    subprocess.run([*git, "init", "-q"], check=True)
    (tmp_path / "a").write_text("1")
    subprocess.run([*git, "add", "a"], check=True)
    subprocess.run([*git, "commit", "-qm", "one"], check=True)
    commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    assert git_state(tmp_path) == {"commit": commit, "dirty": False}
    (tmp_path / "a").write_text("2")
    assert git_state(tmp_path) == {"commit": commit, "dirty": True}
    (tmp_path / "inside").mkdir()
    assert git_state(tmp_path / "inside") is None


def test_the_kernel_counts_what_it_kills() -> None:
    kills = oom_kills()
    assert kills is None or kills >= 0
