"""Measures what a served model's passes are made of, in a process for each number of ranks at once. Torch-free."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from parallelism.calibration.asking import OperatorTimeError
from parallelism.simulator.cpu_operators import Use
from parallelism.simulator.serving_cpu import Pass
from suite.case import Case
from suite.hardware.calibration import Machine
from suite.hardware.operator_times import Crowd, Format, OperatorTime
from suite.hardware.serving_times import SERVED_CALL, CachedCore, CoreTime
from suite.launch import rank_variables
from suite.parse import require
from suite.stats import Summary, summarize

WORKER = "parallelism.calibration.serving_worker"
START_ALLOWANCE_S, SLOWNESS_ALLOWANCE = 90.0, 20.0
#: blocks of a pass whose operators are timed: of a prompt, which computes, few; of single tokens, which read, all of
#: whose weights fit in so many bytes
PROMPT_BLOCKS, WEIGHT_BYTES = 2, 2**29


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
    cores = sorted({done.core for done in passes}, key=str)
    request = {
        "ranks": crowd.ranks,
        "threads": crowd.threads,
        "seconds": seconds,
        "passes": _runs(passes),
        "cores": [{"case": cases[core].to_mapping(), "queries": core.queries} for core in cores],
    }
    try:
        answer = ask(WORKER, request, START_ALLOWANCE_S + SLOWNESS_ALLOWANCE * seconds, rank_variables(crowd.threads))
    except ChildError as error:
        raise OperatorTimeError(f"serving: the measuring process: {error}") from None
    machine = Machine(*(answer[name] for name in ("cpu", "cores", "torch", "wait_policy", "other_cores")))
    served = tuple(_operator(crowd, row) for row in answer["operators"])
    times = tuple(_core(crowd, core, row) for core, row in zip(cores, answer["attention"], strict=True))
    return Found(machine, served, times, {SERVED_CALL: _summary(answer["call"]).median})


def _runs(passes: Iterable[Pass]) -> list[dict[str, Any]]:
    """Each run of operators once: whatever cache they are beside."""
    runs = {(done.ends, done.block, done.blocks, done.format): done for done in passes}
    return [
        {
            "format": done.format.value,
            "ends": [_plain(use) for use in done.ends],
            "block": [_plain(use) for use in done.block],
            "is_short": done.core.queries == 1,
            "blocks": min(done.blocks, PROMPT_BLOCKS) if done.core.queries > 1 else _held(done),
        }
        for done in runs.values()
    ]


def _held(done: Pass) -> int:
    """Blocks of the model, as many as their weights' bytes allow; at least one."""
    own = sum(use.shape[1] * use.shape[2] for use in done.block if use.operator.value.startswith("linear"))
    return max(1, min(done.blocks, WEIGHT_BYTES // (4 * max(1, own))))


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
