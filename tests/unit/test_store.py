"""The store: rows come back exactly, a writer may be killed at any byte, and what is not ours is refused."""

from __future__ import annotations

import json
import math
import pickle
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from suite.case import case_from
from suite.collectives import Collective
from suite.parse import SpecError
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
from suite.store import EstimateRow, MeasurementRow, Row, RunRow, RunStore, TraceRow, decode, encode

pytestmark = pytest.mark.unit

RUN = RunRow(created="2026-11-22T01:30:00+00:00", suite="smoke", cases=({"model": "x"},), command=("bench", "--all"))
ESTIMATE = EstimateRow(
    case_id="abc",
    case={"model": "x"},
    memory=(MemoryEstimate((Term(Component.LOSS, Moment.LOSS, 4.0, "4 b s V", "section 2", rank=1),), rank=1),),
    time=TimeEstimate(0.5, 1000.0, None, 0.25, None, {"compute": 0.5}, "calibrated"),
)
MEASURED = MeasurementRow(
    case={"model": "x"},
    measurement=Measurement(
        "abc",
        Outcome.FAILED,
        samples=(Sample(Quantity.MEMORY, 7.0, 1, 2, Component.LOSS, Moment.LOSS),),
        reason="rank 1: ValueError: no [b]bold[/b] \u2028 words",
        wall_seconds=1.25,
        stderr_tails={1: "one\ntwo", 10: "ten"},
        environment={"cores": 2, "git": {"commit": "f00", "dirty": None}},
    ),
)


@pytest.fixture
def store(tmp_path: Path) -> RunStore:
    return RunStore.create(tmp_path / "runs")


# --- round trip ---

text = st.text(max_size=20)  # surrogates included
floats = st.floats(allow_nan=False)
finite = st.floats(allow_nan=False, allow_infinity=False)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | finite | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=8,
)
mappings = st.dictionaries(text, json_values, max_size=3)
samples = st.builds(
    Sample,
    st.sampled_from(Quantity),
    floats,
    st.integers(0, 64),
    st.integers(0, 99),
    st.none() | st.sampled_from(Component),
    st.none() | st.sampled_from(Moment),
    st.none() | st.sampled_from(Collective),
)
terms = st.builds(Term, st.sampled_from(Component), st.sampled_from(Moment), floats, text, text, st.integers(0, 9))
memory = st.builds(MemoryEstimate, st.lists(terms, max_size=3).map(tuple), st.integers(0, 9))
rates = st.none() | floats
times = st.builds(TimeEstimate, rates, rates, rates, rates, rates, st.dictionaries(text, floats, max_size=3), text)
measurements = st.builds(
    Measurement,
    text,
    st.sampled_from(Outcome),
    st.lists(samples, max_size=4).map(tuple),
    text,
    floats,
    st.dictionaries(st.integers(0, 2000), text, max_size=3),
    mappings,
)
rows = st.one_of(
    st.builds(
        RunRow, text, text, st.lists(mappings, max_size=3).map(tuple), st.lists(text, max_size=3).map(tuple), mappings
    ),
    st.builds(EstimateRow, text, mappings, st.lists(memory, max_size=3).map(tuple), st.none() | times, text),
    st.builds(MeasurementRow, mappings, measurements),
    st.builds(TraceRow, text, mappings, st.lists(samples, max_size=4).map(tuple), text),
)


@given(rows)
@settings(max_examples=100, deadline=None)
def test_any_row_comes_back_exactly(row: Row) -> None:
    line = encode(row)
    assert line.count(b"\n") == 1
    assert line.isascii()
    assert decode(line, Path("x"), 1) == row


def test_rows_come_back_in_order(store: RunStore) -> None:
    assert store.read() == ()
    for row in (RUN, ESTIMATE, MEASURED):
        store.append(row)
    assert store.read() == (RUN, ESTIMATE, MEASURED)
    assert RunStore.open(store.folder).read() == (RUN, ESTIMATE, MEASURED)
    assert RunStore.open(store.path) == store
    assert store.rows(MeasurementRow) == (MEASURED,)


def test_a_loss_that_is_no_number_is_kept_as_standard_json(store: RunStore) -> None:
    values = (math.nan, math.inf, -math.inf)
    readings = tuple(Sample(Quantity.LOSS, value, 0, step) for step, value in enumerate(values))
    store.append(MeasurementRow({}, Measurement("a", Outcome.OK, readings)))
    assert "NaN" not in store.path.read_text()
    assert "Infinity" not in store.path.read_text()
    [row] = store.rows(MeasurementRow)
    assert math.isnan(row.measurement.samples[0].value)
    assert [sample.value for sample in row.measurement.samples[1:]] == [math.inf, -math.inf]


def test_a_line_begins_with_its_schema_and_kind(store: RunStore) -> None:
    store.append(RUN)
    assert store.path.read_bytes().startswith(b'{"schema": 1, "kind": "run", "created": "2026-11-22T01:30:00+00:00"')


def test_a_case_is_built_from_its_row(store: RunStore) -> None:
    case = case_from({"model": {"layers": 1}, "layout": {"dp": 2}})
    row = EstimateRow(case.case_id, json.loads(json.dumps(case.to_mapping())))
    assert store.case_of(row) == case
    with pytest.raises(SpecError, match=r"records\.jsonl: model: 'x' is not a preset"):
        store.case_of(ESTIMATE)


# --- names ---


@pytest.fixture
def elsewhere() -> Iterator[None]:
    """A machine in another time zone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TZ", "Asia/Tokyo")
        time.tzset()
        yield
    time.tzset()


@pytest.mark.usefixtures("elsewhere")
def test_a_run_is_named_by_its_time_in_utc(tmp_path: Path) -> None:
    local = datetime(2026, 11, 22, 3, 30, 0, tzinfo=timezone(timedelta(hours=2)))
    names = [RunStore.create(tmp_path, local).folder.name for _ in range(3)]
    assert names == ["20261122-013000", "20261122-013000-2", "20261122-013000-3"]
    assert RunStore.create(tmp_path, datetime(2026, 11, 22, 1, 30, 1, tzinfo=UTC)).folder.name == "20261122-013001"


# --- torn writes ---


def test_a_writer_killed_at_any_byte_loses_only_its_own_row(store: RunStore) -> None:
    first, last = encode(RUN), encode(MEASURED)
    for kept in range(len(last)):
        store.path.write_bytes(first + last[:kept])
        is_whole = kept == len(last) - 1  # only the line's end is missing
        before = (RUN, MEASURED) if is_whole else (RUN,)
        assert store.read() == before, kept
        store.append(ESTIMATE)
        assert store.read() == (*before, ESTIMATE), kept
        assert store.path.read_bytes().count(b"\n") == len(before) + 1


def test_a_writer_killed_in_its_first_row(store: RunStore) -> None:
    line = encode(RUN)
    for kept in range(len(line) - 1):
        store.path.write_bytes(line[:kept])
        assert RunStore.open(store.folder).read() == (), kept
    store.append(RUN)
    assert store.read() == (RUN,)


# --- refusals ---


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(SpecError) as refused:
        RunStore.open(tmp_path / "none")
    assert str(refused.value) == f"{tmp_path}/none: no run is recorded there; expected a folder with records.jsonl"


def _refusal(store: RunStore, content: bytes) -> str:
    store.path.write_bytes(content)
    with pytest.raises(SpecError) as refused:
        RunStore.open(store.folder)
    message = str(refused.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("schema", [2, "1", None, 0])
def test_a_foreign_schema(store: RunStore, schema: Any) -> None:
    line = json.dumps({"schema": schema, "kind": "run"}).encode() + b"\n"
    expected = f"{store.path}: line 1: schema {schema!r}; this version understands schema 1"
    assert _refusal(store, line) == expected
    assert _refusal(store, line[:-1]) == expected


@pytest.mark.parametrize(
    "content", [b"step,loss\n1,2\n", b"step,loss", b"[1, 2]\n", b"{}\n", b"\n", pickle.dumps({"schema": 1}), b"\xff\n"]
)
def test_a_file_that_is_not_ours(store: RunStore, content: bytes) -> None:
    start = f"{store.path}: line 1 is not one of Shardscope's records: "
    assert _refusal(store, content).startswith(start)


def test_a_file_that_is_not_ours_is_not_written_to(store: RunStore) -> None:
    store.path.write_bytes(b"step,loss")
    with pytest.raises(SpecError, match="line 1 is not one of Shardscope's records"):
        store.append(RUN)
    assert store.path.read_bytes() == b"step,loss"


def test_a_damaged_line_in_the_middle(store: RunStore) -> None:
    run = encode(RUN)
    assert _refusal(store, run + run[:20] + b"\n" + run).startswith(f"{store.path}: line 2 is damaged: ")
    assert _refusal(store, run + b"\n" + run).startswith(f"{store.path}: line 2 is damaged: ")


def test_a_row_of_unknown_form(store: RunStore) -> None:
    run = encode(RUN)
    kind = _refusal(store, run + b'{"schema": 1, "kind": "note"}\n')
    assert kind == f"{store.path}: line 2: kind 'note' is not known; known: run, estimate, measurement, peers, trace"
    key = _refusal(store, run + run.replace(b'"suite"', b'"suites"'))
    assert key == f"{store.path}: line 2: run.suites: unknown key; did you mean suite?"
    value = _refusal(store, run + encode(MEASURED).replace(b'"failed"', b'"lost"'))
    assert value.startswith(f"{store.path}: line 2: measurement.measurement.outcome: 'lost' is not known; ")
