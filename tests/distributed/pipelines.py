"""The pipelines that the tests train: every schedule, with splits, stages, losses, products and number formats."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from suite.case import Case
from suite.layout import ContextMethod, Layout, Recompute, Schedule, StageSplit
from suite.spec import LossKernel, OptimizerKind, Precision, Workload
from tests.distributed.plans import FORMS, case_of, single_process
from tests.distributed.ranks import Ran, run_jobs
from tests.distributed.traces import RankTrace, Trace, merged, record

SEQUENCES = 12
DEADLINE_S = 120.0


@dataclass(frozen=True)
class Run:
    """A case and the number format that it is run in."""

    case: Case
    is_double: bool = True

    @property
    def reference(self) -> Run:
        """The same global batch on one rank."""
        return replace(self, case=single_process(self.case))

    @property
    def stored(self) -> Run:
        """The same with nothing recomputed."""
        layout = replace(self.case.layout, recompute=Recompute())
        return replace(self, case=replace(self.case, layout=layout))

    def __str__(self) -> str:
        return f"{self.case.label} {self.case.layout.stages}-stages {'fp64' if self.is_double else 'as it is'}"


def pipeline(schedule: str, pp: int = 2, **settings: Any) -> Layout:
    """A layout of the schedule, with as few stages a rank as it takes unless told otherwise."""
    kind = Schedule(schedule)
    return Layout(pp=pp, schedule=kind, **{"virtual_stages": kind.stages_a_rank[0], **settings})


def run_of(form: str, layout: Layout, micro_batches: int, loss: str = "plain", layers: int = 0, **more: Any) -> Run:
    """A run that drops a tenth of what is added to the residual stream. Odd numbers of blocks by default."""
    model = replace(FORMS[form], layers=layers or layout.stages + 1, dropout=0.1)
    workload = Workload(
        seq_len=8,
        micro_batch=SEQUENCES // (micro_batches * layout.data_ranks),
        micro_batches=micro_batches,
        precision=more.get("precision", Precision.FP32),
        optimizer=more.get("optimizer", OptimizerKind.ADAMW),
        loss=LossKernel(loss),
    )
    return Run(case_of(model, layout, workload, more.get("learning_rate", 1e-2)), more.get("is_double", True))


EVEN = StageSplit.parse("even")
KEEP = {"reshard_after_forward": False}


def given(text: str) -> StageSplit:
    """A split by its text."""
    return StageSplit.parse(text)


def recompute(text: str) -> dict[str, Recompute]:
    """The setting of a layout."""
    return {"recompute": Recompute.parse(text)}


SCHEDULES = [
    run_of("gpt", pipeline("gpipe"), 3, "chunked"),
    run_of("llama-gqa", pipeline("gpipe", 3, stage_split=EVEN), 2),
    run_of("gpt", pipeline("1f1b"), 6),
    run_of("llama-gqa", pipeline("1f1b", stage_split=given("1-3")), 4, "chunked", layers=4),
    run_of("llama-tied", pipeline("1f1b", 4), 4),
    run_of("gpt", pipeline("interleaved-1f1b"), 4, "chunked"),
    run_of("llama-gqa", pipeline("interleaved-1f1b", 3, virtual_stages=3, stage_split=EVEN), 6),
    run_of("gpt", pipeline("interleaved-zero-bubble", 3, virtual_stages=2), 3),
    run_of("llama-gqa", pipeline("interleaved-zero-bubble", virtual_stages=3), 12, "chunked"),
    run_of("gpt", pipeline("zbv", stage_split=given("1-2-1-2")), 2, layers=6),
    run_of("llama-tied", pipeline("zbv", 3), 12),
    run_of("llama-gqa", pipeline("zbv", 4, stage_split=EVEN), 12, "chunked"),
    run_of("llama-gqa", pipeline("dualpipev"), 4, "chunked"),
    run_of("gpt", pipeline("dualpipev", 3), 12, layers=6),
]
PRODUCTS = [
    run_of("gpt", pipeline("1f1b", dp=2), 3),
    run_of("llama-tied", pipeline("gpipe", dp=2), 2, "chunked"),
    run_of("gpt", pipeline("interleaved-1f1b", dp=2, **recompute("selective")), 2),
    run_of("gpt", pipeline("interleaved-zero-bubble", dp=2), 6),
    run_of("gpt", pipeline("zbv", dp=2), 3),
    run_of("llama-gqa", pipeline("dualpipev", dp=2, **recompute("full")), 6),
    run_of("gpt", pipeline("1f1b", dp=2, zero=1), 3, "chunked"),
    run_of("llama-gqa", pipeline("interleaved-1f1b", dp=2, zero=1, **recompute("full")), 2),
    run_of("llama-tied", pipeline("zbv", dp=2, zero=1), 3),
    run_of("gpt", pipeline("gpipe", fsdp=2, **KEEP), 3),
    run_of("llama-tied", pipeline("1f1b", fsdp=2), 2, "chunked"),
    run_of("llama-gqa", pipeline("interleaved-1f1b", fsdp=2, **recompute("full")), 6),
    run_of("gpt", pipeline("interleaved-zero-bubble", fsdp=2, virtual_stages=3, **KEEP), 6),
    run_of("gpt", pipeline("zbv", fsdp=2, **KEEP), 3),
    run_of("llama-tied", pipeline("dualpipev", fsdp=2, **KEEP, **recompute("every-2")), 6, "chunked"),
    run_of("gpt", pipeline("1f1b", fsdp=2, dp=2), 3),
    run_of("gpt", pipeline("1f1b", dp=2, zero=1), 3),
    run_of("llama-tied", pipeline("zbv", dp=2, zero=1, **recompute("selective")), 2),
]
TENSOR = [
    run_of("gpt", pipeline("1f1b", tp=2), 3, "chunked"),
    run_of("llama-gqa", pipeline("interleaved-1f1b", tp=2, **recompute("full")), 4),
    run_of("llama-gqa", pipeline("interleaved-zero-bubble", tp=2), 4),
    run_of("gpt", pipeline("zbv", tp=2, sequence_parallel=False), 3),
    run_of("llama-gqa", pipeline("dualpipev", tp=2, **recompute("selective")), 4, "chunked"),
    run_of("llama-gqa", pipeline("1f1b", tp=2, fsdp=2), 2),
    run_of("gpt", pipeline("zbv", tp=2, fsdp=2, **KEEP, **recompute("full")), 2),
]
CONTEXT = [
    run_of("gpt", pipeline("1f1b", cp=2), 3, "chunked"),
    run_of("llama-gqa", pipeline("zbv", cp=2), 3),
    run_of("llama-gqa", pipeline("gpipe", cp=2, fsdp=2, context=ContextMethod.ULYSSES), 2),
]
CHECKPOINTED = [
    run_of("gpt", pipeline("gpipe", **recompute("full")), 3),
    run_of("llama-gqa", pipeline("1f1b", **recompute("selective")), 3),
    run_of("gpt", pipeline("interleaved-1f1b", **recompute("every-2")), 2, "chunked"),
    run_of("llama-gqa", pipeline("interleaved-zero-bubble", **recompute("selective")), 2),
    run_of("gpt", pipeline("zbv", **recompute("selective")), 3),
    run_of("llama-gqa", pipeline("zbv", **recompute("full")), 3),
    run_of("llama-gqa", pipeline("dualpipev", **recompute("selective-op")), 4),
]
SINGLE_FORMAT = {"is_double": False, "optimizer": OptimizerKind.SGD, "learning_rate": 0.3}
MIXED = {"is_double": False, "precision": Precision.BF16_MIXED, "learning_rate": 1e-3}
FORMATS = [
    run_of("gpt", pipeline("1f1b"), 2, **SINGLE_FORMAT),
    run_of("llama-gqa", pipeline("dualpipev"), 6, **SINGLE_FORMAT),
    run_of("llama-tied", pipeline("interleaved-zero-bubble", fsdp=2, **KEEP), 2, **SINGLE_FORMAT),
    run_of("gpt", pipeline("zbv"), 2, **MIXED),
    run_of("llama-gqa", pipeline("1f1b", **recompute("full")), 2, "chunked", **MIXED),
    run_of("gpt", pipeline("interleaved-1f1b", dp=2), 2, **MIXED),
    run_of("gpt", pipeline("gpipe", fsdp=2), 2, **MIXED),
    run_of("llama-gqa", pipeline("zbv", fsdp=2, **KEEP), 2, **MIXED),
]


class Runs:
    """Traces of runs; the first that is asked for runs all those on as many ranks."""

    def __init__(self, runs: list[Run]) -> None:
        self.runs = list(dict.fromkeys(runs))
        self.done: dict[Run, Ran[RankTrace]] = {}

    def trace(self, run: Run) -> Trace:
        """The run as one record. Raises what stopped it, if anything did."""
        if run not in self.done:
            ranks = run.case.layout.world_size
            mates = [other for other in self.runs if other.case.layout.world_size == ranks]
            jobs = [partial(record, other.case, double=other.is_double) for other in mates]
            self.done |= zip(mates, run_jobs(ranks, jobs, DEADLINE_S), strict=True)
        return merged(self.done[run].result())
