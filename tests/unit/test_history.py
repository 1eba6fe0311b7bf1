"""`report --history`: runs in order, by case and machine; changes marked where the commit changes."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from run_all import main
from suite.layout import Layout
from tests.unit import report_samples as made
from tests.unit.regress_samples import TEN, scaled
from tests.unit.run_stores import ran, write_run

pytestmark = pytest.mark.unit

ONE, TWO = made.case(), made.case(layout=Layout(dp=2))
DAYS = [f"2026-11-{day:02d}T10:00:00+00:00" for day in range(1, 20)]


def document(capsys: pytest.CaptureFixture[str], *words: str) -> Any:
    assert main(["report", "--history", *words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def points(said: Any, case_id: str, quantity: int = 0) -> list[Any]:
    return next(each["points"] for each in said["quantities"][quantity]["series"] if each["case_id"] == case_id)


def test_a_commit_that_slowed_a_case_is_marked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Runs are written out of order; commit c takes 20 % longer in one case and d takes it back."""
    for day, commit, factor in ((3, "c", 1.2), (0, "a", 1.0), (2, "b", 1.004), (4, "d", 1.0), (1, "a", 1.003)):
        both = {ONE: [ran(ONE, scaled(factor))], TWO: [ran(TWO, scaled(2))]}
        write_run(tmp_path, both, commit, DAYS[day])
    said = document(capsys, str(tmp_path))
    found = points(said, ONE.case_id)
    assert [each["commit"][0] for each in found] == list("aabcd")
    assert [each["verdict"] for each in found] == [None, None, "same", "worse", "improved"]
    assert [each["verdict"] for each in points(said, TWO.case_id)] == [None, None, "same", "same", "same"]
    assert found[3]["change"] == pytest.approx(1.2 / 1.004 - 1)
    # quartiles of ten by hand: places 2.25 and 6.75 of 0.996 0.997 0.998 0.99 ... 1.01
    low, high = found[0]["quartiles"]
    assert (low, high) == (pytest.approx(0.99725), pytest.approx(1.00275))
    assert main(["report", "--history", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "worse at cccccccccccc: +19.52 %" in shown
    assert "▁▁▁█▁" in shown


def test_runs_of_one_commit_tell_what_launches_differ_by(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two runs of a clean commit lie 30 % apart: 20 % more at the next is no change. Of a commit with files that differ
    nobody knows whether they are the same code."""
    for sign, verdicts in (("", [None, None, "noisy"]), ("+", [None, "worse", "improved"])):
        root = tmp_path / f"runs{sign}"
        for day, (commit, factor) in enumerate(((f"a{sign}", 1.0), (f"a{sign}", 1.3), ("b", 1.2))):
            write_run(root, {ONE: [ran(ONE, scaled(factor))]}, commit, DAYS[day])
        found = points(document(capsys, str(root)), ONE.case_id)
        assert [each["verdict"] for each in found] == verdicts


def test_machines_are_kept_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for day, cpu in enumerate(("One CPU", "Other CPU", "One CPU")):
        write_run(tmp_path, {ONE: [ran(ONE, scaled(1 + day))]}, "abc"[day], DAYS[day], cpu=cpu)
    said = document(capsys, str(tmp_path))
    series = said["quantities"][0]["series"]
    assert [[point["median"] for point in each["points"]] for each in series] == [
        [pytest.approx(1.0), pytest.approx(3.0)],
        [pytest.approx(2.0)],
    ]
    assert any("cpu One CPU" in fact for fact in series[0]["machine"])


def test_what_cannot_be_read_is_told_and_passed_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path, {ONE: [ran(ONE, TEN)]}, "", DAYS[0])
    (tmp_path / "notes").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "records.jsonl").write_text("{}\n", encoding="utf-8")
    (tmp_path / "a file").write_text("x", encoding="utf-8")
    assert main(["report", "--history", str(tmp_path), "--json"]) == 0
    heard = capsys.readouterr()
    said = json.loads(heard.out)
    assert heard.err.count("not read: ") == heard.err.count("\n") == len(said["unread"]) == 2
    point = points(said, ONE.case_id)[0]
    assert (point["commit"], point["median"]) == (None, 1.0)


def test_several_quantities_and_a_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hostile = made.hostile_case()
    for day in range(3):
        both = {ONE: [ran(ONE, scaled(1 + day), peak=1e9 * (1 + day))], hostile: [ran(hostile, TEN)]}
        write_run(tmp_path / "runs", both, "abc"[day], DAYS[day])
    page = tmp_path / "history.html"
    words = ["report", "--history", str(tmp_path / "runs"), "--quantity", "step,memory", "--page", str(page)]
    assert main(words) == 0
    html = page.read_text(encoding="utf-8")
    assert html.count("<svg") == 4
    assert html.count("<tr>") == 2 * (1 + 6)
    assert "run 2026" in html
    assert "worse at bbbbbbbbbbbb: +100.00 %" in html
    assert html.count("<script") == 1
    assert re.findall(r">([abc]{7})<", html) == list(("aaaaaaa", "bbbbbbb", "ccccccc") * 4)  # under each figure
    capsys.readouterr()


def test_bad_input_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_run(tmp_path / "runs", {ONE: [ran(ONE, TEN)]})
    (tmp_path / "none" / "empty").mkdir(parents=True)
    runs = str(tmp_path / "runs")
    for words, said in (
        ([], "RUN: missing; name a run's folder, or a folder of runs with --history"),
        (["--history", "/nowhere"], "--history: '/nowhere' is no folder"),
        (["--history", str(run)], "is a run itself; name the folder that holds it"),
        (["--history", str(tmp_path / "none")], "holds no run that can be read, of 1 folders"),
        (["--history", runs, "--quantity", "speed"], "--quantity: 'speed' is not known"),
        (["--history", runs, "--quantity", "decode"], "--quantity: no case of the 1 runs"),
        ([str(run), "--history", runs], "given beside --history"),
        ([str(run), "--page", "x.html"], "--page: given without --history"),
        ([str(run), "--quantity", "step"], "--quantity: given without --history"),
    ):
        assert main(["report", *words]) == 2, words
        heard = capsys.readouterr()
        assert (heard.out, heard.err.count("\n")) == ("", 1), heard.err
        assert said in heard.err
