"""What the formulas say that ZeRO keeps and sends is what DeepSpeed's engine holds and calls, to the byte."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from functools import cache, partial

import pytest

from memory.estimate import MemoryModel
from parallelism.traffic_probe import record_traffic
from parallelism.zero.engine_state import held_tensors, storage_bytes
from parallelism.zero.state import gradient_bytes, held
from parallelism.zero.traffic import messages
from suite.case import Case
from suite.collectives import Call, tally
from suite.layout import Offload
from suite.memory_probe import OPTIMIZER
from suite.operators import Ledger
from suite.record import Component
from suite.spec import LossKernel
from tests.distributed.plans import FORMS
from tests.distributed.ranks import Ran, run_jobs
from tests.distributed.test_zero import ADAMW, BF16, Run
from tests.distributed.traces import rank_batch
from tests.distributed.zero_runs import engine_of

pytestmark = pytest.mark.distributed

Bytes = dict[Component, int]
STEADY = 2  # AdamW's state is there after one step, stage 3's trace of the modules after two

#: a bucket of 1 MiB holds 262,144 fp32 elements: this model needs several, and its embedding alone is beyond one
LARGE = replace(FORMS["llama-gqa"], name="large", hidden=120, heads=6, ffn=300, vocab=2501)

RUNS = {
    str(run): run.case
    for run in (
        *(Run(stage, 2, "gpt", 2, "full", optimizer=ADAMW) for stage in range(4)),
        *(Run(stage, 3, "llama-gqa", 1, "every-2") for stage in range(4)),
        *(Run(stage, 4, "llama-tied", 2, "none", BF16, ADAMW) for stage in range(4)),
        *(Run(stage, 3, "gpt", 2, "none", BF16, ADAMW, Offload.OPTIMIZER) for stage in (1, 2, 3)),
        Run(2, 2, "llama-gqa", 1, "none", offload=Offload.OPTIMIZER),
        Run(3, 2, "llama-gqa", 2, "full", optimizer=ADAMW, offload=Offload.PARAMETERS),
    )
}
RUNS |= {f"large, stage {stage}": replace(Run(stage, 2).case, model=LARGE) for stage in (1, 2, 3)}
CHUNKED = Run(3, 2, "llama-gqa").case
RUNS["chunked loss"] = replace(CHUNKED, workload=replace(CHUNKED.workload, loss=LossKernel.CHUNKED))


def ledger_of(case: Case) -> Ledger:
    """The model that every rank runs."""
    return MemoryModel(case).ledger


def measure(case: Case, rank: int) -> tuple[Bytes, int, list[Call]]:
    """What a rank holds between two steps, its gradients before an update, and what it calls in a step."""
    gradients: list[int] = []

    def watch(phase: str) -> None:
        if phase == OPTIMIZER:
            gradients.append(storage_bytes(held_tensors(trainer)[Component.GRADIENTS]))

    trainer = engine_of(case, watch)
    for step in range(STEADY):
        trainer.step(step, rank_batch(case, rank, step))
    with record_traffic() as calls:
        trainer.step(STEADY, rank_batch(case, rank, STEADY))
    kept = {component: storage_bytes(tensors) for component, tensors in held_tensors(trainer).items()}
    left = [tensor for tensors in held_tensors(trainer).values() for tensor in tensors]
    trainer.close()
    assert storage_bytes(left) == 0
    return {component: nbytes for component, nbytes in kept.items() if nbytes}, gradients[-1], calls


@cache
def measured(ranks: int) -> dict[str, Ran[tuple[Bytes, int, list[Call]]]]:
    """All runs on so many ranks, in one fork."""
    mine = {name: case for name, case in RUNS.items() if case.layout.dp == ranks}
    return dict(zip(mine, run_jobs(ranks, [partial(measure, case) for case in mine.values()], 200), strict=True))


@pytest.mark.parametrize("name", RUNS)
def test_bytes_kept_are_those_held(name: str) -> None:
    case = RUNS[name]
    for rank, (kept, gradients, _) in enumerate(measured(case.layout.dp)[name].result()):
        rows: Counter[Component] = Counter()
        for row in held(case, ledger_of(case), rank):
            rows[row.component] += row.nbytes
        kept.pop(Component.BUFFERS, None)
        assert kept == dict(rows)
        assert gradients == gradient_bytes(case, ledger_of(case), rank)


@pytest.mark.parametrize("name", RUNS)
def test_bytes_sent_are_those_called(name: str) -> None:
    case = RUNS[name]
    for rank, (_, _, calls) in enumerate(measured(case.layout.dp)[name].result()):
        assert tally(calls) == tally(messages(case, ledger_of(case), rank))
