"""The house rules: imports run downward, without cycles; files stay small; estimating and reporting need no torch."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.unit

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("suite", "parallelism", "memory", "reports")
MOST_LINES = 350
HEAVY = ("torch", "transformers", "tokenizers", "pandas", "matplotlib")


def python(code: str) -> str:
    """What a fresh interpreter at the root prints; its last words if it fails."""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def lint_imports(root: Path) -> subprocess.CompletedProcess[str]:
    """import-linter's word on the tree at `root`, by the contracts in its pyproject.toml."""
    command = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True))"
    return subprocess.run([sys.executable, "-c", command], cwd=root, capture_output=True, text=True, timeout=60)


# --- imports -------------------------------------------------------------------------------------------------


def test_contracts_are_kept() -> None:
    done = lint_imports(ROOT)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("planted", "broken"),
    [
        ({"suite/planted.py": "import parallelism.mesh"}, "imports run downward only"),
        ({"memory/planted.py": "def late() -> None:\n    import reports.text"}, "imports run downward only"),
        ({"reports/planted.py": "import run_all"}, "nothing imports the command line"),
        ({"suite/one.py": "import suite.two", "suite/two.py": "import suite.one"}, "no cycles"),
    ],
)
def test_contracts_would_be_broken(tmp_path: Path, planted: dict[str, str], broken: str) -> None:
    for name in (*ROOMS, "run_all.py", "pyproject.toml"):
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
        elif source.exists():
            shutil.copy(source, tmp_path)
    for name, text in planted.items():
        (tmp_path / name).write_text(text)
    done = lint_imports(tmp_path)
    assert done.returncode != 0
    assert f"{broken} BROKEN" in done.stdout


# --- sizes ---------------------------------------------------------------------------------------------------


def test_files_stay_small() -> None:
    files = [path for room in (*ROOMS, "tests") for path in (ROOT / room).rglob("*.py")] + list(ROOT.glob("*.py"))
    lines = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in files}
    assert len(lines) > 100
    assert not {name: count for name, count in lines.items() if count > MOST_LINES}


# --- what need not be loaded ---------------------------------------------------------------------------------


def loaded_after(code: str) -> set[str]:
    """Which of the heavy packages a fresh interpreter holds once it has run the code."""
    report = f"\nimport sys\nprint('loaded', *sorted(set(sys.modules) & set({HEAVY})))"
    return set(python(code + report).splitlines()[-1].split()[1:])


IMPORT_ALL = """
import importlib, pkgutil
for room in {rooms}:
    for found in pkgutil.walk_packages(importlib.import_module(room).__path__, room + "."):
        importlib.import_module(found.name)
"""


def test_the_packages_of_this_test_are_noticed() -> None:
    assert loaded_after("import torch") >= {"torch"}


def test_predicting_and_reporting_import_no_torch() -> None:
    assert "torch" not in loaded_after(IMPORT_ALL.format(rooms=("reports", "memory")))


def test_strategies_and_simulator_import_no_torch() -> None:
    """The estimators read a strategy's facts; its `apply` imports torch when a worker calls it."""
    code = "import parallelism.strategies, parallelism.mesh" + IMPORT_ALL.format(rooms=("parallelism.simulator",))
    assert "torch" not in loaded_after(code)


def test_asking_other_tools_imports_none_of_them() -> None:
    assert "torch" not in loaded_after("import parallelism.peers.asking")


def test_an_estimate_loads_nothing_heavy() -> None:
    code = """
from memory.estimate import MemoryModel, estimate_memory
from suite.case import case_from
case = case_from({"model": "llama3-8b", "layout": {"fsdp": 8}, "cluster": {"device": "h100-sxm"}})
assert estimate_memory(case).terms and MemoryModel(case).peak_bytes() > 0
"""
    assert not loaded_after(code)


@pytest.mark.parametrize(
    "arguments",
    [
        ["estimate", "--model", "llama3-8b", "--json"],
        ["estimate", "--model", "llama3-8b"],
        ["simulate", "--model", "llama-1m", "--device", "h100-sxm"],
        ["validate", "tests/published/memory.csv", "--json"],
        ["models"],
        ["--help"],
    ],
    ids=" ".join,
)
def test_the_command_line_loads_nothing_heavy(arguments: list[str]) -> None:
    code = f"""
import run_all
try:
    assert run_all.main({arguments}) == 0
except SystemExit as ended:
    assert not ended.code
"""
    assert not loaded_after(code)


def test_writing_a_report_loads_no_torch(tmp_path: Path) -> None:
    code = f"""
from pathlib import Path
from reports.export import write_report
from tests.unit.report_samples import sample_run
write_report(sample_run(), Path({str(tmp_path)!r}))
"""
    assert not loaded_after(code) & {"torch", "transformers", "tokenizers"}
    assert (tmp_path / "report.html").exists()
