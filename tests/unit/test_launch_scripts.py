"""The scripts that start a case's ranks: what bash and stubs of torchrun, srun and scontrol make of them."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from reports.handover.ranks import grid_lines
from reports.handover.slurm import slurm
from reports.handover.torchrun import torchrun_script
from suite.case import Case, case_from
from suite.layout import AXES, Layout
from tests.unit.test_slurm import asked

pytestmark = pytest.mark.unit

#: a stub prints its words, and what the ranks would be told
SAYS = (
    '#!/bin/bash\nprintf \'%s\\n\' "${0##*/}" "$@"\n'
    'for name in OMP_NUM_THREADS PYTORCH_ALLOC_CONF MALLOC_MMAP_MAX_; do echo "$name=${!name-}"; done\n'
)
NAME = "$(touch made) `touch made`\ntouch made\nCASE\n'"


def case_of(nodes: int = 1, device: str = "h100-sxm", **layout: Any) -> Case:
    model = {"layers": 1, "heads": 4, "hidden": 64, "name": NAME}
    return case_from({"model": model, "layout": layout, "cluster": {"nodes": nodes, "device": device}})


def said(text: str, folder: Path, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """What a script does in an empty folder where torchrun, srun and scontrol are stubs."""
    assert subprocess.run(["bash", "-n"], input=text, text=True, capture_output=True).stderr == ""
    stubs = folder / "stubs"
    stubs.mkdir()
    for name, content in {
        "torchrun": SAYS,
        "srun": '#!/bin/bash\nexec "$@"\n',
        "shardscope": "#!/bin/bash\ncat > cases.json\n",
        "scontrol": "#!/bin/bash\necho node7; echo node8\n",
        "nproc": "#!/bin/bash\necho 24\n",
    }.items():
        (stubs / name).write_text(content)
        (stubs / name).chmod(0o755)
    (folder / "job").write_text(text)
    kept = {"PATH": f"{stubs}{os.pathsep}{os.environ['PATH']}", **variables}
    done = subprocess.run(["bash", folder / "job", *words], cwd=folder, env=kept, text=True, capture_output=True)
    assert not (folder / "made").exists()
    return done


def test_one_machines_ranks_run_the_users_program(tmp_path: Path) -> None:
    done = said(torchrun_script(case_of(fsdp=4, tp=2)).text, tmp_path, "train.py", "--a b")
    assert done.stdout.splitlines() == [
        *("torchrun", "--standalone", "--local-addr", "127.0.0.1", "--nproc-per-node", "8", "train.py", "--a b"),
        *("OMP_NUM_THREADS=3", "PYTORCH_ALLOC_CONF=expandable_segments:True", "MALLOC_MMAP_MAX_="),
    ]


def test_several_machines_meet_at_the_head(tmp_path: Path) -> None:
    case = case_of(nodes=2, fsdp=16)
    text = torchrun_script(case).text
    done = said(text, tmp_path, "train.py", HEAD="node7", OMP_NUM_THREADS="5")
    assert done.stdout.splitlines()[:-2] == [
        *("torchrun", "--nnodes", "2", "--nproc-per-node", "8", "--rdzv-id", case.case_id),
        *("--rdzv-backend", "c10d", "--rdzv-endpoint", "node7:29500", "train.py", "OMP_NUM_THREADS=5"),
    ]
    missing = subprocess.run(["bash", "-c", text], capture_output=True, text=True, env={"PATH": os.environ["PATH"]})
    assert missing.returncode != 0
    assert "HEAD: give the name or address of the first machine" in missing.stderr


def test_without_a_program_the_worker_is_given_the_case(tmp_path: Path) -> None:
    """Rows of an earlier run there are not taken for this one's."""
    case = case_of(device="cpu", dp=2)
    folder = tmp_path / "an out"
    folder.mkdir()
    (folder / "rank-0.jsonl").write_text("old")
    done = said(torchrun_script(case).text, tmp_path, OUT="an out")
    words = done.stdout.splitlines()
    assert words[6:] == [
        *("-m", "parallelism.worker", "an out/case.json", "--out", "an out"),
        *("OMP_NUM_THREADS=12", "PYTORCH_ALLOC_CONF=", "MALLOC_MMAP_MAX_=0"),
    ]
    assert [path.name for path in folder.iterdir()] == ["case.json"]
    assert case_from(json.loads((folder / "case.json").read_text())) == case


def test_a_batch_script_asks_for_the_cases_machines(tmp_path: Path) -> None:
    made = slurm(case_of(nodes=2, fsdp=8, tp=2))
    assert asked(made.text) == {
        "job-name": "shardscope",
        "nodes": "2",
        "ntasks-per-node": "1",
        "gpus-per-node": "8",
        "exclusive": "",
        "time": "20",  # minutes: bench's fifteen, and five to begin and to report
    }
    head = made.text[: made.text.index("set -euo")]
    assert "##SBATCH --partition=" in head
    assert "##SBATCH --account=" in head
    done = said(made.text, tmp_path, "train.py", SLURM_JOB_ID="123456", SLURM_JOB_NODELIST="node[7-8]")
    assert done.stdout.splitlines()[:-2] == [
        *("torchrun", "--nnodes", "2", "--nproc-per-node", "8", "--rdzv-id", "123456"),
        *("--rdzv-backend", "c10d", "--rdzv-endpoint", "node7:23456", "train.py", "OMP_NUM_THREADS=3"),
    ]


def test_a_batch_script_without_a_program_measures(tmp_path: Path) -> None:
    case = case_of(fsdp=2)
    done = said(slurm(case).text, tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert [case_from(item) for item in json.loads((tmp_path / "cases.json").read_text())] == [case]


def test_the_grid_names_the_ranks_that_share_an_axis() -> None:
    """Each line's ranks differ on its axis alone, as the layout places them."""
    layout = Layout(pp=2, dp=2, fsdp=3, cp=5, tp=2)
    first, *lines = grid_lines(layout)
    assert first == "rank grid, outermost first: pp 2 x dp 2 x fsdp 3 x ep 1 x cp 5 x tp 2"
    assert lines[3] == "  cp: rank 0's group is 0, 2, 4, ..., 8"
    for line, axis in zip(lines, (axis for axis in AXES if axis != "ep"), strict=True):
        assert line.startswith(f"  {axis}: ")
        ranks = [int(word) for word in re.findall(r"\d+", line.split(" is ")[1])]
        assert ranks[0] == 0
        assert layout.place(axis, ranks[-1]) == getattr(layout, axis) - 1
        assert all(layout.place(other, rank) == 0 for rank in ranks for other in AXES if other != axis)


def test_what_is_left_to_the_program_is_said() -> None:
    for made in (torchrun_script(case_of(fsdp=4, tp=2)), slurm(case_of(fsdp=4, tp=2))):
        [line] = made.unsaid
        assert line.startswith("layout(fsdp(4) * tp(2)), workload, recipe: only ranks are started; ")
        assert f"# - {line}\n" in made.text
