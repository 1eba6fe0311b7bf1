"""Every layout computes what one process computes: losses, every gradient of every step, and the parameters.

The layouts' product with models, kernels, losses, micro-batches and number formats is sampled so that every two
choices meet. All runs of one number of ranks share one fork.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import combinations, product

import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.nn.parallel import DistributedDataParallel

from parallelism.data.fsdp import shard_rows
from parallelism.mesh import build_mesh
from parallelism.strategies import parallelize
from parallelism.training import build_model
from suite.case import Case
from suite.layout import Layout
from suite.spec import OptimizerKind, Precision, Workload
from tests.distributed.differences import are_same_bits, same_tensors
from tests.distributed.judgement import differences
from tests.distributed.plans import AXES, FORMS, Plan, all_needed, case_of, pairwise_plans, single_process
from tests.distributed.ranks import Ran, run_jobs, run_on_ranks
from tests.distributed.traces import CPU, Piece, RankTrace, Trace, merged, pieces, record

pytestmark = pytest.mark.distributed

PLANS = pairwise_plans()
KERNELS = [
    Plan(form=form, attention=attention, loss=loss, numerics="fp64-adamw")
    for form in FORMS
    for attention in ("flash", "eager")
    for loss in ("plain", "chunked")
]
DEADLINE_S = 200


class Runs:
    """Traces of plans; the first that is asked for runs all those on as many ranks."""

    def __init__(self, plans: Sequence[Plan]) -> None:
        self.plans = plans
        self.done: dict[Plan, Ran[RankTrace]] = {}

    def trace(self, plan: Plan) -> Trace:
        """The plan's run as one record. Raises what stopped it, if anything did."""
        if plan not in self.done:
            mates = [other for other in self.plans if other.ranks == plan.ranks]
            jobs = [partial(record, other.case, double=other.is_double) for other in mates]
            self.done |= zip(mates, run_jobs(plan.ranks, jobs, DEADLINE_S), strict=True)
        return merged(self.done[plan].result())


@pytest.fixture(scope="module")
def runs() -> Runs:
    return Runs(all_needed(PLANS + KERNELS))


@pytest.mark.parametrize("plan", PLANS, ids=str)
def test_layout_computes_what_one_process_computes(runs: Runs, plan: Plan) -> None:
    found = differences(runs.trace(plan), runs.trace(plan.single_process), plan.case, plan.is_double)
    assert not found, "\n".join(found[:20])


@pytest.mark.parametrize("plan", [plan for plan in PLANS if plan.recompute != "none"], ids=str)
def test_checkpointing_changes_no_bit(runs: Runs, plan: Plan) -> None:
    assert are_same_bits(runs.trace(plan), runs.trace(plan.stored))


@pytest.mark.parametrize("plan", KERNELS, ids=str)
def test_kernels_of_a_model_agree(runs: Runs, plan: Plan) -> None:
    reference = runs.trace(replace(plan, attention="flash", loss="plain"))
    assert not differences(runs.trace(plan), reference, plan.case, plan.is_double)


def test_every_two_choices_meet() -> None:
    wanted = {((a, x), (b, y)) for a, b in combinations(AXES, 2) for x, y in product(AXES[a], AXES[b])}
    met = {((a, getattr(plan, a)), (b, getattr(plan, b))) for plan in PLANS for a, b in combinations(AXES, 2)}
    assert met == wanted


def test_models_do_not_divide_by_the_ranks() -> None:
    """FSDP pads a shard where the rows do not divide; somewhere a rank has none at all."""
    shapes = [tuple(item.shape) for plan in KERNELS for item in build_model(plan.case, CPU).parameters()]
    for ranks in (2, 3, 4):
        assert any(shape[0] % ranks for shape in shapes)
    assert any(shard_rows(shape[0], 4, 3) == 0 for shape in shapes)


def test_ddp_averages_every_bucket() -> None:
    """DDP reduces in buckets of 1 and then 25 MiB: a model that needs several, whose order changes after a step."""
    model = replace(FORMS["llama-gqa"], hidden=48, vocab=6001)
    workload = Workload(
        seq_len=4, micro_batch=2, micro_batches=2, precision=Precision.FP32, optimizer=OptimizerKind.SGD
    )
    case = case_of(model, Layout(dp=2), workload, learning_rate=0.3)

    def train(rank: int) -> tuple[RankTrace, str]:
        wrapped: list[DistributedDataParallel] = []

        def spread(model: nn.Module, mesh: DeviceMesh | None, case: Case) -> nn.Module:
            spread_model = parallelize(model, mesh, case)
            assert isinstance(spread_model, DistributedDataParallel)
            wrapped.append(spread_model)
            return spread_model

        trace = record(case, rank, spread)
        return trace, wrapped[0]._get_ddp_logging_data()["rebuilt_bucket_sizes"]

    ran = run_on_ranks(2, train)
    assert [len(sizes.split(",")) for _, sizes in ran] == [2, 2]
    reference = merged(run_on_ranks(1, partial(record, single_process(case))))
    assert not differences(merged([trace for trace, _ in ran]), reference, case)


@pytest.mark.parametrize("recompute", ["none", "selective", "full", "every-2"])
def test_ranks_start_with_the_same_weights(recompute: str) -> None:
    """DDP is told not to broadcast them. Whatever a rank drew before, the seed decides, wrapped or not."""
    case = Plan("ddp2", recompute, "llama-gqa").case

    def build(rank: int) -> dict[str, Piece]:
        torch.manual_seed(rank)
        torch.rand(rank)
        return pieces(parallelize(build_model(case, CPU), build_mesh(case.layout, "cpu"), case).named_parameters())

    first, second = run_on_ranks(2, build)
    plain = {name: item.detach() for name, item in build_model(case, CPU).named_parameters()}
    for mine in (first, second):
        assert same_tensors({name: piece.tensor for name, piece in mine.items()}, plain)
