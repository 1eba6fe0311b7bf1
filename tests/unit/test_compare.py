"""The join of estimates and measurements, the statistics of a run, loss groups, the DataFrame, and loading."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest

from reports.compare import NOT_RUN, CaseComparison, CaseResult, Run, compare_case
from reports.frame import run_frame
from reports.load import load_run
from reports.losses import LossCurve, spread
from reports.summary import compare_run, errors_of
from suite.layout import Layout
from suite.parse import SpecError
from suite.record import Component, Moment, Outcome, Quantity, Sample
from suite.spec import AttentionKernel, Recipe, Workload
from suite.store import EstimateRow, MeasurementRow, RunRow, RunStore
from tests.unit import report_samples as made

pytestmark = pytest.mark.unit

P, G, S, A, T = made.P, made.G, made.S, made.A, made.T


def compare(predicted: made.Table, measured: made.Table, extra: int = 0) -> CaseComparison:
    case = made.case()
    samples = made.memory_samples(measured, extra=extra)
    return compare_case(CaseResult(case, (made.estimate(predicted),), None, made.measured(case, samples)))


def test_rows_hold_both_sides_of_each_key() -> None:
    found = compare({Moment.LOSS: {P: 100, A: 44}}, {Moment.LOSS: {P: 100, A: 50}})
    total = found.memory(None, 0, Moment.LOSS)
    assert total is not None
    assert (total.predicted, total.measured, total.difference) == (144, 150, -6)
    assert total.error == pytest.approx(-0.04)
    weights = found.memory(P, 0, Moment.LOSS)
    assert weights is not None
    assert weights.is_exact
    assert not total.is_exact


def test_a_component_absent_from_a_known_sum_is_zero_and_not_unknown() -> None:
    found = compare({Moment.LOSS: {P: 100, T: 7}}, {Moment.LOSS: {P: 100, G: 5}})
    transients, gradients = found.memory(T, 0, Moment.LOSS), found.memory(G, 0, Moment.LOSS)
    assert transients is not None
    assert gradients is not None
    assert (transients.predicted, transients.measured) == (7, 0)
    assert (gradients.predicted, gradients.measured) == (0, 5)


def test_components_stay_unknown_where_only_the_total_was_measured() -> None:
    case = made.case()
    samples = [Sample(Quantity.MEMORY, 90, 0, moment=Moment.LOSS)]
    result = CaseResult(case, (made.estimate({Moment.LOSS: {P: 100}}),), None, made.measured(case, samples))
    weights = compare_case(result).memory(P, 0, Moment.LOSS)
    assert weights is not None
    assert weights.measured is None
    assert weights.error is None


def test_bytes_of_no_component_are_a_row_of_their_own() -> None:
    found = compare({Moment.LOSS: {P: 100}}, {Moment.LOSS: {P: 100}}, extra=11)
    row = found.memory(Component.UNEXPLAINED, 0, Moment.LOSS)
    assert row is not None
    assert (row.predicted, row.measured) == (0, 11)


def test_a_moment_only_one_side_knows_is_kept() -> None:
    found = compare({Moment.INIT: {P: 3}}, {Moment.STEADY: {P: 4}})
    init, steady = found.memory(None, 0, Moment.INIT), found.memory(None, 0, Moment.STEADY)
    assert init is not None
    assert steady is not None
    assert (init.predicted, init.measured) == (3, None)
    assert (steady.predicted, steady.measured) == (None, 4)


def test_the_peak_is_the_fullest_rank_and_each_side_names_its_own() -> None:
    case = made.case(layout=Layout(dp=2))
    estimates = (
        made.estimate({Moment.LOSS: {P: 90}, Moment.BACKWARD_PEAK: {P: 99}}, 0),
        made.estimate({Moment.LOSS: {P: 90}, Moment.BACKWARD_PEAK: {P: 99}}, 1),
    )
    samples = made.memory_samples({Moment.LOSS: {P: 80}, Moment.BACKWARD_PEAK: {P: 70}}, 0)
    samples += made.memory_samples({Moment.LOSS: {P: 110}, Moment.BACKWARD_PEAK: {P: 75}}, 1)
    peak = compare_case(CaseResult(case, estimates, None, made.measured(case, samples))).peak
    assert peak.predicted is not None
    assert peak.measured is not None
    assert (peak.predicted.bytes, peak.predicted.rank, peak.predicted.moment) == (99, 0, Moment.BACKWARD_PEAK)
    assert (peak.measured.bytes, peak.measured.rank, peak.measured.moment) == (110, 1, Moment.LOSS)
    assert peak.error == pytest.approx(-0.1)
    assert not peak.is_same_moment


def test_of_equal_moments_the_earlier_is_the_peak() -> None:
    found = compare({Moment.LOSS: {P: 5}}, {Moment.OPTIMIZER_PEAK: {P: 8}, Moment.FORWARD_PEAK: {P: 8}})
    assert found.peak.measured is not None
    assert found.peak.measured.moment is Moment.FORWARD_PEAK


def test_state_rows_are_judged_to_the_byte_where_there_is_something_to_judge() -> None:
    predicted = {Moment.AFTER_BACKWARD: {P: 8, G: 8, S: 17}, Moment.STEADY: {P: 8, G: 0, S: 17}, Moment.LOSS: {P: 9}}
    measured = {Moment.AFTER_BACKWARD: {P: 8, G: 8, S: 16}, Moment.STEADY: {P: 8, G: 0, S: 17}, Moment.LOSS: {P: 8}}
    rows = compare(predicted, measured).state_rows
    # gradients between steps are nothing on both sides, and the loss is not a moment of state: 3 + 2 rows
    assert len(rows) == 5
    assert [(row.component, row.moment) for row in rows if not row.is_exact] == [(S, Moment.AFTER_BACKWARD)]


def steps(case_seconds: list[float], other: list[float], predicted: float = 2.0) -> CaseComparison:
    case = made.case(layout=Layout(dp=2), workload=Workload(seq_len=100, micro_batch=1))
    samples = made.series(Quantity.STEP_TIME, case_seconds) + made.series(Quantity.STEP_TIME, other, rank=1)
    estimate = made.time_estimate(case, predicted)
    return compare_case(CaseResult(case, (), estimate, made.measured(case, samples)))


def test_a_step_takes_as_long_as_its_slowest_rank_and_warm_up_is_dropped() -> None:
    speed = steps([90, 90, 90, 1, 4, 5], [90, 90, 90, 3, 2, 5]).speed
    assert speed.step is not None
    assert (speed.step.count, speed.step.median) == (3, 4)  # of 3, 4, 5
    assert speed.quartiles == (3.5, 4.5)
    assert speed.error == pytest.approx(-0.5)
    assert speed.tokens_per_second == 50  # 2 x 100 tokens in 4 s
    assert speed.mfu == pytest.approx(0.2)  # 40 % was predicted for half the time
    assert speed.is_noisy  # a range of 1 around 4


def test_fewer_steps_than_the_warm_up_say_nothing() -> None:
    speed = steps([1, 1, 1], [1, 1, 1]).speed
    assert speed.step is None
    assert speed.error is None
    assert speed.tokens_per_second is None
    assert speed.mfu is None


def test_what_a_failed_case_left_behind_is_not_taken_for_a_measurement() -> None:
    case = made.case()
    samples = made.memory_samples({Moment.LOSS: {P: 5}}) + made.series(Quantity.LOSS, [3.0])
    measurement = made.measured(case, samples, Outcome.TIMEOUT, reason="ran past 60 s")
    found = compare_case(CaseResult(case, (made.estimate({Moment.LOSS: {P: 6}}),), None, measurement))
    assert (found.status, found.reason, found.is_ok) == ("timeout", "ran past 60 s", False)
    assert found.peak.predicted is not None
    assert found.peak.measured is None
    assert found.curve.training == ()


def test_a_case_that_was_not_run_is_still_a_row() -> None:
    found = compare_case(CaseResult(made.case()))
    assert found.status == NOT_RUN
    assert found.rows == ()


def test_errors_by_hand() -> None:
    errors = errors_of([0.01, -0.03, None, 0.005])
    assert errors is not None
    assert errors.count == 3
    assert errors.mean_absolute == pytest.approx(0.015)
    assert errors.worst == -0.03
    assert errors.bias == pytest.approx(-0.005)
    assert not errors.is_within_band
    assert errors_of([None]) is None


def run_of(*results: CaseResult) -> Run:
    return Run("r", "now", "s", "bench", {}, results)


def test_a_run_is_summed_up_over_the_cases_with_both_sides() -> None:
    def result(name: str, predicted: int) -> CaseResult:
        case = made.case(name)
        samples = made.memory_samples({Moment.STEADY: {P: 200}})
        return CaseResult(case, (made.estimate({Moment.STEADY: {P: predicted}}),), None, made.measured(case, samples))

    bad = made.failed(made.case("llama-10m"), Outcome.OOM, "too big")
    found = compare_run(run_of(result("gpt-1m", 200), result("gpt-10m", 203), bad, CaseResult(made.case("llama-1m"))))
    assert found.peak is not None
    assert found.peak.mean_absolute == pytest.approx(0.0075)
    assert found.peak.worst == pytest.approx(0.015)
    assert found.worst_peak is found.cases[1]
    assert found.outcomes == {"ok": 2, "oom": 1, "not run": 1}
    assert (len(found.finished), len(found.unfinished), len(found.failed)) == (2, 2, 1)
    assert (found.state_exact, len(found.state_rows)) == (1, 2)
    assert list(found.by_moment) == [Moment.STEADY]


def test_distance_of_curves_by_hand() -> None:
    first = LossCurve(((0, 4.0), (1, 2.0), (2, 1.0)))
    second = LossCurve(((0, 4.0), (1, 2.01), (3, 9.0)))
    found = spread([first, second])
    assert found is not None
    assert (found.step, found.steps) == (1, 2)
    assert found.relative == pytest.approx(0.005)
    assert spread([first]) is None
    assert spread([first, LossCurve(((7, 1.0),))]) is None


def test_a_curve_that_broke_does_not_coincide_with_one_that_did_not() -> None:
    found = spread([LossCurve(((0, 4.0),)), LossCurve(((0, math.nan),))])
    assert found is not None
    assert found.relative == math.inf


def test_cases_share_a_loss_group_if_only_the_way_of_computing_differs() -> None:
    def learned(layout: Layout, workload: Workload, recipe: Recipe, losses: list[float]) -> CaseResult:
        case = made.case(layout=layout, workload=workload, recipe=recipe)
        return CaseResult(case, measurement=made.measured(case, made.series(Quantity.LOSS, losses)))

    whole, recipe = Workload(seq_len=64, micro_batch=4), Recipe(steps=2)
    same = [
        learned(Layout(), whole, recipe, [4.0, 2.0]),
        learned(Layout(), replace(whole, attention=AttentionKernel.EAGER), recipe, [4.0, 2.0]),
        learned(Layout(dp=2), replace(whole, micro_batch=2), recipe, [4.0, 2.002]),
        learned(Layout(fsdp=2), replace(whole, micro_batch=1, micro_batches=2), recipe, [4.0, 2.0]),
    ]
    others = [
        learned(Layout(dp=2), whole, recipe, [9.0]),  # twice the global batch
        learned(Layout(), whole, replace(recipe, seed=1), [9.0]),
    ]
    found = compare_run(run_of(*same, *others))
    assert [len(group.cases) for group in found.loss_groups] == [4, 1, 1]
    assert found.loss_spread is not None
    assert found.loss_spread.relative == pytest.approx(0.001)


def test_a_frame_has_every_number_and_every_case() -> None:
    table = {Moment.STEADY: {P: 10, S: 20}}
    case = made.case()
    samples = made.memory_samples(table) + made.series(Quantity.STEP_TIME, [0.5, 0.6])
    good = CaseResult(case, (made.estimate(table),), made.time_estimate(case, 0.5), made.measured(case, samples))
    frame = run_frame(run_of(good, CaseResult(made.case("llama-1m"))))
    # terms, predicted times, their parts, use of the device, memory samples, steps, the case not run
    assert len(frame) == 2 + 2 + 2 + 3 + 3 + 2 + 1
    memory = frame[(frame.quantity == "memory_bytes") & frame.component.notna()]
    side_by_side = memory.pivot_table(index="component", columns="tier", values="value", aggfunc="sum")
    assert side_by_side.loc["optimizer"].to_dict() == {"formula": 20.0, "measure": 20.0}
    assert frame.iloc[-1].model == "llama-1m"
    assert math.isnan(frame.iloc[-1].value)


def test_a_run_is_loaded_from_its_folder(tmp_path: Path) -> None:
    store = RunStore.create(tmp_path)
    first, second = made.case(), made.case("llama-1m")
    asked = (first.to_mapping(), second.to_mapping())
    store.append(RunRow("2026-08-02T10:00:00+00:00", "tiny", asked, ("bench", "a b"), {"cores": 2}))
    for size in (5, 7):
        memory = (made.estimate({Moment.STEADY: {P: size}}),)
        store.append(EstimateRow(first.case_id, first.to_mapping(), memory, made.time_estimate(first, 1.0)))
    measurement = made.measured(first, made.memory_samples({Moment.STEADY: {P: 7}}))
    store.append(MeasurementRow(first.to_mapping(), measurement))
    run = load_run(store.folder)
    assert (run.name, run.suite, run.command) == (store.folder.name, "tiny", "bench 'a b'")
    assert [result.case for result in run.results] == [first, second]
    found = compare_run(run)
    assert found.cases[0].peak.error == 0  # the later estimate counts
    assert found.cases[1].status == NOT_RUN


def test_a_store_that_does_not_say_what_was_asked_for_is_refused(tmp_path: Path) -> None:
    store = RunStore.create(tmp_path)
    with pytest.raises(SpecError, match="no row says what was asked for"):
        load_run(store.folder)
