"""Constants that are fitted, each with its rows: what no formula here states of an allocator's reserve, and the rates
that a step's time needs (sets of them, in fitted/).

`validate --fit TABLE.csv` fits them again on the rows of that table with split = fit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from types import MappingProxyType
from typing import Any

from reports.published.fit_times import fit_sets
from reports.published.time_constants import FittedSet, recorded_sets
from suite.parse import require
from suite.published import PublishedRow

RESERVED = "peak_reserved_bytes"
ALLOCATED = "peak_allocated_max_rank_bytes"
SMI = "nvidia_smi_max_bytes"
#: whose allocated bytes told that fused cross-entropy leaves a logits' copy and that weight gradients are tensors
UNFUSED_GRADIENTS = ("simumax_b200-0002", "simumax_b200-0004", "simumax_b200-0005", "simumax_b200-0007",
                     "simumax_b200-0010", "simumax_b200-0013")  # fmt: skip


@dataclass(frozen=True)
class Fitted:
    """A constant, and the ids of the rows that it is the median of."""

    value: float
    rows: tuple[str, ...]
    what: str

    def to_mapping(self) -> dict[str, Any]:
        """As JSON-ready data."""
        return {"value": self.value, "rows": list(self.rows), "what": self.what}


#: 62.53 / 60.68, 40.18 / 39.07, 29.12 / 28.29 and 70.88 / 66.55 GiB: the median
_RESERVED_OVER_ALLOCATED = Fitted(
    1.0299133969600565,
    (
        "simumax_b200-0002", "simumax_b200-0003", "simumax_b200-0007", "simumax_b200-0008", "simumax_b200-0010",
        "simumax_b200-0011", "simumax_b200-0013", "simumax_b200-0014",
    ),
    "highest reserved over highest allocated bytes of a run: torch's caching allocator, blocks of gigabytes",
)  # fmt: skip


#: against the tables' value_si, which takes these rows' GB as 10^9; their unit column says that nvidia-smi printed GiB,
#: and then each figure, and this constant with them, is larger
_DEEPSPEED_DEVICE = Fitted(
    10949439104.0,
    ("bigscience-0009", "bigscience-0060", "bigscience-0328"),
    "bytes that nvidia-smi shows beside what is allocated under Megatron-DeepSpeed: context, communicators, the"
    " engine's buckets, what the allocator keeps; GB read as 10^9, as value_si has it (read as GiB: 15.9e9)",
)


@dataclass(frozen=True)
class Constants:
    """Every constant that a prediction may use."""

    reserved_over_allocated: Fitted = field(default=_RESERVED_OVER_ALLOCATED)
    deepspeed_device_bytes: Fitted = field(default=_DEEPSPEED_DEVICE)
    times: Mapping[str, FittedSet] = field(default_factory=recorded_sets)

    def to_mapping(self) -> dict[str, Any]:
        """As JSON-ready data."""
        return {
            "reserved_over_allocated": self.reserved_over_allocated.to_mapping(),
            "deepspeed_device_bytes": self.deepspeed_device_bytes.to_mapping(),
            **{name: found.to_mapping() for name, found in self.times.items()},
        }


def fit_constants(rows: Sequence[PublishedRow], allocated_of: Callable[[PublishedRow], float]) -> Constants:
    """Fit on the rows with split = fit; a constant that they say nothing of stays as it is recorded. SpecError
    where they speak of none.

    Reserved over allocated: median over the runs that state both. Beside what is allocated on a device under
    Megatron-DeepSpeed: median of what nvidia-smi shows less `allocated_of` the row, predicted. Step times: least
    squares, a set at a time.
    """
    own = [row for row in rows if row.text("split") == "fit" and row.published]
    ratio, device, times = _reserved_over_allocated(own), _deepspeed(own, allocated_of), fit_sets(own)
    require(
        ratio is not None or device is not None or bool(times),
        f"--fit: no row with split = fit speaks of a constant; needed: runs with {RESERVED} and {ALLOCATED}, {SMI}"
        " under Megatron-DeepSpeed, or the step times of a source that is modelled",
    )
    sets = MappingProxyType({**recorded_sets(), **times})
    return Constants(ratio or _RESERVED_OVER_ALLOCATED, device or _DEEPSPEED_DEVICE, sets)


def _reserved_over_allocated(rows: Sequence[PublishedRow]) -> Fitted | None:
    runs: dict[str, dict[str, PublishedRow]] = {}
    for row in rows:
        if row.quantity in (RESERVED, ALLOCATED):
            runs.setdefault(row.text("config_id"), {})[row.quantity] = row
    pairs = [(run[RESERVED], run[ALLOCATED]) for run in runs.values() if len(run) == 2]
    if not pairs:
        return None
    ratio = median((reserved.published or 0) / (allocated.published or 1) for reserved, allocated in pairs)
    ids = tuple(sorted(row.row_id for pair in pairs for row in pair))
    return Fitted(ratio, ids, _RESERVED_OVER_ALLOCATED.what)


def _deepspeed(rows: Sequence[PublishedRow], allocated_of: Callable[[PublishedRow], float]) -> Fitted | None:
    own = [row for row in rows if row.quantity == SMI and row.says("framework", "Megatron-DeepSpeed")]
    if not own:
        return None
    rest = median((row.published or 0) - allocated_of(row) for row in own)
    return Fitted(rest, tuple(sorted(row.row_id for row in own)), _DEEPSPEED_DEVICE.what)
