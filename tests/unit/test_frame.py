"""A run as flat rows: every tier with its unit, the same from a notebook, a CSV file and JSON Lines."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pandas as pd
import pytest
from pandas.testing import assert_frame_equal

from reports.compare import CaseResult, Run
from reports.frame import DTYPES, frame, run_frame, write_rows
from run_all import main
from suite.case import case_from
from suite.peers import Figure, Peer, PeerAnswer
from suite.record import UNITS, CacheTerm, Moment, Quantity, Sample, ServingEstimate
from suite.store import EstimateRow, MeasurementRow, PeersRow, RunRow, RunStore, TraceRow
from tests.unit import report_samples as made

pytestmark = pytest.mark.unit

KEYS = ["tier", "quantity", "value", "unit"]
THIRD = 0.1 + 0.2  # needs all of a double's digits


def whole_run(tmp_path: Path) -> Path:
    """A trained case known in every way, a served one, one that was refused: as `bench` records them."""
    trained, later = made.case(), made.case("llama-1m")
    served = case_from({"model": "llama-1m", "workload": {"seq_len": 8}, "serving": {"new_tokens": 4}})
    cases = (trained, served, later)
    store = RunStore.create(tmp_path)
    store.append(RunRow("2026-08-02T10:00:00+00:00", "tiny", tuple(case.to_mapping() for case in cases)))
    memory = (made.estimate({Moment.STEADY: {made.P: 10}}),)
    store.append(EstimateRow(trained.case_id, trained.to_mapping(), memory, made.time_estimate(trained, THIRD)))
    samples = made.memory_samples({Moment.STEADY: {made.P: 10}}) + made.series(Quantity.STEP_TIME, [THIRD, 0.5])
    samples += made.series(Quantity.LOSS, [4.0])
    store.append(MeasurementRow(trained.to_mapping(), made.measured(trained, samples)))
    traced = (Sample(Quantity.MEMORY, 12, 0, 0, made.P, Moment.STEADY),)
    store.append(TraceRow(trained.case_id, trained.to_mapping(), traced))
    answer = PeerAnswer(Peer.DEEPSPEED, Figure(9.0), Figure(None, "says nothing of it"), "estimate(x)", "0.19")
    store.append(PeersRow(trained.case_id, trained.to_mapping(), (answer,)))
    cache = (CacheTerm(made.Component.KEYS, 256, "4 x 64", "made up"),)
    serving = ServingEstimate(cache, 0.25, None, "rates of nobody")
    store.append(EstimateRow(served.case_id, served.to_mapping(), serving=serving))
    refused = made.measured(later, [], made.Outcome.FAILED, reason="ValueError: a, b\nsecond line")
    store.append(MeasurementRow(later.to_mapping(), refused))
    return store.folder


def test_every_tier_is_there_with_its_unit(tmp_path: Path) -> None:
    found = frame(whole_run(tmp_path))
    assert list(found.columns) == list(DTYPES)
    rows = {(tier, quantity): (value, unit) for tier, quantity, value, unit in found[KEYS].itertuples(index=False)}
    assert rows["trace", "memory_bytes"] == (12, "B")
    assert rows["peer", "state_bytes"] == (9, "B")
    assert rows["formula", "cache_bytes"] == (256, "B")
    assert rows["formula", "prefill_seconds"] == (0.25, "s")
    parts = found[found.quantity == "step_part_seconds"]
    assert dict(zip(parts.part, parts.value, strict=True)) == {
        "compute": THIRD * 0.9,
        "exposed_communication": THIRD * 0.1,
    }
    assert set(found.unit.dropna()) == {"B", "s", "tokens/s", "nats a token", "TFLOP/s", "1"}


def test_a_value_that_is_missing_has_a_reason(tmp_path: Path) -> None:
    found = frame(whole_run(tmp_path))
    silent = found[(found.tier == "peer") & (found.quantity == "memory_bytes")].iloc[0]
    assert pd.isna(silent.value)
    assert silent.reason == "says nothing of it"
    ended = found[found.outcome == "failed"].iloc[0]
    assert pd.isna(ended.value)
    assert ended.reason == "ValueError: a, b second line"


def test_a_loss_that_is_no_number_is_missing_and_says_so() -> None:
    case = made.case()
    samples = made.series(Quantity.LOSS, [4.0, float("nan"), float("inf")])
    found = run_frame(Run("r", "now", "s", "bench", {}, (CaseResult(case, measurement=made.measured(case, samples)),)))
    assert found.value.isna().tolist() == [False, True, True]
    assert found.reason.tolist()[1:] == ["the value is nan", "the value is inf"]


def test_every_quantity_has_the_unit_its_name_says() -> None:
    assert set(UNITS) == set(Quantity)
    for quantity, unit in UNITS.items():
        said = next((text for end, text in (("_bytes", "B"), ("_seconds", "s")) if quantity.endswith(end)), unit)
        assert unit == said
        assert (unit == "nats a token") == quantity.endswith("_nats")


def test_both_files_give_the_frame_back_and_plain_readers_agree(tmp_path: Path) -> None:
    """With DTYPES the very frame (a digit beyond 15 may be the reader's); without them the same from either file."""
    for found in (frame(whole_run(tmp_path / "a")), run_frame(made.sample_run())):
        csv, lines = (write_rows(found, tmp_path / f"rows.{end}") for end in ("csv", "jsonl"))
        assert_frame_equal(pd.read_csv(csv, dtype=DTYPES), found, rtol=1e-15, atol=0)
        exact = pd.read_json(lines, lines=True, dtype=DTYPES, precise_float=True)
        assert_frame_equal(exact, found, check_exact=True)
        assert_frame_equal(pd.read_csv(csv), pd.read_json(lines, lines=True), rtol=1e-13, atol=0)


def test_lines_are_json_of_which_every_one_has_every_key(tmp_path: Path) -> None:
    rows = write_rows(run_frame(made.sample_run()), tmp_path / "rows.jsonl").read_text().splitlines()
    for line in rows:
        assert list(json.loads(line)) == list(DTYPES)
        assert not {"NaN", "Infinity", "<NA>"} & set(re.findall(r"[\w<>]+", line))


def test_an_id_of_digits_alone_stays_a_text(tmp_path: Path) -> None:
    found = run_frame(made.sample_run()).head(3).assign(case_id="012345678901").astype(DTYPES)
    csv, lines = (write_rows(found, tmp_path / f"rows.{end}") for end in ("csv", "jsonl"))
    assert pd.read_csv(csv, dtype=DTYPES).case_id.tolist() == ["012345678901"] * 3
    assert pd.read_json(lines, lines=True, dtype=DTYPES).case_id.tolist() == ["012345678901"] * 3


def test_runs_are_put_together_by_name(tmp_path: Path) -> None:
    first, second = whole_run(tmp_path / "a"), whole_run(tmp_path / "b").rename(tmp_path / "b" / "later")
    found = frame(first, second)
    assert found.groupby("run").size().to_dict() == {first.name: len(found) // 2, "later": len(found) // 2}
    assert found.index.is_unique


def test_the_verb_writes_either_file_and_says_what_is_in_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = whole_run(tmp_path)
    assert main(["report", str(run), "--records", str(tmp_path / "rows.csv"), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said == {"records": str(tmp_path / "rows.csv"), "rows": len(frame(run)), "columns": list(DTYPES)}
    assert not (run / "report.html").exists()


@pytest.mark.parametrize(("name", "said"), [("rows.xlsx", ".csv or .jsonl"), ("no/rows.csv", "folder is not there")])
def test_a_file_that_cannot_be_is_refused_in_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, said: str
) -> None:
    run = whole_run(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    assert main(["report", str(run), "--records", str(tmp_path / name)]) == 2
    assert said in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before
