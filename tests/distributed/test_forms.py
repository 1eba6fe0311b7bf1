"""The decoder's other forms on several ranks: training is the single process's, memory the formulas'."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import pytest

from suite.case import Case, case_from
from suite.layout import Layout, Recompute
from suite.models.decoder import Activation, DecoderSpec, Mixing, Norm, Position
from suite.parse import to_mapping
from suite.spec import AttentionKernel, LossKernel
from tests.distributed.judgement import differences
from tests.distributed.plans import NUMERICS, single_process, trained
from tests.distributed.ranks import run_cases
from tests.distributed.traces import RankTrace, merged, record
from tests.fake.measured import measure
from tests.fake.workspace import without_workspace

pytestmark = pytest.mark.distributed

ALIBI = DecoderSpec(
    name="alibi", layers=2, hidden=26, heads=6, kv_heads=2, head_dim=5, ffn=36, vocab=51, max_positions=20,
    position=Position.ALIBI, norm=Norm.LAYERNORM, activation=Activation.GELU_EXACT,
)  # fmt: skip
SINUSOIDAL = replace(ALIBI, name="sinusoidal", position=Position.SINUSOIDAL, tied=True, hidden=27)
LINEAR = replace(ALIBI, name="linear", position=Position.LEARNED, kv_heads=6, mixing=Mixing.LINEAR)
BATCHNORM = replace(ALIBI, name="batchnorm", norm=Norm.BATCHNORM)
FULL, CORE, OPERATORS = (Recompute.parse(name) for name in ("full", "selective", "selective-op"))


def trial(spec: DecoderSpec, layout: Layout, attention: str, micro_batches: int = 1) -> Case:
    """A case in fp64, which leaves no room for mistakes."""
    kernels = AttentionKernel(attention), LossKernel.PLAIN
    return trained(spec, layout, NUMERICS["fp64-adamw"], 8, micro_batches, *kernels)


TRIALS = [
    trial(ALIBI, Layout(tp=2, recompute=OPERATORS), "flash"),
    trial(ALIBI, Layout(pp=2), "flash", 4),
    trial(SINUSOIDAL, Layout(tp=2), "flash"),
    trial(SINUSOIDAL, Layout(cp=2), "flash"),
    trial(LINEAR, Layout(fsdp=2, recompute=FULL), "flash", 2),
    trial(LINEAR, Layout(tp=2, recompute=CORE), "eager", 2),
    trial(BATCHNORM, Layout(tp=2, sequence_parallel=False), "flash"),
]


@pytest.fixture(scope="module")
def traces() -> dict[Case, tuple[RankTrace, ...]]:
    """Every trial's run, and the single process's."""
    cases = list(dict.fromkeys([*TRIALS, *map(single_process, TRIALS)]))
    return run_cases(cases, partial(record, double=True), deadline_s=100.0)


@pytest.mark.parametrize("case", TRIALS, ids=lambda case: case.label)
def test_layouts_compute_what_one_process_computes(case: Case, traces: dict[Case, tuple[RankTrace, ...]]) -> None:
    assert not differences(merged(traces[case]), merged(traces[single_process(case)]), case, is_double=True)


SIZES = {"hidden": 96, "heads": 6, "head_dim": 16, "ffn": 162, "vocab": 301, "max_positions": 128}


def held(spec: DecoderSpec, layout: dict[str, Any], **workload: Any) -> Case:
    """A case whose memory is measured."""
    return case_from({
        "model": to_mapping(spec) | SIZES, "layout": layout, "workload": {"seq_len": 40, "micro_batch": 3} | workload,
    })  # fmt: skip


MEASURED = [
    held(ALIBI, {"tp": 2}, precision="fp32"),
    held(ALIBI, {"pp": 2}, precision="fp32", micro_batches=2, attention="eager"),
    held(SINUSOIDAL, {"pp": 2}, precision="fp32", micro_batches=2),
    held(LINEAR, {"fsdp": 2, "recompute": "selective"}, precision="bf16-mixed"),
    held(BATCHNORM, {"tp": 2, "sequence_parallel": False}, precision="bf16-mixed", attention="eager"),
]


@pytest.fixture(scope="module")
def memory() -> dict[Case, Any]:
    """Every case's memory, predicted and measured, on every rank."""
    with without_workspace():  # the ranks are forked inside, and inherit it
        return run_cases(MEASURED, measure, deadline_s=100.0)


@pytest.mark.parametrize("case", MEASURED, ids=lambda case: case.label)
def test_every_moment_is_predicted_on_every_rank(case: Case, memory: dict[Case, Any]) -> None:
    for rank, found in enumerate(memory[case]):
        assert not found.states_off(), f"rank {rank}"
        assert not found.totals_off(2048), f"rank {rank}"
        assert not found.components_off(allowed=2048), f"rank {rank}"
