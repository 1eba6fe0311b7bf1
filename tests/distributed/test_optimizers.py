"""Optimizers under layouts: what several ranks compute is what one computes, and each rank's memory is as predicted."""

from __future__ import annotations

from functools import cache, partial
from typing import Any

import pytest

from suite.case import Case, case_from
from suite.layout import Engine, Layout
from suite.models.decoder import DecoderSpec
from suite.record import Moment
from suite.spec import OptimizerKernel, OptimizerKind, Precision, Workload
from tests.distributed.judgement import differences
from tests.distributed.plans import SEQ_LEN, single_process
from tests.distributed.plans import case_of as trained
from tests.distributed.ranks import Ran, run_cases, run_jobs, run_on_ranks
from tests.distributed.traces import RankTrace, merged, record
from tests.fake.measured import Beside, measure
from tests.fake.workspace import without_workspace

pytestmark = pytest.mark.distributed

#: of 4096 elements or more: the matrices but wk and wv
WIDE = DecoderSpec(
    name="wide", layers=2, hidden=64, heads=4, kv_heads=2, ffn=66, vocab=101, max_positions=SEQ_LEN, tied=True
)
REPLICAS, STAGES = Layout(dp=2), Layout(pp=2)
ZERO = Layout(dp=2, zero=1, engine=Engine.TORCH)
AUTO, FOREACH, LOOP = OptimizerKernel.AUTO, OptimizerKernel.FOREACH, OptimizerKernel.LOOP
RUNS = [
    (REPLICAS, OptimizerKind.ADAFACTOR, AUTO),
    (ZERO, OptimizerKind.ADAFACTOR, FOREACH),
    (REPLICAS, OptimizerKind.MUON, AUTO),
    (STAGES, OptimizerKind.MUON, LOOP),
    (STAGES, OptimizerKind.ADAM_8BIT, AUTO),
    (Layout(fsdp=2), OptimizerKind.ADAMW, FOREACH),
    (Layout(tp=2), OptimizerKind.SGD, FOREACH),
]


def learning(layout: Layout, kind: OptimizerKind, kernel: OptimizerKernel) -> Case:
    """Two micro-batches of two sequences on each rank."""
    workload = Workload(
        seq_len=SEQ_LEN, micro_batch=2, micro_batches=2, precision=Precision.FP32, optimizer=kind,
        optimizer_kernel=kernel,
    )  # fmt: skip
    return trained(WIDE, layout, workload, 1e-2)


LEARNING = [learning(*run) for run in RUNS]


@cache
def traces() -> dict[Case, Ran[RankTrace]]:
    """Every run, in one fork."""
    return dict(zip(LEARNING, run_jobs(2, [partial(record, case, double=True) for case in LEARNING]), strict=True))


@pytest.mark.parametrize("case", LEARNING, ids=lambda case: case.label)
def test_a_layout_computes_what_one_process_computes(case: Case) -> None:
    """In fp64, where what is rounded to bf16 or to 8 bits is rounded alike."""
    reference = merged(run_on_ranks(1, partial(record, single_process(case), double=True)))
    found = differences(merged(traces()[case].result()), reference, case, is_double=True)
    assert not found, "\n".join(found[:20])


#: few tokens, so that the update is the peak; rows that 2 does not divide
LLAMA = {
    "layers": 2,
    "hidden": 90,
    "heads": 6,
    "head_dim": 14,
    "kv_heads": 2,
    "ffn": 102,
    "vocab": 301,
    "max_positions": 8,
}


def held(layout: dict[str, Any], optimizer: str, kernel: str = "auto") -> Case:
    """The case of a layout on two ranks."""
    workload = {"seq_len": 4, "precision": "fp32", "optimizer": optimizer, "optimizer_kernel": kernel}
    return case_from({"model": LLAMA, "layout": layout, "workload": workload | {"micro_batches": 2}})


HELD = [
    held({"fsdp": 2}, "adamw", "foreach"),
    held({"tp": 2}, "adamw", "loop"),
    held({"dp": 2, "zero": 1, "engine": "torch"}, "adafactor"),
    held({"pp": 2}, "adam-8bit"),
]
#: beside a loss's scalars, clipping's norm of every parameter, and its parts
SCALARS = 2048


@pytest.fixture(scope="module")
def measured() -> dict[Case, tuple[Beside, ...]]:
    """Every case's memory, predicted and measured, on every rank."""
    with without_workspace():
        return run_cases(HELD, measure, deadline_s=100.0)


@pytest.mark.parametrize("case", HELD, ids=lambda case: case.label)
def test_every_moment_is_predicted_on_every_rank(case: Case, measured: dict[Case, tuple[Beside, ...]]) -> None:
    for rank, found in enumerate(measured[case]):
        assert not found.states_off(), f"rank {rank}"
        assert not found.totals_off(SCALARS), f"rank {rank}"
        assert not found.components_off((Moment.OPTIMIZER_PEAK, Moment.STEADY), SCALARS), f"rank {rank}"
