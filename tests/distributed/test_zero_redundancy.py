"""torch's ZeroRedundancyOptimizer computes what one process computes, and divides the optimizer's state as said."""

from __future__ import annotations

from dataclasses import replace
from functools import cache, partial
from unittest.mock import patch

import pytest
from torch import Tensor
from torch.distributed.optim import ZeroRedundancyOptimizer

from memory.estimate import MemoryModel
from memory.optimizer import optimizer_bytes
from parallelism.building import make_trainer
from parallelism.mesh import build_mesh
from parallelism.traffic_probe import record_traffic
from parallelism.training import Trainer
from parallelism.zero.redundancy import messages
from suite.case import Case
from suite.collectives import Call, Collective, tally
from suite.layout import Engine, Layout
from suite.memory_probe import optimizer_tensors
from suite.spec import Cluster
from tests.distributed.judgement import differences
from tests.distributed.plans import Plan
from tests.distributed.ranks import Ran, run_jobs, run_on_ranks
from tests.distributed.traces import CPU, RankTrace, Trace, merged, rank_batch, record

pytestmark = pytest.mark.distributed


def sharded(plan: Plan) -> Case:
    """The plan under ZeRO-1 of torch."""
    return replace(plan.case, layout=replace(plan.case.layout, zero=1, engine=Engine.TORCH))


PLANS = [
    Plan("ddp2", "full", "gpt", micro_batches=2, numerics="fp64-adamw"),
    Plan("ddp2", "none", "llama-gqa", numerics="fp32-sgd"),
    Plan("ddp2", "selective", "llama-tied", micro_batches=2, numerics="bf16-adamw"),
    Plan("ddp4", "none", "gpt", numerics="fp32-adamw"),
    Plan("ddp4", "every-2", "llama-gqa", micro_batches=3, numerics="fp64-adamw"),
]


@cache
def traces(ranks: int) -> dict[Plan, Ran[RankTrace]]:
    """All plans on so many ranks, in one fork."""
    mine = [plan for plan in PLANS if plan.ranks == ranks]
    jobs = [partial(record, sharded(plan), double=plan.is_double) for plan in mine]
    return dict(zip(mine, run_jobs(ranks, jobs), strict=True))


@cache
def reference(plan: Plan) -> Trace:
    """What one process computes for the plan."""
    return merged(run_on_ranks(1, partial(record, plan.case, double=plan.is_double)))


@pytest.mark.parametrize("plan", PLANS, ids=str)
def test_shards_compute_what_one_process_computes(plan: Plan) -> None:
    found = differences(
        merged(traces(plan.ranks)[plan].result()), reference(plan.single_process), plan.case, plan.is_double
    )
    assert not found, "\n".join(found[:20])


def measure(case: Case, rank: int) -> tuple[int, list[Call]]:
    """Bytes of a rank's optimizer state, and what it calls in a step."""
    trainer = make_trainer(case, build_mesh(case.layout, CPU.type), CPU)
    assert isinstance(trainer.optimizer, ZeroRedundancyOptimizer)
    for step in range(2):
        trainer.step(step, rank_batch(case, rank, step))
    with record_traffic() as calls:
        trainer.step(2, rank_batch(case, rank, 2))
    return sum(item.nbytes for item in optimizer_tensors(trainer.optimizer)), calls


@pytest.mark.parametrize("numerics", ["fp32-adamw", "fp32-sgd"])
def test_state_and_broadcasts_are_as_said(numerics: str) -> None:
    case = sharded(Plan("ddp4", form="llama-gqa", micro_batches=2, numerics=numerics))
    ledger = MemoryModel(case).ledger
    sent = tally(messages(case, ledger, 0))
    for rank, (nbytes, calls) in enumerate(run_on_ranks(4, partial(measure, case))):
        assert nbytes == optimizer_bytes(case, ledger, rank)
        made = tally(calls)
        assert {Collective.BROADCAST: made[Collective.BROADCAST]} == sent
        assert made.keys() == {Collective.BROADCAST, Collective.ALL_REDUCE}


@pytest.mark.parametrize("layout", [{"pp": 2, "dp": 2}, {"dp": 2, "cp": 2}], ids=str)
def test_state_is_divided_over_what_a_rank_shares_with_its_replicas(layout: dict[str, int]) -> None:
    """A stage's parameters, over the ranks that hold them: context ranks are replicas too."""
    plan = Plan("ddp4", form="llama-gqa", micro_batches=2, numerics="fp32-adamw")
    case = replace(plan.case, layout=Layout(**layout, zero=1, engine=Engine.TORCH), cluster=Cluster())
    memory = MemoryModel(case)
    for rank, (nbytes, _) in enumerate(run_on_ranks(4, partial(measure, case))):
        assert nbytes == optimizer_bytes(case, memory.ledger_of_rank(rank), rank)


class Keeps(Trainer):
    """The update stays where it was made."""

    def clip_and_update(self) -> Tensor:
        with patch.object(self.optimizer, "_sync_params", lambda: None):
            return super().clip_and_update()


def test_a_forgotten_broadcast_is_found() -> None:
    plan = PLANS[1]
    broken = run_on_ranks(2, partial(record, sharded(plan), trainer_type=Keeps))
    found = differences(merged(broken), reference(plan.single_process), plan.case)
    assert any(line.startswith("gradient of step 1") for line in found)
