"""Mixtures of experts on several ranks: training is the single process's, and memory and traffic are the formulas'."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import pytest

from suite.case import Case, case_from
from suite.layout import Layout, Recompute
from suite.models.decoder import DecoderSpec
from suite.models.experts import Balance, Dispatch, Experts, Scoring
from suite.models.latent_shape import Latent
from suite.spec import AttentionKernel, LossKernel
from tests.distributed.judgement import differences
from tests.distributed.plans import NUMERICS, single_process, trained
from tests.distributed.ranks import run_cases
from tests.distributed.test_traffic import case_of as short_case
from tests.distributed.test_traffic import measure as traffic
from tests.distributed.test_traffic import measured, predicted
from tests.distributed.traces import RankTrace, merged, record
from tests.fake.measured import measure
from tests.fake.workspace import without_workspace

pytestmark = pytest.mark.distributed

#: a large balance loss and large steps of the biases: who is chosen changes in a few steps
MIXTRAL = DecoderSpec(
    name="mixtral", layers=2, hidden=24, heads=4, kv_heads=2, ffn=32, vocab=51, max_positions=20,
    experts=Experts(5, 2, 8, balance=Balance.AUXILIARY, rate=0.05),
)  # fmt: skip
V3 = DecoderSpec(
    name="v3", layers=3, hidden=24, heads=4, ffn=36, vocab=51, max_positions=20, dense_layers=1,
    latent=Latent(kv_rank=11, rope_dim=4, nope_dim=6, v_dim=8, q_rank=14),
    experts=Experts(
        6, 2, 8, shared=1, scoring=Scoring.SIGMOID, scale=2.5, groups=3, top_groups=2, balance=Balance.BIAS, rate=0.02
    ),
)  # fmt: skip
SHARED = replace(Experts(5, 2, 8, shared=1), dispatch=Dispatch.CAPACITY, capacity_factor=1.0)
CAPACITY = replace(MIXTRAL, name="capacity", experts=SHARED)
BIASED = replace(MIXTRAL, name="biased", experts=Experts(5, 2, 8, balance=Balance.BIAS, rate=0.02))
PREDICTING = replace(V3, name="predicting", mtp=2, tied=True)


def trial(spec: DecoderSpec, layout: Layout, micro_batches: int = 1) -> Case:
    """A case in fp64, which leaves no room for mistakes."""
    kernels = AttentionKernel.FLASH, LossKernel.PLAIN
    return trained(spec, layout, NUMERICS["fp64-adamw"], 8, micro_batches, *kernels)


FULL, OPERATORS = Recompute.parse("full"), Recompute.parse("selective-op")
TRIALS = [
    trial(MIXTRAL, Layout(dp=2, recompute=FULL), 2),
    trial(PREDICTING, Layout(fsdp=2)),
    trial(V3, Layout(tp=2, recompute=OPERATORS)),
    trial(MIXTRAL, Layout(tp=2), 2),
    trial(CAPACITY, Layout(tp=2, recompute=FULL)),
    trial(V3, Layout(pp=2), 4),
    trial(MIXTRAL, Layout(pp=2), 4),
    trial(BIASED, Layout(cp=2)),
]


@pytest.fixture(scope="module")
def traces() -> dict[Case, tuple[RankTrace, ...]]:
    """Every trial's run, and the single process's."""
    cases = list(dict.fromkeys([*TRIALS, *map(single_process, TRIALS)]))
    return run_cases(cases, partial(record, double=True), deadline_s=150.0)


@pytest.mark.parametrize("case", TRIALS, ids=lambda case: case.label)
def test_layouts_compute_what_one_process_computes(case: Case, traces: dict[Case, tuple[RankTrace, ...]]) -> None:
    assert not differences(merged(traces[case]), merged(traces[single_process(case)]), case, is_double=True)


MODEL = {"layers": 2, "hidden": 48, "heads": 4, "ffn": 80, "vocab": 304, "max_positions": 128}
BALANCED: dict[str, Any] = {"count": 8, "top_k": 2, "ffn": 32, "balance": "auxiliary"}
MOVED: dict[str, Any] = {
    "count": 7, "top_k": 3, "ffn": 32, "shared": 2, "scoring": "sigmoid", "balance": "bias", "scale": 2.5,
}  # fmt: skip


def held(layout: dict[str, Any], experts: dict[str, Any], model: dict[str, Any], **workload: Any) -> Case:
    """A case whose memory is measured."""
    sizes = {"seq_len": 40, "micro_batch": 3}
    return case_from({"model": MODEL | {"experts": experts} | model, "layout": layout, "workload": sizes | workload})


MEASURED = [
    held({"dp": 2}, BALANCED, {}, precision="fp32"),
    held({"fsdp": 2}, MOVED, {"mtp": 1}, precision="bf16-mixed"),
    held({"tp": 2, "recompute": "full"}, BALANCED, {}, precision="bf16-mixed"),
    held({"pp": 2}, MOVED, {"dense_layers": 1}, precision="fp32", micro_batches=2),
    held({"dp": 2, "zero": 3}, BALANCED, {}, precision="bf16-mixed"),
]


@pytest.fixture(scope="module")
def memory() -> dict[Case, Any]:
    """Every case's memory, predicted and measured, on every rank."""
    with without_workspace():  # the ranks are forked inside, and inherit it
        return run_cases(MEASURED, measure, deadline_s=150.0)


@pytest.mark.parametrize("case", MEASURED, ids=lambda case: case.label)
def test_every_moment_is_predicted_on_every_rank(case: Case, memory: dict[Case, Any]) -> None:
    for rank, found in enumerate(memory[case]):
        assert not found.states_off(), f"rank {rank}"
        assert not found.totals_off(2048), f"rank {rank}"
        assert not found.components_off(allowed=2048), f"rank {rank}"


SENT = [
    short_case(MODEL | {"experts": MOVED, "dense_layers": 1}, {"tp": 2, "recompute": "full"}),
    short_case(MODEL | {"experts": MOVED}, {"dp": 2}),
    short_case(MODEL | {"experts": BALANCED}, {"dp": 2, "zero": 3}),
]


@pytest.fixture(scope="module")
def sent() -> dict[Case, Any]:
    """Every case's collectives."""
    return run_cases(SENT, traffic, deadline_s=100.0)


@pytest.mark.parametrize("case", SENT, ids=lambda case: case.label)
def test_what_is_sent_is_the_formulas_to_the_byte(case: Case, sent: dict[Case, Any]) -> None:
    for rank, samples in enumerate(sent[case]):
        assert measured(samples) == predicted(case, rank), f"rank {rank}"
