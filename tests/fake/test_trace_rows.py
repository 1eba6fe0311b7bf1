"""A run's traces: asked of one process case by case, recorded, gone on with, and read back beside the formulas."""

from __future__ import annotations

import json
from pathlib import Path

import psutil
import pytest

from memory.trace import distinct_ranks
from memory.trace_asking import DEATHS, record_traces
from parallelism.trace_pass import trace_memory
from reports.export import run_mapping
from reports.load import load_run
from reports.predict import Predictor
from reports.summary import compare_run
from reports.traced import SCALARS
from reports.wording import trace_sentence
from suite.case import Case, case_from
from suite.child import ChildError, talking
from suite.passes import Pass
from suite.record import Moment
from suite.store import RunRow, RunStore, TraceRow

pytestmark = pytest.mark.fake

ANSWERS = "tests.fake.trace_answers"
TIMEOUT_S = 120.0
PASSES = (Pass.MEMORY, Pass.TRACE)
TINY = {"family": "decoder", "name": "tiny", "hidden": 32, "heads": 4, "vocab": 64, "max_positions": 16}


def case_of(seed: int = 0, **layout: int) -> Case:
    stages = layout.get("pp", 1)
    work = {"seq_len": 16, "micro_batch": 1, "micro_batches": stages}
    return case_from({"model": TINY | {"layers": stages}, "layout": layout, "workload": work, "recipe": {"seed": seed}})


def store_of(root: Path, cases: list[Case], passes: tuple[Pass, ...] = PASSES) -> RunStore:
    store = RunStore.create(root)
    store.append(RunRow("now", "memory", tuple(case.to_mapping() for case in cases), passes=passes))
    return store


def traced(store: RunStore, cases: list[Case]) -> list[TraceRow]:
    """All rows of the store, once its cases have been asked about."""
    before = {process.pid for process in psutil.Process().children(recursive=True)}
    record_traces(store, cases, lambda text: None, TIMEOUT_S, ANSWERS)
    assert {process.pid for process in psutil.Process().children(recursive=True)} <= before
    return list(store.rows(TraceRow))


def test_one_process_is_asked_until_it_dies_and_another_goes_on(tmp_path: Path) -> None:
    """Its death is the reason of the case that it died of."""
    cases = [case_of(seed) for seed in (0, 3, 1, 2, 4)]
    first, second, dead, refused, last = traced(store_of(tmp_path, cases), cases)
    assert first.samples[0].value == second.samples[0].value != last.samples[0].value
    assert (dead.samples, dead.reason) == ((), "crashed: ended with status 7: no more memory")
    assert (refused.samples, refused.reason) == ((), "it is 2")


def test_a_run_is_gone_on_with(tmp_path: Path) -> None:
    """What has a row is not asked about again, with samples or without; of what is read back nothing is lost."""
    cases = [case_of(seed) for seed in (2, 0, 3)]
    store = store_of(tmp_path, cases)
    begun = traced(store, cases[:2])
    whole = traced(store, cases)
    assert whole[:2] == begun
    assert [row.case_id for row in whole] == [case.case_id for case in cases]
    results = load_run(store.folder).results
    assert [(result.traced, result.untraced) for result in results] == [(row.samples, row.reason) for row in whole]
    assert results[0].untraced == "it is 2"


def test_what_dies_of_every_case_is_not_started_for_ever(tmp_path: Path) -> None:
    cases = [case_of(1, dp=ranks) for ranks in range(1, DEATHS + 3)]
    said: list[str] = []
    store = store_of(tmp_path, cases)
    record_traces(store, cases, said.append, TIMEOUT_S, ANSWERS)
    assert len(store.rows(TraceRow)) == DEATHS
    assert said[-1] == f"the tracing process died {DEATHS} times in a row; 2 cases are left to --resume"


def test_a_run_that_asks_for_none_has_none(tmp_path: Path) -> None:
    assert traced(store_of(tmp_path, [case_of()], (Pass.MEMORY,)), [case_of()]) == []


def test_a_process_that_says_nothing_is_given_up() -> None:
    with talking("suite.guard_that_is_not_there") as child, pytest.raises(ChildError, match=r"status 1: .*not_there"):
        child.ask({}, TIMEOUT_S)
    with talking("json.tool") as child, pytest.raises(ChildError, match="no answer within 1 s"):  # waits for the end
        child.ask({}, 1.0)


def test_ranks_of_one_kind_are_traced_once() -> None:
    """Data ranks are alike; stages are not, nor are shards of what the ranks do not divide."""
    assert distinct_ranks(case_of(dp=2, fsdp=2)) == (0,)
    assert distinct_ranks(case_of(dp=2, pp=2)) == (0, 2)
    assert distinct_ranks(case_of(fsdp=3)) == (0, 2)


def test_formulas_stand_beside_what_the_tracer_finds(tmp_path: Path) -> None:
    """Two cases through the process itself: one that it traces, one that it refuses."""
    cases = [case_of(fsdp=2), case_of(dp=2, zero=2)]
    store = store_of(tmp_path, cases)
    for case in cases:
        store.append(Predictor(passes=PASSES)(case))
    record_traces(store, cases, lambda text: None, TIMEOUT_S)
    comparison = compare_run(load_run(store.folder))
    fsdp, zero = comparison.cases
    assert [row.moment for row in fsdp.traced] == list(Moment)
    for row in fsdp.traced:
        assert row.difference is not None
        assert abs(row.difference) <= SCALARS
    assert zero.traced == ()
    assert zero.result.untraced.startswith("layout: zero(2) with engine(auto): DeepSpeed's engine goes by numbers")
    assert trace_sentence(comparison).startswith(
        "Traced on fake tensors: 1 of 2 cases (1 cannot be); formula against trace"
    )
    said = json.loads(json.dumps(run_mapping(comparison)))
    assert (said["summary"]["traced_cases"], said["summary"]["trace_rows_beyond_scalars"]) == (1, 0)
    assert said["summary"]["trace_error"]["rows"] == len(Moment)
    assert said["cases"][0]["trace"]["totals_bytes"][0] == {
        "rank": 0,
        "moment": "init",
        "predicted": fsdp.traced[0].predicted,
        "traced": fsdp.traced[0].measured,
    }
    assert said["cases"][1]["trace"] == {"reason": zero.result.untraced, "totals_bytes": []}


def test_worlds_of_one_process_do_not_meet() -> None:
    """Rank 2's meshes equal rank 0's, its groups do not: nothing that torch remembers of one may serve the other."""
    case = case_of(dp=2, fsdp=2)
    of_rank = [[sample.value for sample in trace_memory(case, rank).samples] for rank in (0, 2)]
    assert of_rank[0] == of_rank[1]
