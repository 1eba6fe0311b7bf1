"""A plan as JSON-ready data."""

from __future__ import annotations

from typing import Any

from reports.contract import fate_mapping, time_mapping
from reports.plan.fronts import Fronts
from reports.plan.solve import Answer, Plan
from suite.parse import to_mapping


def plan_mapping(plan: Plan, fronts: Fronts | None = None) -> dict[str, Any]:
    """Ranked layouts, each with its Case, memory, time and verdict; what was left out; the fronts, where asked for."""
    asked, tally = plan.asked, plan.tally
    return {
        "model": asked.base.model.name,
        "device": asked.device.name,
        "gpus": asked.gpus,
        "gpus_tried": list(plan.worlds),
        "global_batch": asked.global_batch,
        "seq_len": asked.base.workload.seq_len,
        "objective": asked.objective.value,
        "accept": asked.accept.value,
        "fixed": {name: to_mapping(value) for name, value in asked.fixed.items()},
        "layouts": [answer_mapping(answer, rank) for rank, answer in enumerate(plan.answers, 1)],
        "left_out": {
            "legal": tally.legal,
            "too_large": tally.too_large,
            "slower_than_seconds": plan.floor,
            "slower": tally.left,
            "timed": tally.timed,
            "refused": dict(tally.refused),
        },
        "fronts": None if fronts is None else {
            "memory": [_point(answer) for answer in fronts.memory],
            "gpus": [_point(answer) for answer in fronts.gpus],
        },
    }  # fmt: skip


def answer_mapping(answer: Answer, rank: int) -> dict[str, Any]:
    """One layout."""
    simulation, assessment = answer.simulation, answer.assessment
    return {
        "rank": rank,
        "case_id": answer.case.case_id,
        "label": answer.case.label,
        "case": answer.case.to_mapping(),
        "gpus": answer.asked.gpus,
        "objective": answer.weight,
        "verdict": assessment.verdict.value,
        "memory": {"peak_bytes": answer.peak_bytes, "share": answer.memory_share, **fate_mapping(assessment)},
        "time": time_mapping(simulation.estimate),
        "binding": simulation.overhead.value if simulation.overhead else simulation.bottleneck.value,
    }


def _point(answer: Answer) -> dict[str, Any]:
    return {
        "label": answer.case.label,
        "case": answer.case.to_mapping(),
        "gpus": answer.asked.gpus,
        "step_seconds": answer.seconds,
        "peak_bytes": answer.peak_bytes,
        "memory_share": answer.memory_share,
    }
