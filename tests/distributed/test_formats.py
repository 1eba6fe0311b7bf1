"""Pure bf16 and fp16 with a scaler: every layout computes what one process does, and an overflow on one rank is one on
all."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch

from parallelism.building import make_trainer
from parallelism.mesh import build_mesh
from suite.case import Case
from suite.layout import Engine, Layout
from suite.memory_probe import local_tensor
from suite.spec import Precision, Workload
from tests.distributed.judgement import differences
from tests.distributed.plans import FORMS, case_of, single_process
from tests.distributed.ranks import run_cases, run_on_ranks
from tests.distributed.traces import Trace, merged, rank_batch, record

pytestmark = pytest.mark.distributed

BF16, FP16 = Precision.BF16, Precision.FP16_MIXED
PLANS: list[tuple[str, Precision, Layout]] = [
    ("gpt", BF16, Layout(dp=2)),
    ("llama-gqa", BF16, Layout(fsdp=2)),
    ("llama-gqa", BF16, Layout(tp=2)),
    ("llama-gqa", BF16, Layout(pp=2)),
    ("llama-gqa", FP16, Layout(fsdp=2)),
    ("gpt", FP16, Layout(dp=2, zero=1, engine=Engine.TORCH)),
    ("llama-gqa", FP16, Layout(cp=2, fsdp=2)),
]


def case_for(form: str, precision: Precision, layout: Layout) -> Case:
    """Twelve sequences a step."""
    parts = 2 if layout.pp > 1 else 1
    workload = Workload(
        seq_len=16, micro_batch=12 // (parts * layout.data_ranks), micro_batches=parts, precision=precision
    )
    return case_of(FORMS[form], layout, workload, 1e-3)


CASES = [case_for(*plan) for plan in PLANS]


@pytest.fixture(scope="module")
def traces() -> dict[Case, Trace]:
    """Every run, and the single process's."""
    runs = run_cases(list(dict.fromkeys([*CASES, *map(single_process, CASES)])), record, deadline_s=100.0)
    return {case: merged(ranks) for case, ranks in runs.items()}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.label)
def test_layouts_compute_what_one_process_does(case: Case, traces: dict[Case, Trace]) -> None:
    found = differences(traces[case], traces[single_process(case)], case)
    assert not found, "\n".join(found[:20])


def test_norms_are_those_of_unscaled_gradients(traces: dict[Case, Trace]) -> None:
    """A scale of 65536 would show: the same model in fp32 has these norms, within fp16's roundings."""
    case = single_process(case_for("llama-gqa", FP16, Layout(fsdp=2)))
    plain = replace(case, workload=replace(case.workload, precision=Precision.FP32))
    (whole,) = run_on_ranks(1, partial(record, plain))
    assert traces[case].norms == pytest.approx(whole.norms, rel=1e-2)


def overflow(case: Case, rank: int) -> tuple[bool, float, float]:
    """A step in which rank 1 alone finds an infinity in its part: are all parameters as before? The scales before and
    after."""
    trainer = make_trainer(case, build_mesh(case.layout, "cpu"), torch.device("cpu"))
    trainer.step(0, rank_batch(case, rank, 0))
    before = [local_tensor(item.detach()).clone() for item in trainer.model.parameters()]
    scale = trainer.scaler.get_scale()
    trainer.forward_backward(rank_batch(case, rank, 1))
    trainer.finish_gradients()
    if rank == 1:
        gradient = next(trainer.model.parameters()).grad
        assert gradient is not None
        local_tensor(gradient).fill_(torch.inf)
    trainer.clip_and_update()
    after = [local_tensor(item.detach()) for item in trainer.model.parameters()]
    return all(map(torch.equal, before, after)), scale, trainer.scaler.get_scale()


def test_an_overflow_on_one_rank_leaves_the_step_out_on_all() -> None:
    for is_same, before, after in run_on_ranks(2, partial(overflow, case_for("gpt", FP16, Layout(fsdp=2)))):
        assert is_same
        assert after == before / 2
