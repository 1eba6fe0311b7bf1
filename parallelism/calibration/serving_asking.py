"""Measures what a served model's passes are made of, in a process for each number of ranks at once. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from parallelism.calibration.asking import OperatorTimeError
from parallelism.simulator.cpu_operators import Use
from parallelism.simulator.serving_cpu import Pass
from suite.case import Case
from suite.hardware.calibration import Machine
from suite.hardware.operator_times import Crowd, Format, OperatorTime
from suite.hardware.serving_times import CachedCore, CoreTime
from suite.launch import rank_variables
from suite.parse import require
from suite.stats import Summary, summarize

WORKER = "parallelism.calibration.serving_worker"
START_ALLOWANCE_S, SLOWNESS_ALLOWANCE = 90.0, 20.0
#: blocks of a pass that are timed: of a prompt, which computes, few; of single tokens, which read weights, as many as
#: the models for a few cores have
PROMPT_BLOCKS, TOKEN_BLOCKS = 2, 16


@dataclass(frozen=True)
class Found:
    """What one crowd was measured to take."""

    machine: Machine
    served: tuple[OperatorTime, ...]
    cores: tuple[CoreTime, ...]
    overheads: dict[str, float]


def measure_serving(crowd: Crowd, passes: Sequence[Pass], cases: Mapping[CachedCore, Case], seconds: float) -> Found:
    """Times of these passes' operators and cores with so many ranks at once, in about so many seconds: at least a few
    rounds of all.

    Raises SpecError for bad arguments, OperatorTimeError (one line) where the measuring process fails or hangs.
    """
    from suite.child import ChildError, ask  # here, because looking a time up does not need it

    require(0 < seconds < 3600, f"seconds: must be above 0 and below 3600, got {seconds}")
    request = {
        "ranks": crowd.ranks,
        "threads": crowd.threads,
        "seconds": seconds,
        "passes": [_row(done, cases[done.core]) for done in passes],
    }
    try:
        answer = ask(WORKER, request, START_ALLOWANCE_S + SLOWNESS_ALLOWANCE * seconds, rank_variables(crowd.threads))
    except ChildError as error:
        raise OperatorTimeError(f"serving: the measuring process: {error}") from None
    machine = Machine(*(answer[name] for name in ("cpu", "cores", "torch", "wait_policy", "other_cores")))
    served = tuple(_operator(crowd, row) for row in answer["operators"])
    times = {done.core: _core(crowd, done.core, row) for done, row in zip(passes, answer["attention"], strict=True)}
    return Found(
        machine, served, tuple(times.values()), {str(name): float(value) for name, value in answer["overheads"].items()}
    )


def _row(done: Pass, case: Case) -> dict[str, Any]:
    """What the worker is told of a pass; a prompt's, which computes, is timed in few of its blocks."""
    return {
        "format": done.core.format.value,
        "ends": [_plain(use) for use in done.ends],
        "before": [_plain(use) for use in done.before],
        "after": [_plain(use) for use in done.after],
        "blocks": min(done.blocks, PROMPT_BLOCKS if done.core.queries > 1 else TOKEN_BLOCKS),
        "case": case.to_mapping(),
        "queries": done.core.queries,
        "entries": done.core.entries,
    }


def _plain(use: Use) -> list[Any]:
    return [use.operator.value, list(use.shape)]


def _operator(crowd: Crowd, row: Mapping[str, Any]) -> OperatorTime:
    found = _summary(row["seconds"])
    return OperatorTime(
        row["operator"], tuple(row["shape"]), Format(row["format"]), crowd.ranks, crowd.threads,
        found.median, 0.0, 0.0, found.iqr, found.count,
    )  # fmt: skip


def _core(crowd: Crowd, core: CachedCore, row: Mapping[str, Sequence[float]]) -> CoreTime:
    layer, once = _summary(row["layer"]), _summary(row["once"])
    return CoreTime(core, crowd.ranks, crowd.threads, layer.median, once.median, layer.iqr, layer.count)


def _summary(readings: Sequence[float]) -> Summary:
    summary = summarize(readings)
    assert summary is not None  # the worker takes several readings of each
    return summary
