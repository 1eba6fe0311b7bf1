"""Gradient accumulation: a batch in parts is the batch at once, and parts cost no reduction that is not needed."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from functools import partial

import pytest
from torch.profiler import ProfilerActivity, profile

from parallelism.mesh import build_mesh
from parallelism.optimizers import build_optimizer
from parallelism.strategies import parallelize
from parallelism.training import Trainer, build_model
from suite.case import Case
from suite.layout import Layout, Reduction
from suite.spec import OptimizerKind, Precision, Workload
from tests.distributed.judgement import differences
from tests.distributed.plans import FORMS, case_of
from tests.distributed.ranks import run_jobs, run_on_ranks
from tests.distributed.traces import CPU, merged, rank_batch, record

pytestmark = pytest.mark.distributed

SEQUENCES = 24
DDP, FSDP, KEEP = Layout(dp=2), Layout(fsdp=2), Layout(fsdp=2, reshard_after_forward=False)
HSDP = Layout(dp=2, fsdp=2)


def in_each(layout: Layout) -> Layout:
    """The layout, reducing every micro-batch."""
    return replace(layout, reduction=Reduction.MICRO_BATCH)


def case_in_parts(layout: Layout, parts: int) -> Case:
    """Twenty-four sequences a step, each rank's share in so many micro-batches."""
    workload = Workload(
        seq_len=8,
        micro_batch=SEQUENCES // (layout.data_ranks * parts),
        micro_batches=parts,
        precision=Precision.FP32,
        optimizer=OptimizerKind.ADAMW,
    )
    return case_of(FORMS["llama-tied"], layout, workload, learning_rate=1e-2)


def collectives(case: Case, rank: int) -> Counter[str]:
    """What one step, the third, sends: gloo's collectives by name."""
    model = parallelize(build_model(case, CPU), build_mesh(case.layout, "cpu"), case)
    trainer = Trainer(case, model, build_optimizer(model, case), CPU)
    for step in range(2):  # DDP regroups its buckets after the first
        trainer.step(step, rank_batch(case, rank, step))
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        trainer.step(2, rank_batch(case, rank, 2))
    names = (event.name for event in profiled.events() or ())
    return Counter(name.removeprefix("gloo:") for name in names if name.startswith("gloo:"))


@pytest.mark.parametrize("layout", [Layout(), DDP, FSDP, KEEP, HSDP, in_each(FSDP), in_each(HSDP)], ids=str)
def test_parts_make_the_whole(layout: Layout) -> None:
    """1, 2, 3 and 6 micro-batches a rank: the same losses, gradients and parameters."""
    cases = [case_in_parts(layout, parts) for parts in (1, 2, 3, 6)]
    jobs = [partial(record, case, double=True) for case in cases]
    whole, *others = (merged(ran.result()) for ran in run_jobs(layout.world_size, jobs))
    for case, trace in zip(cases[1:], others, strict=True):
        assert not differences(trace, whole, case, is_double=True)


@pytest.mark.parametrize("parts", [1, 3])
def test_ddp_reduces_once_a_step(parts: int) -> None:
    """One all-reduce, since this model's gradients fit one bucket, and nothing else: buffers are constants."""
    for sent in run_on_ranks(2, partial(collectives, case_in_parts(DDP, parts))):
        assert sent == {"all_reduce": 1}


def test_ddp_reduces_every_micro_batch_where_it_is_told() -> None:
    for sent in run_on_ranks(2, partial(collectives, case_in_parts(in_each(DDP), 3))):
        assert sent == {"all_reduce": 3}


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("layout", [FSDP, KEEP, in_each(FSDP), in_each(KEEP)], ids=str)
def test_fsdp_reduces_as_often_as_it_is_told(layout: Layout, parts: int) -> None:
    """Each block and the root is a unit. Gathered once for forward, and blocks that were freed once more for
    backward; reduced once (gloo's reduce-scatter is an all-reduce), or once a micro-batch. Clipping adds one
    all-reduce, of the norm.
    """
    blocks = FORMS["llama-tied"].layers
    gathers = 2 * blocks + 1 if layout.reshard_after_forward else blocks + 1
    reductions = parts if layout.reduction is Reduction.MICRO_BATCH else 1
    for sent in run_on_ranks(2, partial(collectives, case_in_parts(layout, parts))):
        assert sent["all_gather"] == gathers * parts
        assert sent["all_reduce"] + sent["reduce_scatter"] == (blocks + 1) * reductions + 1


@pytest.mark.parametrize("layout", [HSDP, in_each(HSDP)], ids=str)
def test_hybrid_shards_meet_once_a_step(layout: Layout) -> None:
    """Beside the shards' reductions, one all-reduce a unit over the replicas however often shards are reduced: they
    are summed first."""
    units = FORMS["llama-tied"].layers + 1
    reductions = 3 if layout.reduction is Reduction.MICRO_BATCH else 1
    for sent in run_on_ranks(4, partial(collectives, case_in_parts(layout, 3))):
        assert sent["all_reduce"] + sent["reduce_scatter"] == units * reductions + units + 1
