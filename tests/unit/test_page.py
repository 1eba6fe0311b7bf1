"""The page: sound HTML, self-contained, nothing of a user's text taken for markup, written whole or not at all."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import pytest

from reports.compare import CaseResult, Run
from reports.export import run_mapping, write_report
from reports.page import TEMPLATES, render_page
from reports.summary import compare_run
from suite.layout import Layout
from suite.record import Moment, Outcome
from tests.unit import report_samples as made

pytestmark = pytest.mark.unit

VOID = {"meta", "link", "br", "input", "hr", "img"}


class Outline(HTMLParser):
    """Reads a page and complains about every tag that is not closed where it should be."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: Counter[str] = Counter()
        self.attributes: list[tuple[str, str, str]] = []
        self.headings: list[int] = []
        self.text: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if re.fullmatch(r"h[1-6]", tag):
            self.headings.append(int(tag[1]))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"{self.getpos()}: </{tag}>"

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    def values(self, name: str) -> list[str]:
        return [value for _, attribute, value in self.attributes if attribute == name]


@pytest.fixture(scope="module")
def page() -> str:
    return render_page(compare_run(made.sample_run()))


@pytest.fixture(scope="module")
def outline(page: str) -> Outline:
    return Outline(page)


def test_ids_are_unique_and_links_lead_somewhere(outline: Outline) -> None:
    ids = outline.values("id")
    assert len(ids) == len(set(ids))
    for value in outline.values("href"):
        assert value == "data:," or value[1:] in ids, value
    for value in outline.values("aria-labelledby"):
        assert value in ids


def test_nothing_is_fetched(page: str, outline: Outline) -> None:
    assert not outline.values("src")
    assert not outline.values("srcset")
    assert outline.tags["iframe"] == outline.tags["img"] == outline.tags["object"] == 0
    assert not re.search(r"https?://", page)
    assert "@import" not in page
    assert not re.search(r"url\((?!#)", page)


def test_the_policy_lets_this_one_script_run_and_nothing_else(page: str) -> None:
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]+)"', page)
    script = re.search(r"<script>(.*?)</script>", page, re.DOTALL)
    assert policy
    assert script
    digest = base64.b64encode(hashlib.sha256(script[1].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy[1]
    assert "default-src 'none'" in policy[1]


def test_text_of_users_never_becomes_markup(page: str, outline: Outline) -> None:
    assert outline.tags["script"] == 1
    assert page.count("<script") == 1
    assert "alert(" in page  # it is shown, escaped
    assert "&lt;script&gt;alert(" in page
    everything = "".join(outline.text)
    assert everything.count('<script>alert("x")</script>&amp;') >= 4  # name, reason, data path, stderr
    assert not [name for _, name, _ in outline.attributes if name.startswith("on")]
    for character in ("\x1b", "\u202e"):
        assert character not in page
    page.encode("utf-8")


@pytest.mark.parametrize("text", ['"><img src=x onerror=alert(1)>', "</style></title><b>", "{{ 7*7 }}", "]]>--><!--"])
def test_every_field_that_a_user_fills_is_escaped(text: str) -> None:
    result = made.failed(made.hostile_case(), Outcome.FAILED, text, text)
    assert result.measurement is not None
    result.measurement.environment.update({text: {text: text}})
    run = Run(text, text, text, text, {text: text, "list": [text]}, (result,))
    found = Outline(render_page(compare_run(run)))
    assert found.tags["img"] == 0
    assert found.tags["script"] == 1
    assert "".join(found.text).count(text) >= 8
    assert "49" not in "".join(found.text).split("{{")[0][-20:]


def test_structure_for_readers_without_eyes_or_mouse(outline: Outline) -> None:
    assert outline.tags["h1"] == 1
    assert all(later <= earlier + 1 for earlier, later in zip(outline.headings, outline.headings[1:], strict=False))
    assert outline.tags["table"] == outline.tags["caption"]
    assert outline.tags["main"] == outline.tags["header"] == 1
    assert ("a", "class", "skip") in outline.attributes
    assert ("html", "lang", "en") in outline.attributes
    drawings = [value for tag, name, value in outline.attributes if tag == "svg" and name == "aria-label"]
    assert len(drawings) == outline.tags["svg"] == outline.tags["figure"]
    assert all(drawings)


def test_each_table_scrolls_in_a_container_of_its_own(page: str) -> None:
    assert len(re.findall(r'<div class="scroll"[^>]*>\s*<table', page)) == page.count("<table")


def test_the_headline_and_every_case_are_on_the_page(page: str, outline: Outline) -> None:
    text = re.sub(r"\s+", " ", "".join(outline.text))
    assert "Peak memory, worst +0.90 % within ± 1 %" in text
    assert "State to the byte 119 of 119" in text
    assert "Cases that ran 10 of 14" in text
    assert page.count('<details class="case">') == 14
    assert "rank 0: allocation of 7.81 GiB refused" in text
    assert "activations = 133693440" in text
    assert "the first 3 steps are dropped" in text
    assert "Example CPU" in text
    assert "16.00 GiB" in text


def test_terms_of_the_peak_add_up_to_it() -> None:
    case = made.case()
    table = {Moment.LOSS: {made.P: 1000, made.A: 234}, Moment.STEADY: {made.P: 77}}
    page = render_page(compare_run(Run("r", "now", "s", "b", {}, (CaseResult(case, (made.estimate(table),)),))))
    opened = re.search(r'<details class="moment" open>.*?</details>', page, re.DOTALL)
    assert opened
    numbers = [int(number.replace(",", "")) for number in re.findall(r'<td class="n"[^>]*>([\d,]+)</td>', opened[0])]
    assert numbers == [1000, 234, 1234]
    assert "77" not in opened[0]
    assert page.count('<details class="moment"') == 2  # the other moment is there, closed
    sums = CaseResult(case, (made.estimate(table).summed(),))
    page = render_page(compare_run(Run("r", "now", "s", "b", {}, (sums,))))
    assert page.count('<details class="moment"') == 1  # sums are in the matrix already


def test_ranks_that_are_alike_share_a_view_and_others_do_not() -> None:
    case, table = made.case(layout=Layout(dp=4)), {Moment.LOSS: {made.P: 1000}}
    estimates = [made.estimate(table, rank) for rank in (0, 1, 2)]
    estimates.append(made.estimate({Moment.LOSS: {made.P: 1001}}, 3))
    samples = [made.memory_samples(table, rank) for rank in (0, 1)]
    samples.append(made.memory_samples({Moment.LOSS: {made.P: 999}}, 2))  # predicted alike, measured not
    measurement = made.measured(case, [sample for rows in samples for sample in rows])
    result = CaseResult(case, tuple(estimates), None, measurement)
    page = render_page(compare_run(Run("r", "now", "s", "b", {}, (result,))))
    titles = re.findall(r"<h4>(.*?)</h4>", page)
    assert titles == ["Ranks 0, 1", "Rank 2", "Rank 3"]
    assert len(re.findall(r'<details class="rank"[^>]* open>', page)) == 1


def test_a_component_is_judged_by_what_the_rank_holds() -> None:
    """Two wrongs cancel in the total: 40 bytes too many of one, too few of the other, of 1000."""
    case = made.case()
    samples = made.memory_samples({Moment.LOSS: {made.P: 600, made.A: 400}})
    result = CaseResult(
        case, (made.estimate({Moment.LOSS: {made.P: 640, made.A: 360}}),), None, made.measured(case, samples)
    )
    comparison = compare_run(Run("r", "now", "s", "b", {}, (result,)))
    assert comparison.by_moment[Moment.LOSS].worst == 0
    found = {row.component: row for row in comparison.by_component}
    assert found.keys() == {made.P, made.A}
    assert (found[made.P].worst_share, found[made.P].worst_bytes, found[made.P].exact) == (0.04, 40, 0)
    assert found[made.A].worst_share == -0.04
    table = re.search(r'<table id="component-table".*?</table>', render_page(comparison), re.DOTALL)
    assert table
    assert "+4.000 %" in table[0]
    assert "-4.000 %" in table[0]


def test_a_cell_shows_one_number_if_exact_and_three_if_not() -> None:
    case = made.case()
    samples = made.memory_samples({Moment.LOSS: {made.P: 1024, made.A: 1024}})
    table = {Moment.LOSS: {made.P: 1024, made.A: 3072}}
    result = CaseResult(case, (made.estimate(table),), None, made.measured(case, samples))
    page = render_page(compare_run(Run("r", "now", "s", "b", {}, (result,))))
    matrix = re.search(r'<table class="matrix">.*?</table>', page, re.DOTALL)
    assert matrix
    assert '<td class="n same">1.00 KiB</td>' in matrix[0]
    assert '3.00 KiB<br><span class="m">1.00 KiB</span><br><small>+2.00 KiB</small>' in matrix[0]
    assert "The prediction is 2.00 KiB (100.00 %) too high." in page


def test_a_run_with_nothing_in_it_is_a_page_too() -> None:
    found = Outline(render_page(compare_run(Run("r", "now", "s", "bench"))))
    assert "n/a" in "".join(found.text)


def test_reports_are_written_beside_the_records(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "one"
    paths = write_report(made.sample_run(), folder)
    assert sorted(path.name for path in folder.iterdir()) == ["cases.csv", "report.html", "report.md"]
    assert [path.name for path in paths] == ["report.html", "report.md"]
    assert paths[0].read_text(encoding="utf-8").endswith("</html>\n")


def test_a_write_that_fails_leaves_the_old_report_and_no_scraps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "report.html").write_text("old", encoding="utf-8")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_report(Run("r", "now", "s", "bench"), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == "old"


def test_json_says_predicted_measured_and_error_for_every_case() -> None:
    mapping = json.loads(json.dumps(run_mapping(compare_run(made.sample_run())), allow_nan=False))
    assert mapping["summary"]["outcomes"] == {"ok": 10, "oom": 1, "hang": 1, "failed": 1, "not run": 1}
    assert len(mapping["cases"]) == 14
    first, oom = mapping["cases"][0], mapping["cases"][10]
    assert set(first["components_bytes"]["activations"]) == {"predicted", "measured", "error"}
    assert first["peak_memory_bytes"]["error"] == pytest.approx(0.0012, abs=1e-4)
    assert (oom["outcome"], oom["peak_memory_bytes"]["measured"]) == ("oom", None)
    assert oom["reason"] == "rank 0: allocation of 7.81 GiB refused"


def test_templates_are_shipped_with_the_package() -> None:
    assert {path.name for path in TEMPLATES.iterdir()} >= {"page.html.j2", "page.css", "page.js"}
