"""ZeRO by DeepSpeed computes what one process computes: losses, norms, every gradient and the parameters."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import count
from unittest.mock import patch

import pytest

from parallelism.zero.trainer import DeepSpeedTrainer
from suite.case import Case
from suite.layout import Engine, Layout, Offload, Recompute
from suite.spec import OptimizerKind, Precision, Workload
from tests.distributed.judgement import differences
from tests.distributed.plans import FORMS, case_of, single_process
from tests.distributed.ranks import Ran, run_jobs, run_on_ranks
from tests.distributed.traces import RankTrace, Trace, merged, record
from tests.distributed.zero_runs import engine_of, record_zero

pytestmark = pytest.mark.distributed

DEADLINE_S = 200
RATES = {OptimizerKind.SGD: 0.3, OptimizerKind.ADAMW: 1e-4}


@dataclass(frozen=True)
class Run:
    """One run of the engine, by its choices."""

    stage: int
    ranks: int = 2
    form: str = "gpt"
    parts: int = 1
    recompute: str = "none"
    precision: Precision = Precision.FP32
    optimizer: OptimizerKind = OptimizerKind.SGD
    offload: Offload = Offload.NONE
    bucket_mib: int = 1

    def __str__(self) -> str:
        return f"{self.case.layout}-{self.form}-x{self.parts}-{self.precision}-{self.optimizer}"

    @property
    def case(self) -> Case:
        """24 sequences a step, whatever the ranks and parts."""
        layout = Layout(
            dp=self.ranks,
            zero=self.stage,
            engine=Engine.DEEPSPEED,
            offload=self.offload,
            bucket_mib=self.bucket_mib if self.stage else 0,
            recompute=Recompute.parse(self.recompute),
        )
        workload = Workload(
            seq_len=16,
            micro_batch=24 // (self.ranks * self.parts),
            micro_batches=self.parts,
            precision=self.precision,
            optimizer=self.optimizer,
        )
        return case_of(FORMS[self.form], layout, workload, RATES[self.optimizer])


BF16, ADAMW = Precision.BF16_MIXED, OptimizerKind.ADAMW
RUNS = [
    *(Run(stage, 2, "gpt", 2, "full") for stage in range(4)),
    *(Run(stage, 2, "llama-gqa", 2, "selective", optimizer=ADAMW) for stage in range(4)),
    *(Run(stage, 3, "llama-gqa", 1, "every-2") for stage in range(4)),
    *(Run(stage, 4, "gpt", 3, "none", optimizer=ADAMW) for stage in range(4)),
    *(Run(stage, 2, "gpt", 2, "full", BF16) for stage in range(4)),
    *(Run(stage, 2, "llama-gqa", 1, "none", BF16, ADAMW) for stage in range(4)),
    *(Run(stage, 2, "llama-tied", 2, "none", offload=Offload.OPTIMIZER) for stage in (1, 2, 3)),
    Run(2, 2, "gpt", 2, "selective-op", optimizer=ADAMW),
    Run(3, 2, "gpt", 2, "full", offload=Offload.PARAMETERS),
    Run(3, 3, "llama-gqa", 2, "full", BF16, ADAMW, offload=Offload.PARAMETERS),
]


@cache
def runs_on(ranks: int) -> dict[Run, Ran[RankTrace]]:
    """All runs on so many ranks, in one fork."""
    mine = [run for run in RUNS if run.ranks == ranks]
    return dict(zip(mine, run_jobs(ranks, [partial(record_zero, run.case) for run in mine], DEADLINE_S), strict=True))


@cache
def reference(case: Case) -> Trace:
    """One process on the same batch; DeepSpeed's bf16 starts from the same weights, rounded."""
    trace = merged(run_on_ranks(1, partial(record, case)))
    if case.workload.precision is Precision.FP32:
        return trace
    return replace(trace, start={name: item.bfloat16().float() for name, item in trace.start.items()})


@pytest.mark.parametrize("run", RUNS, ids=str)
def test_engine_computes_what_one_process_computes(run: Run) -> None:
    found = differences(merged(runs_on(run.ranks)[run].result()), reference(single_process(run.case)), run.case)
    assert not found, "\n".join(found[:20])


def test_dropout_draws_what_one_process_draws() -> None:
    """Masks come from keys, one a sequence, which the engine passes through; full checkpointing draws them again."""
    cases = [Run(stage, parts=2, recompute="full").case for stage in (1, 3)]
    cases = [replace(case, model=replace(case.model, dropout=0.2)) for case in cases]
    for case, ran in zip(cases, run_jobs(2, [partial(record_zero, case) for case in cases], DEADLINE_S), strict=True):
        found = differences(merged(ran.result()), reference(single_process(case)), case)
        assert not found, "\n".join(found[:20])


def undivided(trainer: DeepSpeedTrainer) -> AbstractContextManager[object]:
    """Micro-batches are summed: the loss is not divided by their number."""
    return patch.object(trainer.engine, "backward", partial(trainer.engine.backward, scale_wrt_gas=False))


def always_at_the_boundary(trainer: DeepSpeedTrainer) -> AbstractContextManager[object]:
    """Every micro-batch is taken for the last."""
    return patch.object(trainer.engine, "is_gradient_accumulation_boundary", lambda: True)


def uncounted(trainer: DeepSpeedTrainer) -> AbstractContextManager[object]:
    """The micro-batches before the last are not counted, so the boundary comes too late."""
    step, calls = trainer.engine.step, count()
    return patch.object(trainer.engine, "step", lambda: step() if next(calls) % 2 else None)


def summed(trainer: DeepSpeedTrainer) -> AbstractContextManager[object]:
    """Gradients are summed over the ranks, not averaged."""
    return patch.object(trainer.engine.optimizer, "gradient_average", False)


def unclipped(trainer: DeepSpeedTrainer) -> AbstractContextManager[object]:
    """The norm is told, and nothing is scaled by it."""
    return patch.object(trainer.engine.optimizer, "clip_grad", 0.0)


MISTAKES = {
    "micro-batches summed, stage 1": (Run(1, parts=2), undivided, "gradient of step 0"),
    "micro-batches summed, stage 3": (Run(3, parts=2), undivided, "gradient of step 0"),
    "boundary at every micro-batch, stage 2": (Run(2, parts=2), always_at_the_boundary, "gradient of step 0"),
    "sum for mean, stage 1": (Run(1), summed, "gradient of step 0"),
    "sum for mean, stage 2": (Run(2), summed, "gradient of step 0"),
    "never clipped, stage 3": (Run(3), unclipped, "last parameter"),
}


@cache
def broken() -> dict[str, Ran[RankTrace]]:
    """Every mistake, in one fork."""
    jobs = [partial(record_zero, run.case, planted=planted) for run, planted, _ in MISTAKES.values()]
    return dict(zip(MISTAKES, run_jobs(2, jobs, DEADLINE_S), strict=True))


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_found(name: str) -> None:
    run, _, wrong = MISTAKES[name]
    found = differences(merged(broken()[name].result()), reference(single_process(run.case)), run.case)
    assert any(line.startswith(wrong) for line in found), found[:20]


def test_a_forgotten_boundary_is_found() -> None:
    """The engine then has no gradient to show, or a wrong one: either way it is not the single process's run."""
    run = Run(2, parts=2)
    ran = run_jobs(2, [partial(record_zero, run.case, planted=uncounted)], DEADLINE_S)[0]
    assert ran.failure or differences(merged(ran.result()), reference(single_process(run.case)), run.case)


def settings(case: Case, rank: int) -> dict[str, object]:
    """What the engine, having read its configuration, takes the settings to be."""
    engine = engine_of(case).engine
    zero = engine._config.zero_config
    return {
        "stage": engine.zero_optimization_stage(),
        "accumulation": engine.gradient_accumulation_steps(),
        "batch": engine.train_batch_size(),
        "clip": engine.gradient_clipping(),
        "bf16": engine.bfloat16_enabled(),
        "buckets": (engine.zero_reduce_bucket_size(), engine.zero_allgather_bucket_size()),
        "offload": (str(zero.offload_optimizer and zero.offload_optimizer.device), bool(zero.offload_param)),
        "stage 3": (zero.param_persistence_threshold, zero.max_reuse_distance, zero.prefetch_bucket_size),
        "unread": sorted(zero.model_extra or {}),
    }


def test_engine_reads_the_configuration_as_it_is_meant() -> None:
    case = Run(3, parts=2, precision=BF16, offload=Offload.PARAMETERS).case
    for found in run_on_ranks(2, partial(settings, case)):
        assert found == {
            "stage": 3,
            "accumulation": 2,
            "batch": 24,
            "clip": 0.25,
            "bf16": True,
            "buckets": (2**19, 2**19),  # 1 MiB of bf16
            "offload": ("cpu", True),
            "stage 3": (0, 0, 0),
            "unread": [],
        }
