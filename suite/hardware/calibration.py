"""Calibration: what `calibrate` measured of this machine, as one readable file. Torch-free."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from suite.documents import read_json
from suite.hardware.collective_times import CollectiveTime
from suite.hardware.curve import Curve
from suite.hardware.matrix_rate import MatrixRate
from suite.hardware.operator_times import Crowd, OperatorTime, OperatorTimes
from suite.hardware.serving_times import CoreTime, CoreTimes
from suite.parse import SpecError, from_mapping, require, to_mapping

SCHEMA = 1


@dataclass(frozen=True)
class Machine:
    """What the figures were taken on. They hold for this processor, these cores and this torch alone."""

    cpu: str
    cores: int
    torch: str
    wait_policy: str
    """OMP_WAIT_POLICY of the measuring processes: what a rank's threads do while they wait"""
    other_cores: float = 0.0
    """cores that other processes kept busy meanwhile, on average: near 0 on a quiet machine"""


@dataclass(frozen=True)
class MemoryRate:
    """How fast each of some ranks copies memory, by the bytes that a call reads and writes. Bytes/s a rank."""

    ranks: int
    threads: int
    bytes_per_second: Curve


@dataclass(frozen=True)
class Calibration:
    """One machine's measured times. JSON: `to_mapping`, and `Calibration.from_mapping` back.

    `overheads` are seconds of what is done outside operators and collectives, by name; each name's owner says what one
    of them is (`suite/hardware/step_overheads.py` for those of every step).
    """

    machine: Machine
    operators: tuple[OperatorTime, ...] = ()
    matrix: tuple[MatrixRate, ...] = ()
    memory: tuple[MemoryRate, ...] = ()
    collectives: tuple[CollectiveTime, ...] = ()
    overheads: dict[str, float] = field(default_factory=dict)
    served: tuple[OperatorTime, ...] = ()
    """operators of a model that answers: forward, without autograd"""
    cores: tuple[CoreTime, ...] = ()
    """its attention through caches"""
    created: str = ""
    seconds: float = 0.0
    """that the measurement took"""
    schema: int = SCHEMA

    def __post_init__(self) -> None:
        require(self.schema == SCHEMA, f"calibration.schema: {self.schema} is foreign; this version reads {SCHEMA}")
        for name, seconds in self.overheads.items():
            require(seconds >= 0, f"calibration.overheads.{name}: must not be negative, got {seconds}")

    @classmethod
    def from_mapping(cls, data: Mapping[str, Any]) -> Calibration:
        """Read the JSON form. SpecError names what is wrong in it."""
        return from_mapping(cls, data, "calibration")

    def to_mapping(self) -> dict[str, Any]:
        """JSON-ready data."""
        data: dict[str, Any] = to_mapping(self)
        return data

    @cached_property
    def operator_times(self) -> OperatorTimes:
        """Operators by shape."""
        return OperatorTimes(self.operators)

    @cached_property
    def served_times(self) -> OperatorTimes:
        """A served model's operators by shape."""
        return OperatorTimes(self.served)

    @cached_property
    def core_times(self) -> CoreTimes:
        """Attention through caches by shape."""
        return CoreTimes(self.cores)

    def crowd(self, ranks: int) -> Crowd:
        """How so many ranks share this machine."""
        return Crowd.of(ranks, self.machine.cores)

    def overhead(self, name: str) -> float:
        """Seconds of a named overhead. SpecError where it was not measured."""
        if name not in self.overheads:
            known = ", ".join(sorted(self.overheads)) or "none"
            raise SpecError(f"calibration.overheads.{name}: was not measured; known: {known}")
        return self.overheads[name]


def read_calibration(path: str) -> Calibration:
    """The calibration in a file (`-`: standard input). SpecError names the file and what is wrong in it."""
    data = read_json(path, "calibration")
    try:
        return Calibration.from_mapping(data)
    except SpecError as error:
        raise SpecError(f"{path}: {error}") from None


def write_calibration(calibration: Calibration, path: Path) -> None:
    """Write it: a line a measurement, so that two files can be compared by eye. OSError where that cannot be done."""
    data = calibration.to_mapping()
    path.write_text(readable(data) + "\n", encoding="ascii")


def readable(data: Mapping[str, Any]) -> str:
    """JSON with a line for each item of a list of the first level, and for each key otherwise."""
    lines = []
    for key, value in data.items():
        if isinstance(value, list) and value:
            items = ",\n  ".join(json.dumps(item, allow_nan=False) for item in value)
            lines.append(f" {json.dumps(key)}: [\n  {items}\n ]")
        else:
            lines.append(f" {json.dumps(key)}: {json.dumps(value, allow_nan=False)}")
    return "{\n" + ",\n".join(lines) + "\n}"
