"""Measures this machine's operators, in a process for each number of ranks at once. Torch-free."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from suite.hardware.calibration import Machine, MemoryRate
from suite.hardware.curve import Curve
from suite.hardware.operator_times import Crowd, Format, Frame, OperatorTime, Timed
from suite.launch import rank_variables
from suite.parse import require
from suite.stats import Summary, summarize

WORKER = "parallelism.calibration.worker"
#: bytes that are copied for the memory's rate
COPIES = (2**16, 2**18, 2**20, 2**22, 2**24, 2**26)
#: seconds for torch's import and the forks; and how much longer than asked a round of slow operators may take
START_ALLOWANCE_S, SLOWNESS_ALLOWANCE = 90.0, 20.0


LENGTH = "length"  # of a row's chain


class OperatorTimeError(RuntimeError):
    """The measuring process failed; one line says how."""


@dataclass(frozen=True, slots=True, order=True)
class Item:
    """One operator at one shape in one format."""

    operator: Timed
    shape: tuple[int, ...]
    format: Format


@dataclass(frozen=True)
class Found:
    """What one crowd was measured to take."""

    machine: Machine
    operators: tuple[OperatorTime, ...]
    memory: MemoryRate
    overheads: dict[str, float]


def measure_operators(crowd: Crowd, items: Iterable[Item], seconds: float) -> Found:
    """Times of these operators with so many ranks at once, in about so many seconds: at least a few rounds of all.

    Raises SpecError for bad arguments, OperatorTimeError (one line) where the measuring process fails or hangs.
    """
    from suite.child import ChildError, ask  # here, because looking a time up does not need it

    wanted = sorted(set(items))
    require(0 < seconds < 3600, f"seconds: must be above 0 and below 3600, got {seconds}")
    request = {
        "ranks": crowd.ranks,
        "threads": crowd.threads,
        "seconds": seconds,
        "items": [[item.operator.value, list(item.shape), item.format.value] for item in wanted],
        "copies": COPIES,
    }
    try:
        answer = ask(WORKER, request, START_ALLOWANCE_S + SLOWNESS_ALLOWANCE * seconds, rank_variables(crowd.threads))
    except ChildError as error:
        raise OperatorTimeError(f"operators: the measuring process: {error}") from None
    machine = Machine(*(answer[name] for name in ("cpu", "cores", "torch", "wait_policy", "other_cores")))
    overheads = {str(name): float(value) for name, value in answer["overheads"].items()}
    start = overheads.pop(Frame.BACKWARD)
    times = tuple(_time(crowd, item, row, start) for item, row in zip(wanted, answer["rows"], strict=True))
    return Found(machine, times, _memory(crowd, answer["copies"]), overheads)


def _time(crowd: Crowd, item: Item, row: Mapping[str, Any], start: float) -> OperatorTime:
    """Medians of a row's readings. A chain's backward pass starts autograd's engine once, which is no operator's."""
    medians = {name: _summary(values) for name, values in row.items() if name != LENGTH}
    spread = sum(each.iqr for name, each in medians.items() if name != "inputs" or "backward" not in medians)
    each = start / row[LENGTH][0]
    found = {name: max(0.0, summary.median - each * (name != "forward")) for name, summary in medians.items()}
    inputs = found.get("inputs", 0.0)
    return OperatorTime(
        operator=item.operator,
        shape=item.shape,
        format=item.format,
        ranks=crowd.ranks,
        threads=crowd.threads,
        forward=found["forward"],
        inputs=inputs,
        weights=found.get("weights", max(0.0, found["backward"] - inputs) if "backward" in found else 0.0),
        iqr=spread,
        readings=medians["forward"].count,
    )


def _memory(crowd: Crowd, readings: Mapping[str, Sequence[float]]) -> MemoryRate:
    """A copy reads its bytes and writes them."""
    points = [(2 * float(size), 2 * float(size) / _summary(seconds).median) for size, seconds in readings.items()]
    return MemoryRate(crowd.ranks, crowd.threads, Curve.of(points, "copies of memory on this machine"))


def _summary(readings: Sequence[float]) -> Summary:
    summary = summarize(readings)
    assert summary is not None  # the worker takes several readings of each
    return summary
