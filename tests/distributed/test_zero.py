"""ZeRO by DeepSpeed computes what one process computes: losses, norms, every gradient and the parameters."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache, partial

import pytest

from suite.case import Case
from suite.layout import Engine, Layout, Offload, Recompute
from suite.spec import OptimizerKind, Precision, Workload
from tests.distributed.judgement import differences
from tests.distributed.plans import FORMS, case_of, single_process
from tests.distributed.ranks import Ran, run_jobs, run_on_ranks
from tests.distributed.traces import RankTrace, Trace, merged, record
from tests.distributed.zero_runs import record_zero

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
