"""The machine-readable contract's answers: `estimate --json`."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from memory.allocator_settings import AllocatorSettings
from memory.assessment import Assessment
from memory.device_terms import DeviceTerm
from memory.estimate import MemoryModel, representative_ranks
from parallelism.simulator.plan import COMMUNICATION
from parallelism.traffic import estimate_traffic
from reports.counts import counts_of
from reports.predict import Predictor
from suite.case import Case
from suite.collectives import TrafficEstimate, tally
from suite.hardware import device
from suite.parse import to_mapping
from suite.record import Component, MemoryEstimate, TimeEstimate

_COMMUNICATION = frozenset(part.value for part in COMMUNICATION)


def worst_estimate(case: Case, model: MemoryModel) -> MemoryEstimate:
    """The estimate of the rank that needs most."""
    return model.estimate(max(representative_ranks(case.layout), key=model.peak_bytes))


def estimate_mapping(case: Case, predictor: Predictor, alloc_conf: str | None = None) -> dict[str, Any]:
    """`estimate --json`: memory of the worst rank, traffic of the busiest, time of a step. `alloc_conf`: what torch's
    allocator is given on a GPU, as PYTORCH_CUDA_ALLOC_CONF."""
    model = MemoryModel(case)
    memory = worst_estimate(case, model)
    fate = Assessment(model, device(case.cluster.device), AllocatorSettings.given(alloc_conf, case.cluster.device))
    return {
        "case_id": case.case_id,
        "case": case.to_mapping(),
        "world_size": case.layout.world_size,
        "global_batch": case.global_batch,
        "parameters": model.ledger.parameters,
        **counts_of(case, model.ledger).to_mapping(),
        "memory": {
            "peak_bytes": memory.peak_bytes,
            "peak_moment": memory.peak_moment.value,
            "rank": memory.rank,
            **fate_mapping(fate),
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
        "traffic": traffic_mapping(busiest_traffic(case, model)),
        "time": time_mapping(predictor.time(case)),
    }


def fate_mapping(fate: Assessment) -> dict[str, Any]:
    """What the device has, what is reserved of it, the verdict, and what is taken beside tensors."""
    return {
        "device_bytes": None if fate.device.memory_bytes.value is None else int(fate.device.memory_bytes.value),
        "available_bytes": fate.available_bytes,
        "reserved_bytes": fate.reserved_bytes,
        "reserved_upper_bytes": fate.reserved_upper_bytes,
        "verdict": fate.verdict.value,
        "device_terms": [_device_term(term) for term in fate.terms],
    }


def _device_term(term: DeviceTerm) -> dict[str, Any]:
    mapping: dict[str, Any] = to_mapping(term)
    mapping["bytes"] = mapping.pop("nbytes")
    return mapping


def busiest_traffic(case: Case, model: MemoryModel) -> TrafficEstimate:
    """The traffic of the rank that sends most in a step, of those that are written out."""
    ranks = representative_ranks(case.layout)
    return max(
        (estimate_traffic(case, model.ledger_of_share(rank), rank) for rank in ranks), key=lambda traffic: traffic.sent
    )


def traffic_mapping(traffic: TrafficEstimate) -> dict[str, Any]:
    """The contract's `traffic`: sums by collective, and the messages they are sums of."""
    return {
        "rank": traffic.rank,
        "total_sent_bytes": _number(traffic.sent),
        "collectives": {
            collective.value: {
                "count": sums.count,
                "payload_bytes": sums.payload,
                "sent_bytes": _number(sums.sent),
            }
            for collective, sums in tally(traffic.messages).items()
        },
        "messages": [
            {
                "collective": row.collective.value,
                "axis": row.axis,
                "ranks": row.ranks,
                "count": row.count,
                "payload_bytes": row.payload,
                "sent_bytes": _number(row.sent),
                "purpose": row.purpose,
                "formula": row.formula,
                "source": row.source,
            }
            for row in traffic.messages
        ],
    }


def _number(value: Fraction) -> int | float:
    """A whole number where it is one: a ring's share of a payload need not be."""
    return value.numerator if value.denominator == 1 else float(value)


def time_mapping(time: TimeEstimate) -> dict[str, Any]:
    """The contract's `time`."""
    mapping: dict[str, Any] = to_mapping(time)
    return mapping | split_parts(mapping.pop("parts_seconds"))


def split_parts(seconds: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """`parts`, which sum to the step, all that communication exposes as one of them; and that by what it is for."""
    exposed = {name: value for name, value in seconds.items() if name in _COMMUNICATION}
    others = {name: value for name, value in seconds.items() if name not in exposed}
    parts = others | {"exposed_communication": sum(exposed.values())} if seconds else {}
    return {"parts": parts, "exposed": exposed}
