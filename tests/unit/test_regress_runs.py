"""`compare RUN_A RUN_B`: runs, what differs around them, exit statuses, every form."""

from __future__ import annotations

import json
import math
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from reports.measures import MEASURES, measures_named
from reports.regress.surroundings import differences, machine_of, other_machine
from run_all import main
from suite.case import Case
from suite.parse import SpecError
from suite.record import Outcome
from tests.unit import report_samples as made
from tests.unit.regress_samples import ONE, TEN, TWO, scaled
from tests.unit.run_stores import MACHINE, ran, write_run

pytestmark = pytest.mark.unit


# --- two runs ------------------------------------------------------------------------------------------------


def two_runs(tmp_path: Path, factor: float, **second: Any) -> tuple[str, str]:
    first = write_run(tmp_path, {ONE: [ran(ONE, TEN)], TWO: [ran(TWO, scaled(2))]})
    other = write_run(tmp_path, {ONE: [ran(ONE, scaled(factor))], TWO: [ran(TWO, scaled(2))]}, **second)
    return str(first), str(other)


def document(capsys: pytest.CaptureFixture[str], *words: str, status: int = 0) -> Any:
    assert main(["compare", *words, "--json"]) == status
    return json.loads(capsys.readouterr().out)


def test_a_slowdown_of_one_case_is_found_and_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = two_runs(tmp_path, 1.1, commit="b")
    said = document(capsys, *runs, "--fail-on", "worse", status=1)
    assert said["counts"] == {"worse": 2, "improved": 0, "noisy": 0, "same": 6}
    worst = said["rows"][0]
    assert (worst["case_id"], worst["verdict"]) == (ONE.case_id, "worse")
    assert {row["quantity"] for row in said["rows"][:2]} == {"step_seconds", "tokens_per_second"}
    assert (said["a"]["commit"], said["b"]["commit"]) == ("a" * 12, "b" * 12)
    step = next(row for row in said["rows"] if row["quantity"] == "step_seconds")
    assert (step["a"], step["b"], step["cliffs_delta"], step["readings"]) == (1.0, 1.1, 1.0, [10, 10])
    assert main(["compare", *runs]) == 0
    assert main(["compare", *runs, "--quantity", "memory,loss", "--fail-on", "worse"]) == 0
    assert main(["compare", *runs[::-1], "--fail-on", "worse"]) == 0
    assert main(["compare", *runs[::-1], "--fail-on", "changed"]) == 1


def test_a_run_against_itself_is_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, _ = two_runs(tmp_path, 1.0)
    said = document(capsys, first, first, "--fail-on", "changed")
    assert said["counts"] == {"worse": 0, "improved": 0, "noisy": 0, "same": 8}
    assert said["environment"] == []


def test_outcomes_that_changed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    oom = ran(ONE, (), outcome=Outcome.OOM)
    good = str(write_run(tmp_path, {ONE: [ran(ONE, TEN)]}))
    bad = str(write_run(tmp_path, {ONE: [oom]}))
    crashed = str(write_run(tmp_path, {ONE: [ran(ONE, (), outcome=Outcome.FAILED)]}))
    lost = document(capsys, good, bad, "--fail-on", "worse", status=1)
    assert [(each["a"], each["b"], each["verdict"]) for each in lost["outcomes"]] == [("ok", "oom", "worse")]
    assert (lost["rows"], lost["outcomes"][0]["reason"]) == ([], "said why")
    won = document(capsys, bad, good, "--fail-on", "worse")
    assert won["outcomes"][0]["verdict"] == "improved"
    neither = document(capsys, bad, crashed, "--fail-on", "changed")
    assert neither["outcomes"][0]["verdict"] == "same"


def test_cases_of_one_run_are_listed_and_not_judged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = write_run(tmp_path, {ONE: [ran(ONE, TEN)], TWO: []})
    other = write_run(tmp_path, {ONE: [ran(ONE, TEN)], TWO: [ran(TWO, TEN)]})
    said = document(capsys, str(first), str(other), "--fail-on", "changed")
    assert [each["case_id"] for each in said["only_b"]] == [TWO.case_id]
    assert {row["case_id"] for row in said["rows"]} == {ONE.case_id}
    main(["compare", str(first), str(other)])
    assert f"only in B: {TWO.label}" in capsys.readouterr().out


def test_launches_of_a_run_and_further_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Launches recorded in one run, and runs given beside it, are put together."""
    first = write_run(tmp_path, {ONE: [ran(ONE, TEN), ran(ONE, scaled(1.3))]})
    other = write_run(tmp_path, {ONE: [ran(ONE, scaled(1.35))]}, commit="b")
    third = write_run(tmp_path, {ONE: [ran(ONE, scaled(1.36))]}, commit="b")
    said = document(capsys, str(first), str(other), "--more-b", str(third), "--quantity", "step")
    row = said["rows"][0]
    assert (row["launches"], row["readings"], row["verdict"]) == ([2, 2], [20, 20], "noisy")
    assert (row["why"], said["notes"]) == ("launches differ by 30 %", [])
    alone = document(capsys, str(other), str(third), "--quantity", "step")
    assert "launched once" in alone["notes"][0]


def test_the_machine_s_own_operators_are_the_yardstick(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """They took 20 % longer before the second run: 10 % more a step says nothing of the code, unless torch is another
    one, whose operators they are."""
    first = write_run(tmp_path, {ONE: [ran(ONE, TEN)]}, predicted=1.0)
    for packages, predicted, verdict in (
        ({"torch": "2.13.0"}, 1.2, "noisy"),
        ({"torch": "2.13.0"}, 1.05, "worse"),
        ({"torch": "2.14.0"}, 1.2, "worse"),
    ):
        other = write_run(tmp_path, {ONE: [ran(ONE, scaled(1.1))]}, predicted=predicted, packages=packages)
        said = document(capsys, str(first), str(other), "--quantity", "step")
        assert said["rows"][0]["verdict"] == verdict


def test_times_beside_busy_neighbours_are_not_held_against_a_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = write_run(tmp_path, {ONE: [ran(ONE, TEN, other_cores=0.02)]})
    for cores, verdict in ((0.2, "worse"), (1.3, "noisy")):
        other = write_run(tmp_path, {ONE: [ran(ONE, scaled(1.5), other_cores=cores)]})
        said = document(capsys, str(first), str(other), "--quantity", "step")
        assert said["rows"][0]["verdict"] == verdict
    assert said["rows"][0]["why"] == "others kept 1.3 cores busy"


# --- around them ---------------------------------------------------------------------------------------------


def test_another_machine_is_refused_unless_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = two_runs(tmp_path, 1.1, cpu="Other CPU", cores=4)
    assert main(["compare", *runs]) == 2
    refused = capsys.readouterr()
    assert refused.out == ""
    assert refused.err.count("\n") == 1
    assert "cpu: Example CPU, then Other CPU" in refused.err
    assert "--across-machines" in refused.err
    assert main(["compare", *runs, "--across-machines", "--fail-on", "worse"]) == 1
    told = capsys.readouterr()
    assert "machine: cores: 2, then 4" in told.out
    assert "may be theirs alone" in told.err


def test_what_is_the_machine_and_what_is_software() -> None:
    def run(**facts: Any) -> Any:
        return made.Run("r", "now", "s", "b", {**MACHINE, **facts})

    software = run(packages={"torch": "2.14.0"}, git={"commit": "b" * 40, "dirty": True}, threads="1", python="3.12.1")
    found = differences(run(), software)
    assert [each.name for each in found] == ["git.commit", "git.dirty", "packages.torch", "python", "threads"]
    assert other_machine(found) == ()
    assert machine_of(run()) == machine_of(software)
    little = run(memory_bytes=16 * 2**30 - 12345678)
    assert other_machine(differences(run(), little)) == ()
    for facts in ({"cpu": "x"}, {"cores": 3}, {"memory_bytes": 2**35}, {"platform": "Linux-6.1.0-aarch64-with"}):
        assert len(other_machine(differences(run(), run(**facts)))) == 1, facts
    unknown = differences(run(), run(cpu=None))
    assert [each.text for each in unknown] == ["cpu: Example CPU, then not recorded"]
    assert other_machine(unknown) == ()


def test_names_of_quantities() -> None:
    assert [each.name for each in measures_named("memory,step")] == ["step_seconds", "memory_bytes"]
    assert measures_named(None) == MEASURES
    for name in ("", "e", "speed", "step,,loss"):
        with pytest.raises(SpecError, match="--quantity: "):
            measures_named(name)


# --- bad input -----------------------------------------------------------------------------------------------


def test_bad_input_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, other = two_runs(tmp_path / "runs", 1.1)
    alone = str(write_run(tmp_path / "runs", {made.case("llama-1m"): [ran(made.case("llama-1m"), TEN)]}))
    untried = str(write_run(tmp_path / "runs", {ONE: []}))
    torn = tmp_path / "torn"
    torn.mkdir()
    (torn / "records.jsonl").write_text('{"schema": 1, "kind": "nonsense"}\n', encoding="utf-8")
    empty = tmp_path / "empty"
    empty.mkdir()
    page = tmp_path / "page.html"
    for words, said in (
        ([first], "RUN: 1 given; RUN_A RUN_B takes two"),
        ([first, other, first], "RUN: 3 given"),
        ([first, str(torn)], "line 1: kind 'nonsense' is not known"),
        ([str(empty), first], "no run is recorded there"),
        ([first, "/nowhere"], "/nowhere: no run is recorded there"),
        ([first, alone], "have no case in common (2 and 1 that ran)"),
        ([first, untried], "have no case in common (2 and 0 that ran)"),
        ([first, other, "--quantity", "speed"], "--quantity: 'speed' is not known"),
        ([first, other, "--quantity", "decode"], "share 2 cases, and none has decode_seconds in both"),
        ([first, other, "--fail-on", "wrse"], "--fail-on: 'wrse' is not known; did you mean worse?"),
        ([first, other, "--alpha", "2"], "--alpha: 2 is no chance"),
        ([first, other, "--alpha", "0"], "not a number above zero"),
        ([first, other, "--least", "5"], "--least: 5 is no fraction; 2 % is 0.02"),
        ([first, other, "--more-a", first], "is on that side already"),
        ([first, other, "--more-b", alone, alone], "--more-b: "),
        ([first, other, "--page", ""], "is a folder; name a file"),
        ([first, other, "--page", str(empty)], "is a folder; name a file"),
        ([first, other, "--page", str(page), "--markdown", str(page)], "is the --page file too"),
        ([first, other, "--page", str(page), "--markdown", "/no/such/folder/a.md"], "its folder is not there"),
        (
            [first, other, "--page", str(tmp_path / "no" / "page.html"), "--markdown", str(page)],
            "its folder is not there; make it first",
        ),
    ):
        assert main(["compare", *words]) == 2, words
        heard = capsys.readouterr()
        assert heard.out == "", words
        assert heard.err.count("\n") == 1, heard.err
        assert said in heard.err
    assert not page.exists()


# --- forms ---------------------------------------------------------------------------------------------------


class _Tags(HTMLParser):
    def __init__(self, page: str) -> None:
        super().__init__()
        self.rows, self.scripts, self.titles = 0, 0, 0
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.rows += tag == "tr"
        self.scripts += tag == "script"
        self.titles += tag == "title"


def test_page_and_comment_say_what_the_terminal_does(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hostile = made.hostile_case()
    first = write_run(tmp_path, {ONE: [ran(ONE, TEN)], hostile: [ran(hostile, TEN)]})
    other = write_run(
        tmp_path, {ONE: [ran(ONE, scaled(1.25))], hostile: [ran(hostile, TEN, loss=math.nan)]}, commit="b"
    )
    page, comment = tmp_path / "pair.html", tmp_path / "pair.md"
    words = ["compare", str(first), str(other), "--page", str(page), "--markdown", str(comment)]
    assert main(words) == 0
    shown = capsys.readouterr().out
    html, markdown = page.read_text(encoding="utf-8"), comment.read_text(encoding="utf-8")
    for text in (shown, html, markdown):
        assert "+25.00 %" in text
        assert "3 worse, 0 improved" in text
        assert "git.commit" in text.replace("\\", "")
    found = _Tags(html)
    assert (found.scripts, found.rows) == (1, 1 + 8 + 1 + 1)  # every row of both cases, a commit, two headings
    assert found.titles == 1 + 2  # the page's, and what two points of the figure say
    assert "<script>alert" not in markdown
    assert "alert(" in markdown
    said = document(capsys, str(first), str(other))
    assert (
        next(row for row in said["rows"] if row["quantity"] == "loss_nats" and row["verdict"] == "worse")["b"] == "nan"
    )


def test_served_cases_are_held_by_their_times(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from suite.record import Component, Quantity, Sample
    from suite.serving import Serving

    served = Case(made.case().model, workload=made.case().workload, serving=Serving(new_tokens=4))

    def answers(factor: float) -> Any:
        samples = made.series(Quantity.PREFILL_TIME, [9.0, *scaled(0.1)])
        samples += made.series(Quantity.DECODE_TIME, [9.0, 9.0, 9.0, *scaled(0.01 * factor)])
        return made.measured(served, [*samples, Sample(Quantity.CACHE, 4096.0, 0, component=Component.KEYS)])

    runs = [str(write_run(tmp_path, {served: [answers(factor)]})) for factor in (1.0, 1.5)]
    said = document(capsys, *runs, "--fail-on", "worse", status=1)
    found = {row["quantity"]: (row["verdict"], row["a"], row["readings"]) for row in said["rows"]}
    assert found["decode_seconds"] == ("worse", pytest.approx(0.01), [10, 10])
    assert found["prefill_seconds"] == ("same", pytest.approx(0.1), [10, 10])
    assert found["cache_bytes"] == ("same", 4096.0, [1, 1])
