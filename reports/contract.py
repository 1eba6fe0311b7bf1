"""The machine-readable contract's answers: `estimate --json`."""

from __future__ import annotations

from typing import Any

from memory.estimate import MemoryModel
from memory.verdict import available_bytes, reserved_upper_bytes, verdict_of
from reports.predict import RANKS_SHOWN, Predictor
from suite.case import Case
from suite.hardware import device
from suite.parse import to_mapping
from suite.record import Component, MemoryEstimate, TimeEstimate


def worst_estimate(case: Case, model: MemoryModel) -> MemoryEstimate:
    """The estimate of the rank that needs most. Rank 0 always holds a largest shard."""
    ranks = range(min(case.layout.world_size, RANKS_SHOWN))
    return model.estimate(max(ranks, key=model.peak_bytes))


def estimate_mapping(case: Case, predictor: Predictor) -> dict[str, Any]:
    """`estimate --json`: memory of the worst rank, time of a step."""
    model = MemoryModel(case)
    memory = worst_estimate(case, model)
    peak = memory.peak_bytes
    hardware = device(case.cluster.device)
    available = available_bytes(case, hardware)
    return {
        "case_id": case.case_id,
        "case": case.to_mapping(),
        "world_size": case.layout.world_size,
        "global_batch": case.global_batch,
        "parameters": model.ledger.parameters,
        "memory": {
            "peak_bytes": peak,
            "peak_moment": memory.peak_moment.value,
            "rank": memory.rank,
            "available_bytes": available,
            "reserved_upper_bytes": reserved_upper_bytes(peak),
            "verdict": verdict_of(peak, available).value,
            "components": {
                component.value: memory.by_moment[memory.peak_moment].get(component, 0)
                for component in Component
                if component is not Component.UNEXPLAINED
            },
            "moments": {moment.value: memory.total_bytes(moment) for moment in memory.by_moment},
            "terms": [
                {
                    "component": term.component.value,
                    "moment": term.moment.value,
                    "bytes": int(term.value),
                    "formula": term.formula,
                    "source": term.source,
                }
                for term in memory.terms
            ],
        },
        "time": time_mapping(predictor.time(case, model.ledger)),
    }


def time_mapping(time: TimeEstimate) -> dict[str, Any]:
    """The contract's `time`."""
    mapping: dict[str, Any] = to_mapping(time)
    mapping["parts"] = mapping.pop("parts_seconds")
    return mapping
