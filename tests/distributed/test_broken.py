"""The test of the tests: every mistake that a layout could make has to be found by the judgement of equality."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial
from unittest.mock import patch

import pytest

from parallelism import batches
from parallelism.strategies import parallelize
from parallelism.training import Trainer
from suite.data import rank_slice
from tests.distributed import mistakes
from tests.distributed.judgement import differences
from tests.distributed.plans import Plan
from tests.distributed.ranks import run_on_ranks
from tests.distributed.traces import RANKS_DIFFER, RankTrace, Spread, Trace, merged, record

pytestmark = pytest.mark.distributed

DDP, FSDP, SINGLE = Plan("ddp2"), Plan("fsdp2", form="llama-gqa"), Plan("single")
DDP_TWICE, FSDP_TWICE = Plan("ddp2", micro_batches=2), Plan("fsdp2", micro_batches=2)
HSDP = Plan("hsdp2x2", form="llama-tied")
DDP_BF16, FSDP_BF16 = Plan("ddp2", numerics="bf16-adamw"), Plan("fsdp2", numerics="bf16-adamw")
FSDP_ADAMW, DDP_FP64 = Plan("fsdp2", numerics="fp32-adamw"), Plan("ddp2", numerics="fp64-adamw")


@dataclass(frozen=True)
class Mistake:
    """Where something is planted, and what must be found to be wrong."""

    plan: Plan
    found: str
    spread: Spread = parallelize
    trainer: Callable[..., Trainer] = Trainer
    cut: Callable[..., object] = rank_slice

    def run(self, rank: int) -> RankTrace:
        """The broken run on one rank."""
        with patch.object(batches, "rank_slice", self.cut):
            return record(self.plan.case, rank, self.spread, self.trainer, self.plan.is_double)


MISTAKES = {
    "all-reduce left out": Mistake(DDP, "gradient of step 0", mistakes.without_all_reduce),
    "all-reduce left out, bf16": Mistake(DDP_BF16, "gradient of step 0", mistakes.without_all_reduce),
    "all-reduce left out, fp64": Mistake(DDP_FP64, "gradient of step 0", mistakes.without_all_reduce),
    "each rank its own seed": Mistake(DDP, "gradient of step 0", mistakes.own_seed_on_every_rank),
    "sum for mean": Mistake(FSDP, "gradient of step 0", mistakes.sum_instead_of_mean),
    "sum for mean, bf16": Mistake(FSDP_BF16, "gradient of step 0", mistakes.sum_instead_of_mean),
    "sum for mean in a block": Mistake(FSDP, "gradient of step 0, blocks.2", mistakes.sum_in_one_block),
    "replicas never meet": Mistake(HSDP, "gradient of step 0", mistakes.without_replicas),
    "gathered for good": Mistake(FSDP, "gradient of step 1", mistakes.gathered_for_good),
    "rerun with other weights": Mistake(SINGLE, "gradient of step 0, blocks.0", mistakes.rerun_with_other_weights),
    "head on a copy": Mistake(DDP, "gradient of step 0, embedding.weight", mistakes.copied_head),
    "micro-batches summed": Mistake(DDP_TWICE, "gradient of step 0", trainer=mistakes.forgets_to_divide),
    "first micro-batch reduced": Mistake(DDP_TWICE, "gradient of step 0", trainer=mistakes.ReducesTheFirst),
    "first micro-batch reduced, sharded": Mistake(FSDP_TWICE, "gradient of step 0", trainer=mistakes.ReducesTheFirst),
    "first micro-batch forgotten": Mistake(DDP_TWICE, "gradient of step 0", trainer=mistakes.ForgetsTheFirst),
    "clipped by a shard": Mistake(FSDP, "norm of step 0", trainer=mistakes.ClipsByItsShard),
    "never clipped": Mistake(FSDP, "last parameter", trainer=mistakes.NeverClips),
    "every rank the same rows": Mistake(FSDP, "gradient of step 0", cut=mistakes.first_rank_slice),
}


@cache
def reference(plan: Plan) -> Trace:
    """What one process computes for the plan."""
    return merged(run_on_ranks(1, partial(record, plan.case, double=plan.is_double)))


def findings(mistake: Mistake) -> list[str]:
    """What the judgement says of the broken run."""
    plan = mistake.plan
    trace = merged(run_on_ranks(plan.ranks, mistake.run))
    return differences(trace, reference(plan.single_process), plan.case, plan.is_double)


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_found(name: str) -> None:
    """Where ranks hold copies, comparing them would do; the values of the first alone have to do as well."""
    mistake = MISTAKES[name]
    found = [line for line in findings(mistake) if not line.endswith(RANKS_DIFFER)]
    assert any(line.startswith(mistake.found) for line in found), found[:20]


@pytest.mark.parametrize(
    "name", ["all-reduce left out", "replicas never meet", "each rank its own seed", "first micro-batch reduced"]
)
def test_ranks_that_drift_apart_are_found(name: str) -> None:
    found = [line for line in findings(MISTAKES[name]) if line.endswith(RANKS_DIFFER)]
    assert any(line.startswith("parameter, ") for line in found)


def test_losses_alone_would_not_do() -> None:
    """Clipping takes a factor out of the gradients, and AdamW divides by what is left of it: the losses coincide."""
    found = findings(replace(MISTAKES["sum for mean"], plan=FSDP_ADAMW))
    assert any(line.startswith("gradient of step 0") for line in found)
    assert not any(line.startswith("loss") for line in found)


def test_the_same_harness_finds_nothing_where_nothing_is_planted() -> None:
    assert not findings(Mistake(DDP_TWICE, ""))
    assert not findings(Mistake(FSDP_BF16, ""))
