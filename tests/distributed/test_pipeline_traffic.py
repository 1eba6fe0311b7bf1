"""What pipelines send, formula against probe on every rank: streams, tied weights, clipping, and every product."""

from __future__ import annotations

from typing import Any

import pytest

from suite.case import Case
from suite.collectives import Collective
from suite.record import Quantity, Sample
from tests.distributed.ranks import run_cases
from tests.distributed.test_traffic import BF16, GPT, NARROW, PURE, case_of, measure, measured, predicted

pytestmark = pytest.mark.distributed


def pipeline(model: dict[str, Any], schedule: str, micro_batches: int, **layout: Any) -> Case:
    """A case of a few tokens with a block a stage, and one more."""
    settings = {"pp": 2, "schedule": schedule, "virtual_stages": 1 if schedule in ("gpipe", "1f1b") else 2, **layout}
    workload = settings.pop("workload", {})
    stages = settings["pp"] * settings["virtual_stages"]
    return case_of({**model, "layers": stages + 1}, settings, micro_batches, **workload)


CASES = [
    pipeline(GPT, "gpipe", 3),
    pipeline(GPT, "1f1b", 4, workload=BF16),
    pipeline(GPT, "interleaved-1f1b", 4, recompute="full"),
    pipeline(NARROW, "interleaved-zero-bubble", 4, virtual_stages=3),
    pipeline(GPT, "zbv", 3),
    pipeline(NARROW, "dualpipev", 5),
    pipeline(GPT, "1f1b", 3, pp=3),
    pipeline(GPT, "zbv", 5, pp=3),
    pipeline(GPT, "gpipe", 2, dp=2),
    pipeline(NARROW, "zbv", 2, dp=2),
    pipeline(GPT, "1f1b", 2, dp=2, zero=1),
    pipeline(NARROW, "zbv", 2, dp=2, zero=1),
    pipeline(GPT, "gpipe", 2, fsdp=2, workload=BF16),
    pipeline(GPT, "1f1b", 3, fsdp=2),
    pipeline(GPT, "1f1b", 3, fsdp=2, reshard_after_forward=False),
    pipeline(GPT, "interleaved-1f1b", 4, fsdp=2, recompute="selective"),
    pipeline(NARROW, "interleaved-1f1b", 2, fsdp=2, virtual_stages=5),
    pipeline(GPT, "zbv", 3, fsdp=2, reshard_after_forward=False),
    pipeline(NARROW | {"heads": 4, "kv_heads": 2}, "1f1b", 2, tp=2, workload={"micro_batch": 2}),
    pipeline(NARROW | {"heads": 4, "kv_heads": 2}, "zbv", 3, tp=2, sequence_parallel=False),
    pipeline(NARROW, "dualpipev", 4, cp=2),
    pipeline(GPT, "1f1b", 3, fsdp=2, dp=2),
    pipeline(GPT, "1f1b", 3, dp=2, zero=1),
    pipeline(GPT, "zbv", 3, dp=2, zero=1),
    pipeline(GPT, "zbv", 3, dp=2, workload=PURE),
]  # fmt: skip


@pytest.fixture(scope="module")
def heard() -> dict[Case, tuple[list[Sample], ...]]:
    """Every case's samples, rank by rank."""
    return run_cases(CASES, measure, deadline_s=120.0)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.model.hidden}-{case.label}")
def test_formulas_and_probe_are_equal_to_the_byte(case: Case, heard: dict[Case, tuple[list[Sample], ...]]) -> None:
    for rank, samples in enumerate(heard[case]):
        assert measured(samples) == predicted(case, rank), f"rank {rank}"


def test_a_stage_hands_on_without_sending_where_one_rank_holds_the_next(
    heard: dict[Case, tuple[list[Sample], ...]],
) -> None:
    """ZBV on 3 ranks, 5 micro-batches: rank 0 sends stage 0's output and stage 5's gradient, rank 1 two outputs and two
    gradients, rank 2 the output of stage 3 and the gradient of stage 2; the turn is on rank 2, in memory."""
    case = next(each for each in CASES if each.layout.pp == 3 and each.layout.schedule.is_v)
    sent = [measured(samples)[Quantity.COLLECTIVE_CALLS, Collective.SEND] for samples in heard[case]]
    assert sent == [10, 20, 10]
