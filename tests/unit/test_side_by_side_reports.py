"""Layouts side by side as tables, figures, JSON, Markdown and a page; what the verb refuses."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
from rich.cells import cell_len
from rich.console import Console

from reports.compare import CaseResult
from reports.side_by_side.figures import group_charts
from reports.side_by_side.mapping import side_by_side_mapping
from reports.side_by_side.markdown import side_by_side_markdown
from reports.side_by_side.tables import group_tables
from reports.side_by_side.text import print_side_by_side
from run_all import main
from suite.case import Case
from suite.record import Outcome
from suite.spec import Workload
from suite.store import EstimateRow, MeasurementRow, RunRow, RunStore
from tests.unit import report_samples as made
from tests.unit.layout_samples import DP, FSDP, TP, case, four, laid, result
from tests.unit.test_page import Outline

pytestmark = pytest.mark.unit


def test_tables_have_the_error_beside_every_measured_number() -> None:
    overview, memory, times, sent = group_tables(four())
    rows = {row[0].text: [cell.text for cell in row] for row in overview.rows}
    assert overview.headings[:4] == ("layout", "step", "error", "IQR")
    assert rows["dp2"][1:4] == ["120.0 ms noisy", "-16.7 %", "20.0 ms"]
    assert rows["pp2-gpipe"][5:7] == ["2.93 KiB", "-70.00 %"]
    assert rows["fsdp2"][7:9] == ["300 B", "exact"]
    assert [row[-1].text for row in memory.rows] == [
        "1.95 KiB exact",
        "2.93 KiB exact",
        "1000 B exact",
        "2.93 KiB -70.00 %",
    ]
    assert times.headings[:4] == ("layout", "predicted", "measured", "error")
    assert [cell.text for cell in times.rows[0][1:6]] == ["100.0 ms", "120.0 ms noisy", "-16.7 %", "90.0 ms", "10.0 ms"]
    assert sent.headings == ("layout", "predicted", "measured", "error", "all reduce")


@pytest.mark.parametrize("width", [80, 120, 160])
def test_the_terminal_keeps_its_width_and_every_layout(width: int) -> None:
    file = io.StringIO()
    group = four()
    print_side_by_side(laid(*(choice.case.result for choice in group.choices)), Console(file=file, width=width))
    lines = file.getvalue().splitlines()
    assert max(cell_len(line) for line in lines) <= width
    for choice in group.choices:
        assert any(choice.name in line for line in lines)


def test_why_a_layout_did_not_end_well_is_said_everywhere() -> None:
    found = laid(result(case(DP), [0.1] * 5, 10), made.failed(case(TP), Outcome.OOM, "rank 1: 8 GiB refused"))
    file = io.StringIO()
    print_side_by_side(found, Console(file=file, width=100))
    for text in (file.getvalue(), side_by_side_markdown(found)):
        assert "tp2: oom: rank 1: 8 GiB refused" in text
    outcomes = [row[-1].text for row in group_tables(found.groups[0])[0].rows]
    assert outcomes == ["ok", "oom"]


def test_figures_say_every_bar_and_point() -> None:
    charts = {chart.title: chart for chart in group_charts(four(), "g")}
    assert list(charts) == ["Peak memory by component", "Step time by part", "Time against memory", "Loss"]
    said = {
        title: [node.text or "" for node in ElementTree.fromstring(chart.svg).iter("title")]
        for title, chart in charts.items()
    }
    assert "measured parameters: 1.95 KiB" in said["Peak memory by component"]
    assert {"predicted compute: 90.0 ms", "measured measured step: 120.0 ms"} <= set(said["Step time by part"])
    assert "dp2: 120.0 ms, 1.95 KiB; predicted 100.0 ms, 1.95 KiB" in said["Time against memory"]
    assert "dp2: 3 at step 1" in said["Loss"]


def test_json_has_both_sides_of_every_layout() -> None:
    group = four()
    said = json.loads(json.dumps(side_by_side_mapping(laid(*(choice.case.result for choice in group.choices)))))
    (found,) = said["groups"]
    assert (found["ranks"], found["global_batch"], found["pareto_front"]["layouts"]) == ([2], 8, ["dp2", "fsdp2"])
    assert found["wins"][0]["winner"] == "dp2"
    assert found["wins"][0]["ties"] == ["tp2"]
    assert found["wins"][1]["prediction_held"] is False
    first = found["layouts"][0]
    assert first["step_seconds"]["predicted"] == 0.1
    assert first["components_bytes"]["parameters"] == {"predicted": 2000, "measured": 2000, "error": 0}
    assert first["predicted_parts_seconds"]["compute"] == pytest.approx(0.09)


def test_markdown_is_short_and_obeys_nobody() -> None:
    model, work = made.hostile_case().model, Workload(seq_len=64, micro_batch=4)
    hostile = [Case(model, layout, work) for layout in (DP, FSDP)]
    text = side_by_side_markdown(laid(*(made.finished(each, 0.01, 0.1) for each in hostile)))
    assert set(re.findall(r"<[^>]*>", text)) == {"<details>", "</details>", "<summary>", "</summary>"}
    assert "commit not recorded" in text
    assert len(text.splitlines()) < 40


# --- the verb --------------------------------------------------------------------------------------------------------


def recorded(folder: Path, *results: CaseResult) -> str:
    """Those results as a run's folder."""
    store = RunStore.create(folder)
    store.append(RunRow("2026-08-02T10:00:00+00:00", "tiny", tuple(each.case.to_mapping() for each in results)))
    for each in results:
        of = each.case.to_mapping()
        store.append(EstimateRow(each.case.case_id, of, each.memory, each.time, traffic=each.traffic))
        if each.measurement:
            store.append(MeasurementRow(of, each.measurement))
    return str(store.folder)


def test_the_verb_prints_one_document_and_writes_both_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = recorded(tmp_path, *(choice.case.result for choice in four().choices))
    page, text = tmp_path / "a.html", tmp_path / "a.md"
    assert main(["compare", "--strategies", run, "--json", "--page", str(page), "--markdown", str(text)]) == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out)["groups"][0]["wins"][0]["winner"] == "dp2"
    assert shown.err.splitlines() == [f"wrote {page}", f"wrote {text}"]
    outline = Outline(page.read_text())  # every tag closed where it should be
    assert outline.tags["svg"] == 4
    assert outline.tags["table"] == 1 + 4  # who wins; all; by component, part, collective
    assert outline.tags["script"] == 1
    assert "| fastest | dp2 |" in text.read_text()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["RUN", "RUN"], "2 given; --strategies takes one"),
        (["nowhere"], "no run is recorded there"),
        (["RUN", "--fail-on", "worse"], "given beside --fail-on"),
        (["RUN", "--across-machines"], "given beside --across-machines"),
        (["RUN", "--page", "no/a.html", "--markdown", "a.md"], "folder is not there"),
        (["RUN", "--page", "a.md", "--markdown", "a.md"], "is the --page file too"),
        (["RUN", "--markdown", "."], "is a folder"),
        (["ONE"], "has one case only"),
        (["TORN"], "is not one of Shardscope's records"),
    ],
)
def test_bad_input_is_a_line_and_nothing_is_written(
    given: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    choices = four().choices
    runs = {
        "RUN": recorded(tmp_path, *(choice.case.result for choice in choices)),
        "ONE": recorded(tmp_path, choices[0].case.result),
        "TORN": recorded(tmp_path, choices[0].case.result),
    }
    (Path(runs["TORN"]) / "records.jsonl").write_text("hello\n")
    before = sorted(tmp_path.rglob("*"))
    assert main(["compare", "--strategies", *(runs.get(word, word) for word in given)]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert len(shown.err.splitlines()) == 1
    assert said in shown.err
    assert sorted(tmp_path.rglob("*")) == before
