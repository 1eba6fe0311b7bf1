"""BERT on several ranks: training is the single process's, memory and traffic are the formulas'.

Rows are padded and have unequally many labels, so that a mean of the ranks' means would not do.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest

from suite.case import Case, case_from
from suite.layout import Engine, Layout, Recompute
from suite.models.bert import BertSpec, Masking
from suite.spec import AttentionKernel, LossKernel
from tests.distributed import zero_runs  # imports DeepSpeed once, before ranks are forked
from tests.distributed.judgement import differences
from tests.distributed.plans import NUMERICS, single_process, trained
from tests.distributed.ranks import run_cases, run_jobs
from tests.distributed.test_traffic import measure as traffic
from tests.distributed.test_traffic import measured, predicted
from tests.distributed.traces import RankTrace, merged, rank_batch, record
from tests.fake.measured import Beside, measure
from tests.fake.workspace import without_workspace

pytestmark = pytest.mark.distributed

FLASH, EAGER = AttentionKernel
PLAIN, CHUNKED = LossKernel
SPEC = BertSpec(layers=2, hidden=34, heads=2, ffn=70, vocab=101, max_positions=17)
SPANS = BertSpec(layers=2, hidden=36, heads=4, ffn=50, vocab=97, max_positions=16, masking=Masking.SPANS, dropout=0.1)
FULL, CORE, OPERATORS = (Recompute.parse(name) for name in ("full", "selective", "selective-op"))
NO_SP: dict[str, Any] = {"tp": 2, "sequence_parallel": False}


def trial(spec: BertSpec, layout: Layout, micro_batches: int, attention: AttentionKernel, loss: LossKernel) -> Case:
    """A case in fp64, which leaves no room for mistakes."""
    return trained(spec, layout, NUMERICS["fp64-adamw"], 8, micro_batches, attention, loss)


TRIALS = [
    trial(SPEC, Layout(dp=2), 2, FLASH, PLAIN),
    trial(SPANS, Layout(dp=2, recompute=OPERATORS), 1, EAGER, CHUNKED),
    trial(SPEC, Layout(fsdp=2, recompute=FULL), 2, EAGER, PLAIN),
    trial(SPEC, Layout(dp=2, zero=1, engine=Engine.TORCH), 1, FLASH, PLAIN),
    trial(SPEC, Layout(**NO_SP, recompute=CORE), 2, FLASH, PLAIN),
    trial(SPANS, Layout(**NO_SP, recompute=FULL), 1, EAGER, CHUNKED),
]
STAGES = [
    trained(SPEC, Layout(dp=2, zero=stage, bucket_mib=1), NUMERICS["fp32-sgd"], 8, 2, FLASH, PLAIN)
    for stage in (1, 2, 3)
]


@pytest.fixture(scope="module")
def traces() -> dict[Case, tuple[RankTrace, ...]]:
    """Every trial's run, and the single process's."""
    cases = list(dict.fromkeys([*TRIALS, *map(single_process, TRIALS)]))
    return run_cases(cases, partial(record, double=True), deadline_s=100.0)


@pytest.mark.parametrize("case", TRIALS, ids=lambda case: case.label)
def test_layouts_compute_what_one_process_computes(case: Case, traces: dict[Case, tuple[RankTrace, ...]]) -> None:
    assert not differences(merged(traces[case]), merged(traces[single_process(case)]), case, is_double=True)


def test_the_trials_ranks_have_unequally_many_labels_and_some_padding() -> None:
    case = TRIALS[0]
    batches = [rank_batch(case, rank, step) for rank in range(2) for step in range(3)]
    assert any(weight != pytest.approx(1.0) for batch in batches for weight in batch.weights)
    assert any((batch.extras["lengths"] < case.workload.seq_len).any() for batch in batches)


def test_zero_stages_compute_what_one_process_computes() -> None:
    jobs = [partial(zero_runs.record_zero, case) for case in STAGES]
    runs = run_jobs(2, jobs, deadline_s=100.0)
    alone = merged(run_cases([single_process(STAGES[0])], record, deadline_s=60.0)[single_process(STAGES[0])])
    for case, run in zip(STAGES, runs, strict=True):
        assert not differences(merged(run.result()), alone, case), case.label


MODEL = {"family": "bert", "layers": 2, "hidden": 92, "heads": 4, "ffn": 366, "vocab": 301, "max_positions": 128}


def held(layout: dict[str, Any], **workload: Any) -> Case:
    """A case whose memory is measured."""
    sizes = {"seq_len": 40, "micro_batch": 3, "precision": "bf16-mixed"}
    return case_from({"model": MODEL, "layout": layout, "workload": sizes | workload})


MEASURED = [
    held({"dp": 2}, micro_batches=2),
    held({"fsdp": 2, "recompute": "full"}, attention="eager"),
    held({"fsdp": 2}, precision="fp32", micro_batches=2),
    *(held({"dp": 2, "zero": stage, "bucket_mib": 1}, micro_batches=2) for stage in (1, 2, 3)),
    held(NO_SP | {"recompute": "selective"}, attention="eager"),
]


@pytest.fixture(scope="module")
def memory() -> dict[Case, tuple[Beside, ...]]:
    """Every case's memory, predicted and measured, on every rank."""
    with without_workspace():  # the ranks are forked inside, and inherit it
        return run_cases(MEASURED, measure, deadline_s=100.0)


@pytest.mark.parametrize("case", MEASURED, ids=lambda case: case.label)
def test_every_moment_is_predicted_on_every_rank(case: Case, memory: dict[Case, tuple[Beside, ...]]) -> None:
    for rank, found in enumerate(memory[case]):
        assert not found.states_off(), f"rank {rank}"
        assert not found.totals_off(2048), f"rank {rank}"


SHORT = {"model": MODEL, "workload": {"seq_len": 16, "micro_batch": 3}}
SENT = [case_from(SHORT | {"layout": layout}) for layout in ({"dp": 2}, {"fsdp": 2}, NO_SP)]


def test_what_is_sent_is_the_formulas_to_the_byte() -> None:
    for case, ranks in run_cases(SENT, traffic, deadline_s=60.0).items():
        for rank, samples in enumerate(ranks):
            assert measured(samples) == predicted(case, rank), f"{case.label}, rank {rank}"
