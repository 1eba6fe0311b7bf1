"""Made-up results for the tests of the reports room: small enough to check by hand, or full enough to look at."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from typing import Any

from reports.compare import CaseResult, Run
from suite.case import Case
from suite.layout import Layout, Recompute
from suite.models import preset
from suite.record import (
    Component,
    Measurement,
    MemoryEstimate,
    Moment,
    Outcome,
    Quantity,
    Sample,
    Term,
    TimeEstimate,
)
from suite.spec import AttentionKernel, Precision, Recipe, Workload

HOSTILE = '$x{$<script>alert("x")</script>&amp;\x1b[31m[red]|`*_\u202e\udcff'

P, G, S, A, X, T = (
    Component.PARAMETERS,
    Component.GRADIENTS,
    Component.OPTIMIZER,
    Component.ACTIVATIONS,
    Component.LOSS,
    Component.TRANSIENTS,
)

Table = dict[Moment, dict[Component, int]]


def estimate(table: Table, rank: int = 0) -> MemoryEstimate:
    """An estimate whose terms are the table's cells."""
    return MemoryEstimate(
        tuple(
            Term(component, moment, size, f"{component.value} = {size}", "made up, section 1", rank)
            for moment, row in table.items()
            for component, size in row.items()
        ),
        rank,
    )


def memory_samples(table: Table, rank: int = 0, extra: int = 0) -> list[Sample]:
    """The allocator's total and the components of each moment; `extra` bytes of the total belong to no component."""
    samples = []
    for moment, row in table.items():
        samples.append(Sample(Quantity.MEMORY, sum(row.values()) + extra, rank, moment=moment))
        samples += [Sample(Quantity.MEMORY, size, rank, 0, part, moment) for part, size in row.items()]
    return samples


def series(quantity: Quantity, values: list[float], rank: int = 0) -> list[Sample]:
    """One sample a step."""
    return [Sample(quantity, value, rank, index) for index, value in enumerate(values)]


def case(name: str = "gpt-1m", **parts: Any) -> Case:
    """A case of a tiny preset; parts as Case takes them."""
    return Case(model=preset(name), workload=parts.pop("workload", Workload(seq_len=128, micro_batch=4)), **parts)


def hostile_case() -> Case:
    """A case whose names came from someone who means harm."""
    model = replace(preset("gpt-1m"), name=f"_{HOSTILE}")
    return Case(model, workload=Workload(seq_len=128), recipe=Recipe(data=f"/data/{HOSTILE}.txt"))


def measured(of: Case, samples: list[Sample], outcome: Outcome = Outcome.OK, **rest: Any) -> Measurement:
    """A measurement of that case."""
    return Measurement(of.case_id, outcome, tuple(samples), **rest)


def time_estimate(of: Case, seconds: float) -> TimeEstimate:
    """A time estimate of so many seconds a step, at 40 % model-FLOPs utilisation."""
    parts = {"compute": seconds * 0.9, "exposed_communication": seconds * 0.1}
    return TimeEstimate(seconds, of.tokens_per_step / seconds, 0.02, 0.40, 0.42, parts, "matrix rate of this machine")


def failed(of: Case, outcome: Outcome, reason: str, stderr: str = "") -> CaseResult:
    """A case that left a reason and the last lines of a rank."""
    tails = {0: stderr} if stderr else {}
    memory = tuple(estimate(step_table(of), rank) for rank in range(of.layout.world_size))
    measurement = measured(of, [], outcome, reason=reason, stderr_tails=tails)
    return CaseResult(of, memory, time_estimate(of, 1.0), measurement)


# --- a whole run, to look at -------------------------------------------------------------------------------------


def step_table(of: Case) -> Table:
    """Bytes of a plausible step: not the project's estimator, only something shaped like one."""
    model, work, shards = of.model, of.workload, of.layout.fsdp
    weights = 4 * (model.layers * 12 * model.hidden**2 + model.vocab * model.hidden) // shards
    scores = model.heads * work.seq_len * 6 if work.attention is AttentionKernel.EAGER else 0
    kept = work.micro_batch * work.seq_len * model.layers * (34 * model.hidden + scores)
    kept //= 4 if of.layout.recompute.covers_block(0) else 1
    logits = work.micro_batch * work.seq_len * model.vocab * 8
    bucket = weights if of.layout.dp > 1 else 0
    base = {P: weights, Component.BUFFERS: 4096, S: 2 * weights}
    if bucket:
        base[Component.COMMUNICATION] = bucket
    tokens = {Component.INPUTS: 16 * work.micro_batch * work.seq_len}
    return {
        Moment.INIT: {P: weights, Component.BUFFERS: 4096},
        Moment.FORWARD_PEAK: {**base, **tokens, A: kept, T: kept // 20},
        Moment.AFTER_FORWARD: {**base, **tokens, A: kept},
        Moment.LOSS: {**base, **tokens, A: kept, X: logits, T: logits // 2},
        Moment.BACKWARD_PEAK: {**base, **tokens, A: kept, G: weights // 3, X: logits // 2, T: logits},
        Moment.AFTER_BACKWARD: {**base, **tokens, G: weights},
        Moment.OPTIMIZER_PEAK: {**base, **tokens, G: weights, T: weights // 8},
        Moment.STEADY: dict(base),
    }


def finished(of: Case, off: float, seconds: float, steps: int = 40) -> CaseResult:
    """An `ok` result whose transients are `off` (relative to the total) from the estimate."""
    chance = random.Random(len(of.label))
    table, estimates, samples = step_table(of), [], []
    for rank in range(of.layout.world_size):
        estimates.append(estimate(table, rank))
        real = {moment: dict(row) for moment, row in table.items()}
        for moment in (Moment.FORWARD_PEAK, Moment.LOSS, Moment.BACKWARD_PEAK):
            shift = int(off * sum(real[moment].values()) * (1 - 0.1 * rank))
            real[moment][T] -= shift
        samples += memory_samples(real, rank)
        times = [seconds * (2.0 if step < 2 else 1 + 0.02 * (step % 3 - 1)) for step in range(16)]
        samples += series(Quantity.STEP_TIME, times, rank)
        samples.append(Sample(Quantity.RESIDENT, 5e8, rank))
    curve = [6.2 * math.exp(-step / 12) + 3.1 + 0.12 * math.sin(step * 1.7) for step in range(steps)]
    samples += series(Quantity.LOSS, [loss * (1 + chance.gauss(0, 1e-7)) for loss in curve])
    samples += [Sample(Quantity.VALIDATION_LOSS, curve[step] + 0.1, 0, step) for step in (steps // 2, steps - 1)]
    samples.append(Sample(Quantity.UNIGRAM_ENTROPY, 6.31, 0))
    environment = {"host": "worker", "threads": 1}
    result = measured(of, samples, wall_seconds=31.5, environment=environment)
    return CaseResult(of, tuple(estimates), time_estimate(of, seconds * 0.93), result)


ENVIRONMENT = {
    "python": "3.11.2",
    "torch": "2.13.0",
    "commit": "67c9a7a",
    "cpu": {"model": "Example CPU", "cores": 2, "threads": 1},
    "memory_bytes": 16 * 2**30,
}


def sample_run() -> Run:
    """A suite like the default one: layouts, kernels and precisions that ran, and one case of every other end."""
    recipe = Recipe(steps=40, validation_batches=2)

    def llama(layout: Layout, attention: str = "flash", precision: str = "fp32", micro: int = 8) -> Case:
        kernel = AttentionKernel(attention)
        work = Workload(seq_len=256, micro_batch=micro, precision=Precision(precision), attention=kernel)
        return Case(preset("llama-10m"), layout, work, recipe=recipe)

    full = Layout(recompute=Recompute.parse("full"))
    good = [
        finished(llama(Layout()), 0.0012, 1.31),
        finished(llama(Layout(), "eager"), -0.0034, 1.62),
        finished(llama(full), 0.0021, 1.74),
        finished(llama(Layout(dp=2), micro=4), 0.0045, 0.83),
        finished(llama(Layout(fsdp=2), micro=4), -0.0008, 0.91),
        finished(llama(Layout(fsdp=2, reshard_after_forward=False), micro=4), 0.0071, 0.88),
        finished(llama(Layout(fsdp=4), micro=2), 0.0127, 0.97),
        finished(llama(Layout(), precision="bf16-mixed"), -0.0019, 2.11),
        finished(llama(Layout(dp=2), precision="bf16-mixed", micro=4), 0.0026, 1.21),
        finished(case("gpt-1m", recipe=recipe), 0.0003, 0.09),
    ]
    big = Case(preset("llama-50m"), workload=Workload(seq_len=512, micro_batch=64), recipe=recipe)
    slow = Case(preset("llama-50m"), Layout(dp=2), Workload(seq_len=512), recipe=recipe)
    bad = [
        failed(big, Outcome.OOM, "rank 0: allocation of 7.81 GiB refused", "torch.OutOfMemoryError: out of memory"),
        failed(slow, Outcome.HANG, "no progress for 120 s", "waiting in all_reduce"),
        failed(hostile_case(), Outcome.FAILED, f"ValueError: {HOSTILE}", f"Traceback:\n  {HOSTILE}\nlast line"),
        CaseResult(case("gpt-1m", layout=Layout(dp=4)), (), None, None),
    ]
    return Run(
        name="20260802-101500",
        created="2026-08-02 10:15:00 UTC",
        suite="default",
        command="shardscope bench --suite default",
        environment=ENVIRONMENT,
        results=tuple(good + bad),
    )
