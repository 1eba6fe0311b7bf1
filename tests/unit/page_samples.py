"""A page of every kind, small: whoever adds a kind of page adds its line to PAGES, and all tests of pages hold it."""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from reports.page import render_page
from reports.side_by_side.page import render_side_by_side
from reports.summary import compare_run
from run_all import main
from suite.environment import ROOT
from suite.files import write_whole
from suite.layout import Layout
from tests.unit import report_samples as made
from tests.unit.layout_samples import four, laid
from tests.unit.run_stores import ran, write_run

PUBLISHED = ROOT / "tests" / "published"
ONE, TWO = made.case(), made.case(layout=Layout(dp=2))
TEN = [1.00, 1.01, 0.99, 1.002, 0.998, 1.003, 0.997, 1.004, 0.996, 1.0]
_TINY = "--model gpt-1m --device a100-80gb-sxm --per-node 4 --seq-len 64"

_PLANNED = "--model gpt-1m --device a100-80gb-sxm --per-node 2 --seq-len 64 --global-batch 8 --best 5 --fixed"


def _run(folder: Path) -> Path:
    """Of the sample run those cases that did not end well, and some that did."""
    run = made.sample_run()
    few = tuple(each for place, each in enumerate(run.results) if place in (0, 4, 6, 9, 10, 12))
    return write_whole(folder / "run.html", render_page(compare_run(replace(run, results=few))))


def _said(folder: Path, name: str, *words: str) -> Path:
    """The page that a verb writes."""
    page = folder / f"{name}.html"
    assert main([*words, "--page", str(page)]) == 0, words
    return page


def _simulation(folder: Path) -> Path:
    words = f"simulate {_TINY} --dp 2 --pp 2 --micro-batches 4 --sweep gpus=4..8"
    run = "--steps 1000 --mtbf-hours 1000 --checkpoint-s 10 --restart-s 60"
    return _said(folder, "simulation", *words.split(), *run.split())


def _kv(folder: Path) -> Path:
    return _said(
        folder, "kv", "kv", "--model", "llama3-8b", "--device", "a100-80gb-sxm", "--compare", "mqa,int8,window=1024"
    )


def _validation(folder: Path) -> Path:
    """Caches whole, and of run times those that are a choice of layouts."""
    with (PUBLISHED / "throughput.csv").open(newline="", encoding="utf-8") as source:
        header, *lines = csv.reader(source)
    few = [line for line in lines if line[2] == "vtrain_multi"][:12]
    few += [line for line in lines if line[2] == "qwen"][:4]
    table = folder / "times.csv"
    with table.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *few])
    return _said(folder, "validation", "validate", str(PUBLISHED / "kv_cache.csv"), str(table))


def _pair(folder: Path) -> Path:
    first = write_run(folder / "runs", {ONE: [ran(ONE, TEN)], TWO: [ran(TWO, TEN)]})
    slower = [1.1 * seconds for seconds in TEN]
    other = write_run(folder / "runs", {ONE: [ran(ONE, slower)], TWO: [ran(TWO, TEN)]}, commit="b")
    return _said(folder, "pair", "compare", str(first), str(other))


def _strategies(folder: Path) -> Path:
    return write_whole(
        folder / "strategies.html", render_side_by_side(laid(*(choice.case.result for choice in four().choices)))
    )


def _history(folder: Path) -> Path:
    for day, factor in enumerate((1.0, 1.2, 1.0, 1.01)):
        steps = [factor * seconds for seconds in TEN]
        write_run(folder / "past", {ONE: [ran(ONE, steps)]}, "abcd"[day], f"2026-08-0{day + 1}T10:00:00+00:00")
    return _said(folder, "history", "report", "--history", str(folder / "past"))


def _plan(folder: Path) -> Path:
    return _said(folder, "plan", "plan", *_PLANNED.split(), "pp=1,micro_batch=4")


#: what the page is of -> makes it in a folder
PAGES: dict[str, Callable[[Path], Path]] = {
    "run": _run,
    "simulation": _simulation,
    "kv": _kv,
    "validation": _validation,
    "pair": _pair,
    "strategies": _strategies,
    "history": _history,
    "plan": _plan,
}
