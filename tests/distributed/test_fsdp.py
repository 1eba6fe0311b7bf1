"""FSDP2's knobs and HSDP compute what one process computes, whatever is gathered when and reduced how."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch.distributed.tensor import DTensor
from torch.profiler import ProfilerActivity, profile

from parallelism.building import make_trainer
from parallelism.mesh import build_mesh, hsdp_mesh, shard_mesh
from parallelism.strategies import parallelize
from parallelism.training import build_model
from suite.case import Case
from suite.layout import Layout, Recompute, ReduceType, Reduction
from suite.pairwise import pairwise
from suite.spec import Precision, Workload
from tests.distributed.differences import are_same_bits
from tests.distributed.judgement import differences
from tests.distributed.plans import FORMS, GLOBAL_BATCH, NUMERICS, case_of, single_process
from tests.distributed.ranks import run_jobs, run_on_ranks
from tests.distributed.traces import CPU, Trace, merged, rank_batch, record

pytestmark = pytest.mark.distributed

LAYOUTS = {
    "fsdp2": Layout(fsdp=2),
    "fsdp4-keep": Layout(fsdp=4, reshard_after_forward=False),
    "fsdp4-to-2": Layout(fsdp=4, reshard_after_forward=2),
    "hsdp2x2": Layout(dp=2, fsdp=2),
    "hsdp2x3": Layout(dp=2, fsdp=3),
    "hsdp3x2-keep": Layout(dp=3, fsdp=2, reshard_after_forward=False),
}
#: of six ranks: in one case each, not in the pairs
LARGEST = ("hsdp2x3", "hsdp3x2-keep")
SETTINGS: Mapping[str, list[Any]] = {
    "layout": [name for name in LAYOUTS if name not in LARGEST],
    "numerics": [*NUMERICS, "bf16-reduced"],
    "parts": [1, 2],
    "reduction": list(Reduction),
    "prefetch": [(0, 1), (0, 0), (1, 2), (2, 3)],
    "form": list(FORMS),
    "recompute": ["none", "full", "selective"],
}
BF16_REDUCED = "bf16-reduced"


def knobs_case(choice: Mapping[str, Any]) -> Case:
    """The case of a choice of settings."""
    numerics = NUMERICS["bf16-adamw" if choice["numerics"] == BF16_REDUCED else choice["numerics"]]
    forward, backward = choice["prefetch"]
    layout = replace(
        LAYOUTS[choice["layout"]],
        forward_prefetch=forward,
        backward_prefetch=backward,
        reduction=choice["reduction"],
        reduce_type=ReduceType.BF16 if choice["numerics"] == BF16_REDUCED else ReduceType.FP32,
        recompute=Recompute.parse(choice["recompute"]),
    )
    parts = choice["parts"]
    workload = Workload(
        seq_len=8,
        micro_batch=GLOBAL_BATCH // (layout.data_ranks * parts),
        micro_batches=parts,
        precision=numerics.precision,
        optimizer=numerics.optimizer,
    )
    return case_of(FORMS[choice["form"]], layout, workload, numerics.learning_rate)


CHOICES = pairwise(SETTINGS)
#: three micro-batches: one that finds gradients and leaves its own
CHOICES += [
    choice | {"parts": 3, "numerics": "fp64-adamw", "layout": layout, "reduction": reduction}
    for choice, layout, reduction in zip(
        CHOICES, ("fsdp2", "fsdp2", "hsdp2x2", "hsdp2x2"), (*Reduction, *Reduction), strict=False
    )
]
CHOICES += [
    CHOICES[0] | {"layout": layout, "numerics": numerics, "parts": 2, "reduction": reduction, "form": form}
    for layout, numerics, reduction, form in zip(
        LARGEST, ("fp64-adamw", BF16_REDUCED), Reduction, ("llama-gqa", "gpt"), strict=True
    )
]


def name_of(choice: Mapping[str, Any]) -> str:
    """A choice in words."""
    forward, backward = choice["prefetch"]
    parts = {**choice, "parts": f"x{choice['parts']}", "prefetch": f"prefetch{forward}{backward}"}
    return "-".join(map(str, parts.values()))


def is_double(choice: Mapping[str, Any]) -> bool:
    """Does it run in fp64?"""
    return bool(choice["numerics"].startswith("fp64"))


Run = tuple[Case, bool]  # and whether it is in fp64


def stored(case: Case) -> Case:
    """The same with nothing recomputed."""
    return replace(case, layout=replace(case.layout, recompute=Recompute()))


@pytest.fixture(scope="module")
def traces() -> dict[Run, Trace]:
    """Every run that is compared, those on as many ranks in one fork."""
    cases = [(knobs_case(choice), is_double(choice)) for choice in CHOICES]
    runs = [run for case, double in cases for run in ((case, double), (stored(case), double))]
    runs += [(single_process(case), double) for case, double in cases]
    found: dict[Run, Trace] = {}
    for ranks in sorted({case.layout.world_size for case, _ in runs}):
        mates = list(dict.fromkeys(run for run in runs if run[0].layout.world_size == ranks))
        jobs = [partial(record, case, double=double) for case, double in mates]
        ran = run_jobs(ranks, jobs, deadline_s=150.0)
        found |= {run: merged(each.result()) for run, each in zip(mates, ran, strict=True)}
    return found


@pytest.mark.parametrize("choice", CHOICES, ids=name_of)
def test_knobs_change_nothing_that_is_computed(choice: dict[str, Any], traces: dict[Run, Trace]) -> None:
    case, double = knobs_case(choice), is_double(choice)
    found = differences(traces[case, double], traces[single_process(case), double], case, double)
    assert not found, "\n".join(found[:20])


@pytest.mark.parametrize("choice", [each for each in CHOICES if each["recompute"] != "none"], ids=name_of)
def test_checkpointing_changes_no_bit(choice: dict[str, Any], traces: dict[Run, Trace]) -> None:
    case, double = knobs_case(choice), is_double(choice)
    assert are_same_bits(traces[case, double], traces[stored(case), double])


#: beside the axes that split a sequence or a matrix, on four and on eight ranks
OTHER_AXES = [
    Layout(fsdp=2, tp=2, forward_prefetch=1, backward_prefetch=0),
    Layout(fsdp=2, cp=2, reshard_after_forward=2),
    Layout(dp=2, fsdp=2, cp=2, reduction=Reduction.MICRO_BATCH),
    Layout(dp=2, fsdp=2, tp=2, backward_prefetch=2, reduction=Reduction.MICRO_BATCH),
]


@pytest.mark.parametrize("layout", OTHER_AXES, ids=str)
def test_knobs_change_nothing_beside_other_axes(layout: Layout) -> None:
    numerics = NUMERICS["fp64-adamw"]
    workload = Workload(
        seq_len=8, micro_batch=3, micro_batches=2, precision=numerics.precision, optimizer=numerics.optimizer
    )
    case = case_of(FORMS["llama-gqa"], layout, workload, numerics.learning_rate)
    trace = merged(run_on_ranks(layout.world_size, partial(record, case, double=True)))
    reference = merged(run_on_ranks(1, partial(record, single_process(case), double=True)))
    assert not differences(trace, reference, case, is_double=True)


def stage_gradients(layout: Layout, rank: int) -> dict[str, torch.Tensor]:
    """Whole gradients of a middle stage, without embedding or head, on this rank's half of a stream."""
    case = case_of(FORMS["llama-gqa"], layout, Workload(seq_len=8, precision=Precision.FP32), 1e-3)
    model = build_model(case, CPU).double()
    model.embedding = model.norm = model.head = None
    stream = torch.randn(2, 8, case.model.hidden, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    stage = parallelize(model, build_mesh(layout, "cpu"), case)
    mine = stream.chunk(layout.data_ranks)[rank].requires_grad_()  # as what a stage receives does
    stage(mine).square().mean().backward()
    found = {name: item.grad for name, item in stage.named_parameters() if item.grad is not None}
    return {name: item.full_tensor() if isinstance(item, DTensor) else item for name, item in found.items()}


def test_a_stage_without_embedding_or_head_is_sharded_as_well() -> None:
    """Its root has no parameters of its own."""
    sharded, *_ = run_on_ranks(2, partial(stage_gradients, Layout(fsdp=2, forward_prefetch=1, backward_prefetch=2)))
    (whole,) = run_on_ranks(1, partial(stage_gradients, Layout()))
    assert sharded.keys() == whole.keys()
    for name, gradient in whole.items():
        torch.testing.assert_close(sharded[name], gradient, rtol=1e-10, atol=1e-15)


def prefetches(layout: Layout, rank: int) -> list[str]:
    """What the first step's units ask to be gathered ahead, in order."""
    workload = Workload(seq_len=8, micro_batch=1, micro_batches=1)
    case = case_of(FORMS["llama-gqa"], layout, workload, 1e-3)
    trainer = make_trainer(case, build_mesh(layout, "cpu"), CPU)
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        trainer.step(0, rank_batch(case, rank, 0))
    names = [event.name for event in sorted(profiled.events() or (), key=lambda event: event.time_range.start)]
    return [name.removeprefix("FSDP::") for name in names if "_prefetch for " in name]


def test_prefetch_reaches_as_far_as_it_is_told() -> None:
    """Three blocks. Each unit, the root first, asks for the blocks after it, and in backward for those before it."""
    layouts = [
        Layout(fsdp=2, forward_prefetch=2, backward_prefetch=2),
        Layout(fsdp=2),
        Layout(fsdp=2, backward_prefetch=0),
    ]
    deep, default, none = (ran.result()[0] for ran in run_jobs(2, [partial(prefetches, each) for each in layouts]))
    forward = [f"forward_prefetch for blocks.{block}" for block in (0, 1, 1, 2, 2)]
    backward = [f"backward_prefetch for blocks.{block}" for block in (2, 1, 1, 0, 0)]
    assert [name for name in deep if name in forward] == forward
    assert [name for name in deep if name not in forward][: len(backward)] == backward
    assert default == [f"backward_prefetch for blocks.{block}" for block in (2, 1, 0)]
    # every unit asks for itself, which it has already
    assert none == ["backward_prefetch for "] + [f"backward_prefetch for blocks.{block}" for block in (2, 1, 0)]


def test_the_mesh_of_hybrid_sharding() -> None:
    """Ranks of dp 2 x fsdp 2 x cp 2: rows are replicas, columns are shards, fsdp outside of cp."""
    layout = Layout(dp=2, fsdp=2, cp=2)

    def grids(rank: int) -> tuple[list[list[int]], list[int]]:
        mesh = build_mesh(layout, "cpu")
        assert mesh is not None
        return hsdp_mesh(mesh, layout).mesh.tolist(), shard_mesh(mesh, layout).mesh.tolist()

    for rank, (whole, shards) in enumerate(run_on_ranks(8, grids)):
        assert whole == [[0, 1, 2, 3], [4, 5, 6, 7]]
        assert shards == whole[rank // 4]
