"""A page of every kind, from made-up results: what the tests of pages look at."""

from __future__ import annotations

import contextlib
import io
import random
from collections.abc import Callable
from pathlib import Path

from reports.compare import CaseResult
from reports.page import render_page
from reports.summary import compare_run
from run_all import main
from suite.layout import Layout
from suite.store import EstimateRow, MeasurementRow, RunRow, RunStore
from tests.unit import report_samples as made
from tests.unit.run_stores import ran, write_run

GPUS = ("--device", "h100-sxm")
TABLE = """row_id,quantity,value,model,tp,pp,cp,micro_batch,seq_len,recompute,attention,ambiguity,global_batch,gpus,world,split
a,memory_bytes,12.5,llama-10m,1,1,1,1,512,none,flash,,,1,1,eval
"""


def run(folder: Path) -> str:
    """A run with a case of every end."""
    return render_page(compare_run(made.sample_run()))


def simulation(folder: Path) -> str:
    """A pipeline of two stages, and a sweep over its size."""
    layout = ("--pp", "2", "--fsdp", "2", "--micro-batches", "4")
    return _written(folder, "simulate", "--model", "llama-1m", "--seq-len", "256", *GPUS, *layout, "--sweep", "gpus=4,8")


def served(folder: Path) -> str:
    """What a served model can hold, with choices beside it."""
    choices = ("--context", "2048", "--compare", "mqa,fp8,page=16")
    return _written(folder, "kv", "--model", "llama3-8b", *GPUS, *choices)


def pair(folder: Path) -> str:
    """Two runs, of which the second took longer in one case, and whose names mean harm."""
    one, other, hostile = made.case(), made.case(layout=Layout(dp=2)), made.hostile_case()
    sides = [
        write_run(folder, {one: [ran(one, _times(1))], other: [ran(other, _times(2))], hostile: [ran(hostile, _times(9))]}),
        write_run(
            folder,
            {one: [ran(one, _times(1.5))], other: [ran(other, _times(2))], hostile: [ran(hostile, _times(9))]},
            commit="b",
        ),
    ]
    return _written(folder, "compare", *map(str, sides))


def strategies(folder: Path) -> str:
    """Layouts of one run side by side."""
    return _written(folder, "compare", "--strategies", recorded(folder, *made.sample_run().results))


def history(folder: Path) -> str:
    """A case over three commits."""
    one, hostile = made.case(), made.hostile_case()
    for day, commit in enumerate("abc"):
        both = {one: [ran(one, _times(1 + day))], hostile: [ran(hostile, _times(1))]}
        write_run(folder / "runs", both, commit, f"2026-11-0{day + 1}T10:00:00+00:00")
    return _written(folder, "report", "--history", str(folder / "runs"), "--quantity", "step,memory")


MAKERS: dict[str, Callable[[Path], str]] = {
    "run": run,
    "simulation": simulation,
    "served": served,
    "pair": pair,
    "strategies": strategies,
    "history": history,
}


def recorded(folder: Path, *results: CaseResult) -> str:
    """Those results as a run's folder."""
    store = RunStore.create(folder)
    store.append(RunRow("2026-08-02T10:00:00+00:00", "tiny", tuple(each.case.to_mapping() for each in results)))
    for each in results:
        of = each.case.to_mapping()
        store.append(EstimateRow(each.case.case_id, of, each.memory, each.time, traffic=each.traffic))
        if each.measurement:
            store.append(MeasurementRow(of, each.measurement))
    return str(store.folder)


def _times(factor: float) -> list[float]:
    chance = random.Random(5)
    return [factor * (1 + 0.002 * chance.random()) for _ in range(10)]


def _written(folder: Path, *words: str) -> str:
    """The page that a verb writes."""
    path = folder / "page.html"
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as said:
        status = main([*words, "--page", str(path)])
    assert status == 0, said.getvalue()
    return path.read_text(encoding="utf-8")
