"""Recurrent models on several ranks: training is the single process's, memory and traffic are the formulas'."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest

from suite.case import Case, case_from
from suite.record import Sample
from tests.distributed import zero_runs  # imports DeepSpeed once, before ranks are forked
from tests.distributed.differences import are_same_bits
from tests.distributed.judgement import differences
from tests.distributed.plans import single_process
from tests.distributed.ranks import run_jobs
from tests.distributed.test_traffic import measure as traffic
from tests.distributed.test_traffic import measured, predicted
from tests.distributed.traces import RankTrace, merged, record
from tests.fake.measured import Beside, measure
from tests.fake.workspace import without_workspace

pytestmark = pytest.mark.distributed
assert zero_runs.CPU.type == "cpu"

#: 2 ranks divide no dimension of the GRU's: its gates are 3 * 33 rows. The LSTM's elements are even on two ranks, for
#: DeepSpeed pads what is not, and its padding is no gradient
LSTM = {"family": "recurrent", "cell": "lstm", "layers": 2, "hidden": 30, "vocab": 102, "tied": True}
GRU = {"family": "recurrent", "cell": "gru", "layers": 2, "hidden": 33, "vocab": 97, "dropout": 0.1}
RECIPE = {"steps": 4, "warmup_steps": 2, "learning_rate": 0.01, "clip_norm": 0.25}
#: beside a loss's scalars, clipping's norm of every sharded parameter, and its parts
SCALARS = 2048


def case_of(model: dict[str, Any], layout: dict[str, Any], micro_batches: int = 1, precision: str = "fp32") -> Case:
    """Eight sequences of 9 tokens a step, over all ranks."""
    ranks = layout.get("dp", 1) * layout.get("fsdp", 1)
    workload = {"seq_len": 9, "micro_batch": 8 // ranks // micro_batches, "micro_batches": micro_batches}
    return case_from({"model": model, "layout": layout, "recipe": RECIPE,
                      "workload": workload | {"precision": precision}})  # fmt: skip


TRAINED = [
    case_of(LSTM, {"dp": 2}, 2),
    case_of(GRU, {"dp": 2, "recompute": "full"}),
    case_of(GRU, {"fsdp": 2}, 2),
    case_of(LSTM, {"fsdp": 2, "recompute": "full"}),
    case_of(LSTM, {"dp": 2, "zero": 1, "engine": "torch"}),
]
STAGES = [
    case_of(model, {"dp": 2, "zero": stage, "bucket_mib": 1}) for stage, model in ((1, LSTM), (2, LSTM), (3, GRU))
]
#: DeepSpeed's last: its stage 3 replaces torch's linear for good
SIZED = [
    *TRAINED,
    case_of(LSTM, {"dp": 2}, precision="bf16-mixed"),
    case_of(GRU, {"fsdp": 2, "recompute": "full"}, precision="bf16-mixed"),
    case_of(LSTM, {"fsdp": 2}, 2, precision="bf16"),
    *STAGES,
    case_of(LSTM, {"dp": 2, "zero": 3, "bucket_mib": 1, "recompute": "full"}, 2, precision="bf16-mixed"),
]  # fmt: skip


@pytest.fixture(scope="module")
def alone() -> dict[Case, tuple[RankTrace, ...]]:
    """The single process's runs, in fp64; of DeepSpeed's cases, which stay in fp32, in fp32. And checkpointed ones."""
    jobs = {single_process(case): partial(record, single_process(case), double=True) for case in TRAINED}
    checked = case_of(LSTM, {"recompute": "full"})
    jobs[checked] = partial(record, checked, double=True)
    return {case: run.result() for case, run in zip(jobs, run_jobs(1, list(jobs.values()), 60.0), strict=True)}


Found = tuple[RankTrace | None, Beside, list[Sample]]


@pytest.fixture(scope="module")
def runs() -> dict[Case, tuple[Found, ...]]:
    """Every case's training, memory and traffic on two ranks, in one fork."""
    with without_workspace():  # the ranks are forked inside, and inherit it
        found = run_jobs(2, [partial(_run, case) for case in SIZED], deadline_s=120.0)
    return {case: run.result() for case, run in zip(SIZED, found, strict=True)}


def _run(case: Case, rank: int) -> Found:
    trace = record(case, rank, double=True) if case in TRAINED else None
    trace = zero_runs.record_zero(case, rank) if case in STAGES else trace
    return trace, measure(case, rank), traffic(case, rank)


def _traces(found: tuple[Found, ...]) -> tuple[RankTrace, ...]:
    return tuple(trace for trace, _, _ in found if trace is not None)


@pytest.mark.parametrize("case", TRAINED, ids=lambda case: f"{case.model.hidden}-{case.label}")
def test_layouts_compute_what_one_process_computes(
    case: Case, runs: dict[Case, tuple[Found, ...]], alone: dict[Case, tuple[RankTrace, ...]]
) -> None:
    assert not differences(merged(_traces(runs[case])), merged(alone[single_process(case)]), case, is_double=True)


@pytest.mark.parametrize("case", STAGES, ids=lambda case: case.label)
def test_zero_stages_compute_what_one_process_computes(case: Case, runs: dict[Case, tuple[Found, ...]]) -> None:
    single = single_process(case)
    wanted = run_jobs(1, [partial(record, single)], 60.0)[0].result()
    assert not differences(merged(_traces(runs[case])), merged(wanted), case, is_double=False)


def test_checkpointing_changes_no_bit(alone: dict[Case, tuple[RankTrace, ...]]) -> None:
    case = case_of(LSTM, {"recompute": "full"})
    assert are_same_bits(merged(alone[case]), merged(alone[single_process(case)]))


@pytest.mark.parametrize("case", SIZED, ids=lambda case: f"{case.model.hidden}-{case.label}")
def test_every_moment_and_every_byte_sent_is_predicted(case: Case, runs: dict[Case, tuple[Found, ...]]) -> None:
    for rank, (_, memory, samples) in enumerate(runs[case]):
        assert not memory.states_off(), f"rank {rank}"
        assert not memory.totals_off(SCALARS), f"rank {rank}"
        assert not memory.components_off(allowed=SCALARS), f"rank {rank}"
        assert measured(samples) == predicted(case, rank), f"rank {rank}"
