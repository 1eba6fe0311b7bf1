"""A recorded routing: from samples to estimates of the rows that ranks received, beside what was assumed before."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from memory.estimate import MemoryModel
from reports.load import load_run
from reports.predict import Predictor
from reports.routed import record_routed
from reports.summary import compare_run
from reports.wording import routing_sentence
from suite.case import Case, case_from
from suite.collectives import Collective, tally
from suite.passes import Pass
from suite.received import RoutedAs, Rows, mean_rows, received_rows, received_samples, routing_of
from suite.record import Measurement, Moment, Outcome, Quantity, Sample
from suite.store import EstimateRow, MeasurementRow, RunRow, RunStore
from suite.units import percent_text

pytestmark = pytest.mark.unit

HIDDEN, EXPERTS, TOP_K = 32, 4, 2
MODEL = {"layers": 2, "hidden": HIDDEN, "heads": 4, "kv_heads": 2, "ffn": 64, "vocab": 97, "max_positions": 64,
         "dense_layers": 1, "experts": {"count": EXPERTS, "top_k": TOP_K, "ffn": 48}}  # fmt: skip
SEQ_LEN, BATCH = 32, 2
SENT = SEQ_LEN * BATCH * TOP_K  # rows of a rank in a micro-batch
PASSES = (Pass.MEMORY, Pass.TRAFFIC)


def case_of(micro_batches: int = 2, **layout: int) -> Case:
    """fp32 on the CPU; block 0 has no experts."""
    work = {"seq_len": SEQ_LEN, "micro_batch": BATCH, "micro_batches": micro_batches, "precision": "fp32"}
    return case_from({"model": MODEL, "layout": {"ep": 2} | layout, "workload": work})


#: of rank 0, each micro-batch's; rank 1 gets the rest
IN_MEMORY, IN_TRAFFIC = (SENT - 20, SENT + 50), (SENT + 7, SENT - 30)


def rows_of(received: Sequence[int]) -> tuple[tuple[Rows, ...], tuple[Rows, ...]]:
    """Both ranks' rows, of what the first receives: together what both send."""
    return tuple((0, rows) for rows in received), tuple((0, 2 * SENT - rows) for rows in received)


def samples() -> list[Sample]:
    """What the two passes record on both ranks."""
    found: list[Sample] = []
    for heard_in, received in ((Pass.MEMORY, IN_MEMORY), (Pass.TRAFFIC, IN_TRAFFIC)):
        for rank, rows in enumerate(rows_of(received)):
            found += received_samples(rows, rank, heard_in)
    return found


def test_what_was_heard_in_the_last_step_comes_back_from_samples() -> None:
    """Three steps of two micro-batches; each pass's samples are its own."""
    case = case_of()
    assert received_rows(case, {1: [1, 2, 3, 4, 5, 6]}) == ((0, 5), (0, 6))
    for heard_in, received in ((Pass.MEMORY, IN_MEMORY), (Pass.TRAFFIC, IN_TRAFFIC)):
        assert routing_of(case, samples(), heard_in) == dict(enumerate(rows_of(received)))
    assert mean_rows(((0, 5), (0, 8))) == (0, 7)


def test_every_micro_batch_has_its_own_rows() -> None:
    """Levels are of the last micro-batch. Gradients are there from the end of the first on, so the highest instant is
    the second's, unless what the first received outweighs them."""
    case, low, high = case_of(), (0, SENT - 20), (0, SENT + 50)

    def model(*rows: Rows) -> MemoryModel:
        return MemoryModel(case, received={0: rows})

    up, down, both, none = model(low, high), model(high, low), model(high, high), model(low, low)
    assert up.estimate().by_moment == both.estimate().by_moment
    after = Moment.AFTER_FORWARD
    assert down.estimate().by_moment[after] == none.estimate().by_moment[after] != up.estimate().by_moment[after]
    assert none.peak_bytes() == down.peak_bytes() < up.peak_bytes()
    assert model((0, 100 * SENT), low).peak_bytes() > up.peak_bytes()


def test_a_run_is_estimated_again_for_the_routing_that_it_recorded(tmp_path: Path) -> None:
    case, predict = case_of(), Predictor(passes=PASSES)
    store = RunStore.create(tmp_path)
    store.append(RunRow("now", "one case", (case.to_mapping(),), passes=PASSES))
    store.append(predict(case))
    found = MemoryModel(case, received=routing_of(case, samples(), Pass.MEMORY))
    measured = [Sample(Quantity.MEMORY, found.peak_bytes(rank), rank, moment=Moment.BACKWARD_PEAK) for rank in (0, 1)]
    measurement = Measurement(case.case_id, Outcome.OK, (*measured, *samples()))
    store.append(MeasurementRow(case.to_mapping(), measurement))
    for _ in range(2):  # the second finds nothing left
        record_routed(store, [case], predict, lambda text: pytest.fail(text))
    before, after = store.rows(EstimateRow)
    assert (before.routing, after.routing) == (RoutedAs.ASSUMED, RoutedAs.RECORDED)
    for traffic, rows in zip(after.traffic, rows_of(IN_TRAFFIC), strict=True):
        # of each micro-batch: counts of experts; rows sent and received once forward, once back
        by_hand = sum(EXPERTS * 8 + 2 * (SENT + came) * HIDDEN * 4 for _, came in rows)
        assert tally(traffic.messages)[Collective.ALL_TO_ALL].payload == by_hand
    comparison = compare_run(load_run(store.folder))
    assert comparison.cases[0].peak.error == 0
    assumed, recorded = (max(memory.peak_bytes for memory in row.memory) for row in (before, after))
    assert assumed != recorded
    assert f"an error of {percent_text(assumed / recorded - 1, 4, signed=True)}" in routing_sentence(comparison)


def test_a_run_without_a_recorded_routing_is_not_estimated_again(tmp_path: Path) -> None:
    case, predict = case_of(), Predictor(passes=PASSES)
    store = RunStore.create(tmp_path)
    store.append(RunRow("now", "one case", (case.to_mapping(),), passes=PASSES))
    store.append(predict(case))
    for outcome, of in ((Outcome.OK, ()), (Outcome.FAILED, tuple(samples()))):
        store.append(MeasurementRow(case.to_mapping(), Measurement(case.case_id, outcome, of)))
    record_routed(store, [case], predict, lambda text: pytest.fail(text))
    assert len(store.rows(EstimateRow)) == 1
    assert routing_sentence(compare_run(load_run(store.folder))) == ""
