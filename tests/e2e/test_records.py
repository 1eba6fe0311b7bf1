"""`report` and `bench --resume` on records that are whole, torn, foreign or hostile."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from suite.record import Quantity
from suite.spec import Recipe
from suite.store import RECORDS, EstimateRow, MeasurementRow, RunRow, RunStore
from tests.e2e.commands import document, refusal, run
from tests.e2e.forks import Forks
from tests.unit import report_samples as made

pytestmark = pytest.mark.e2e

VERBS = (("report",), ("bench", "--resume"))


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two cases that ended well; the names in one came from someone who means harm."""
    store = RunStore.create(tmp_path_factory.mktemp("a b"), datetime(2026, 8, 2, tzinfo=UTC))
    results = [made.finished(case, 0.001, 0.5) for case in (made.case("gpt-1m"), made.hostile_case())]
    mappings = tuple(result.case.to_mapping() for result in results)
    store.append(RunRow("2026-08-02", made.HOSTILE.replace("\udcff", ""), mappings, ("run_all.py", "a b", "<i>")))
    for result, mapping in zip(results, mappings, strict=True):
        store.append(EstimateRow(result.case.case_id, mapping, result.memory, result.time))
        assert result.measurement is not None
        store.append(MeasurementRow(mapping, result.measurement))
    return store.folder


@pytest.fixture
def folder(recorded: Path, tmp_path: Path) -> Path:
    """A copy of that run to do harm to."""
    copy = tmp_path / "run 1"
    shutil.copytree(recorded, copy)
    return copy


@pytest.mark.parametrize("verb", VERBS)
def test_a_run_is_reported_again(verb: tuple[str, ...], folder: Path) -> None:
    said = document(run(*verb, str(folder), "--json"))
    assert (said["folder"], said["page"]) == (str(folder), str(folder / "report.html"))
    assert [case["outcome"] for case in said["cases"]] == ["ok", "ok"]
    assert said["summary"]["outcomes"] == {"ok": 2}
    assert {path.name for path in folder.iterdir()} == {RECORDS, "report.html", "report.md", "cases.csv"}


def test_a_records_file_stands_for_its_folder(folder: Path, verbs: Forks) -> None:
    assert document(verbs.run("report", str(folder / RECORDS), "--json"))["folder"] == str(folder)
    assert document(verbs.run("report", ".", "--json", cwd=folder))["folder"] == "."


def test_text_from_outside_is_text_in_every_report(folder: Path, verbs: Forks) -> None:
    done = verbs.run("report", str(folder), FORCE_COLOR="1", COLUMNS="200")
    assert done.returncode == 0
    page, summary = (folder / "report.html").read_text(), (folder / "report.md").read_text()
    for text in (done.stdout, page, summary):
        assert "\x1b[31m" not in text.replace("\x1b[31mfailed", "")
        assert "\u202e" not in text
    assert "<script>alert" not in page
    assert "<script>alert" not in summary
    assert "[red]" in done.stdout  # spelled out, not acted upon
    assert "run_all.py &#39;a b&#39; &#39;&lt;i&gt;&#39;" in page  # the command can be copied into a shell


def test_a_torn_last_line_is_passed_over_and_its_case_is_missing(folder: Path, verbs: Forks) -> None:
    records = folder / RECORDS
    whole = records.read_bytes()
    records.write_bytes(whole[:-50])
    said = document(verbs.run("report", str(folder), "--json"))
    assert [case["outcome"] for case in said["cases"]] == ["ok", "not run"]
    assert records.read_bytes() == whole[:-50]  # reading mends nothing


def _first_line(change: Callable[[dict[str, Any]], object]) -> Callable[[bytes], bytes]:
    """Replace the run row by what `change` makes of it."""

    def harm(whole: bytes) -> bytes:
        first, _, rest = whole.partition(b"\n")
        row = json.loads(first)
        change(row)
        return json.dumps(row).encode() + b"\n" + rest

    return harm


@pytest.mark.parametrize(
    "harm, message",
    [
        (lambda whole: b"", "no row says what was asked for; the run ended before it began"),
        (lambda whole: whole[:100], "no row says what was asked for; the run ended before it began"),
        (lambda whole: whole.partition(b"\n")[2], "no row says what was asked for; the run ended before it began"),
        (lambda whole: b"epoch,loss\n1,2.5\n", "line 1 is not one of Shardscope's records: b'epoch,loss'"),
        (lambda whole: b"\x80\x04\x95pickle", "line 1 is not one of Shardscope's records: b'\\x80\\x04\\x95pickle'"),
        (lambda whole: whole[:100] + b"\n" + whole, "line 1 is not one of Shardscope's records: b'{\"schema\": 1"),
        (
            lambda whole: whole.replace(b'{"schema": 1', b'{"schema": 9', 1),
            "line 1: schema 9; this version understands",
        ),
        (lambda whole: whole.replace(b'"estimate"', b'"guess"', 1), "line 2: kind 'guess' is not known; known: run,"),
        (
            _first_line(lambda row: row["cases"][0]["layout"].update(dp=0)),
            "case 0: layout.dp: must be at least 1, got 0",
        ),
        (_first_line(lambda row: row["cases"][0].update(layuot={})), "case 0: case.layuot: unknown key; did you mean"),
        (_first_line(lambda row: row.update(cases=5)), "line 1: run.cases: expected a list, got 5"),
    ],
)
@pytest.mark.parametrize("verb", VERBS)
def test_records_that_are_not_ours(
    verb: tuple[str, ...], harm: Callable[[bytes], bytes], message: str, folder: Path, verbs: Forks
) -> None:
    records = folder / RECORDS
    records.write_bytes(harm(records.read_bytes()))
    left = records.read_bytes()
    said = refusal(verbs.run(*verb, str(folder), "--json"))
    assert said.startswith(f"{records}: {message}"), said
    assert records.read_bytes() == left  # nothing is lost by asking
    assert not (folder / "report.html").exists()


@pytest.mark.parametrize("verb", VERBS)
def test_a_folder_without_a_run(verb: tuple[str, ...], tmp_path: Path, verbs: Forks) -> None:
    message = f"{tmp_path}: no run is recorded there; expected a folder with records.jsonl"
    assert refusal(verbs.run(*verb, str(tmp_path))) == message
    assert list(tmp_path.iterdir()) == []


def test_a_calibration_that_cannot_be_read_stops_a_run_from_going_on(folder: Path, verbs: Forks) -> None:
    kept = folder / "calibration.json"
    kept.write_text('{"machine": 5}')
    said = refusal(verbs.run("bench", "--resume", str(folder)))
    assert said == f"{kept}: calibration.machine: expected an object with keys, got 5"
    assert verbs.run("report", str(folder)).returncode == 0  # the page needs none


def test_data_that_has_gone_is_told_before_the_run_goes_on(folder: Path, verbs: Forks) -> None:
    gone = made.case("gpt-1m", recipe=Recipe(data="moved/away.txt"))
    records = folder / RECORDS
    harm = _first_line(lambda row: row["cases"].append(gone.to_mapping()))
    records.write_bytes(harm(records.read_bytes()))
    assert refusal(verbs.run("bench", "--resume", str(folder))).startswith(
        "recipe.data: 'moved/away.txt' does not exist; "
    )
    assert len(RunStore.open(folder).rows(MeasurementRow)) == 2  # it may come back: no failure is written down


def test_a_loss_that_is_no_number_is_spelled_out_in_json(folder: Path, verbs: Forks) -> None:
    case = made.case("llama-1m")
    samples = made.series(Quantity.LOSS, [7.1, float("nan")])
    store = RunStore.open(folder)
    store.append(MeasurementRow(case.to_mapping(), made.measured(case, samples)))
    assert document(verbs.run("report", str(folder), "--json"))["cases"][-1]["loss_nats"] == "nan"
    assert verbs.run("report", str(folder)).returncode == 0
