"""The page of a run that serves: its own tables and figures, none of training's, and the two beside each other."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from xml.etree import ElementTree

import pytest

from reports.compare import CaseResult, Run
from reports.figures import charts
from reports.markdown import markdown_report
from reports.page import render_page
from reports.summary import RunComparison, compare_run
from suite.cache import CacheDtype, CacheSpec
from suite.case import Case
from suite.record import CacheTerm, Component, Outcome, Quantity, Sample, ServingEstimate
from suite.serving import Serving
from suite.spec import Workload
from tests.unit import report_samples as made
from tests.unit.test_page import Outline

pytestmark = pytest.mark.unit

K, V, S = Component.KEYS, Component.VALUES, Component.SCALES
ROUNDED = CacheSpec(cache_dtype=CacheDtype.INT8)
#: ids of sections that only a run that trains has
TRAINING = {"cases", "times", "case-table", "traffic-table", "moment-table", "component-table"}


def served(batch: int = 2, cache: CacheSpec | None = None, **changes: object) -> Case:
    parts = {"workload": Workload(seq_len=24, micro_batch=batch), "serving": Serving(new_tokens=8)}
    return made.case(cache=cache or CacheSpec(), **{**parts, **changes})


def result(
    case: Case, *samples: Sample, sizes: tuple[int, int] = (640, 640), seconds: float | None = 0.010
) -> CaseResult:
    """Keys and values of those bytes on two quantities; the allocator found 64 more of the values."""
    cache = tuple(
        CacheTerm(part, size, f"formula of {part.value}", "made up, section 2", 0, quantity)
        for quantity in (Quantity.CACHE, Quantity.CACHE_READ)
        for part, size in zip((K, V), sizes, strict=True)
    )
    found = [
        *(Sample(Quantity.CACHE, size, 0, component=part) for part, size in ((K, sizes[0]), (V, sizes[1] + 64))),
        *(Sample(Quantity.CACHE_READ, size, 0, component=part) for part, size in zip((K, V), sizes, strict=True)),
        *made.series(Quantity.PREFILL_TIME, [1.0, 0.5]),
        *made.series(Quantity.DECODE_TIME, [0.9] * 7 + [0.0125] * 7),
        Sample(Quantity.TOKENS_MADE, 8, 0), Sample(Quantity.TOKENS_DIFFER, 0, 0), *samples,
    ]  # fmt: skip
    return CaseResult(
        case, measurement=made.measured(case, found), serving=ServingEstimate(cache, 0.4, seconds, "rates")
    )


def compared(*results: CaseResult) -> RunComparison:
    return compare_run(Run("r", "now", "kv", "bench", {}, results))


@pytest.fixture(scope="module")
def comparison() -> RunComparison:
    losses = (Sample(Quantity.EXACT_LOSS, 2.0, 0), Sample(Quantity.CACHED_LOSS, 2.5, 0))
    return compared(
        result(served()), result(served(4), sizes=(1280, 1280)), result(served(2, ROUNDED), *losses, seconds=None)
    )


def cells(page: str, table: str, row: int) -> list[str]:
    body = re.search(rf'id="{table}".*?</table>', page, re.DOTALL)
    assert body
    rows = re.findall(r"<tr.*?</tr>", body[0], re.DOTALL)
    found = re.findall(r"<t[hd].*?>(.*?)</t[hd]>", rows[row], re.DOTALL)
    return [re.sub(r"<.*?>", "", cell).strip() for cell in found]


def test_a_run_that_serves_has_no_sections_of_training(comparison: RunComparison) -> None:
    page = render_page(comparison)
    outline = Outline(page)
    ids = outline.values("id")
    assert len(ids) == len(set(ids))
    assert not TRAINING & set(ids)
    assert {"served", "cache-table", "answer-times", "answer-table"} <= set(ids)
    assert all(value == "data:," or value[1:] in ids for value in outline.values("href"))
    words = "".join(outline.text)
    assert "Peak memory, worst" not in words
    assert "Real training" not in words
    assert outline.tags["script"] == 1


def test_the_cache_is_shown_part_by_part(comparison: RunComparison) -> None:
    page = render_page(comparison)
    label = comparison.cases[0].case.label
    assert cells(page, "cache-table", 1) == [
        label, "21 B", "1.25 KiB", "1.31 KiB", "-4.76 %", "1.25 KiB", "1.25 KiB", "exact",
    ]  # fmt: skip
    assert cells(page, "cache-table", 2) == ["keys", "", "640 B", "640 B", "exact", "640 B", "640 B", "exact"]
    assert cells(page, "cache-table", 3) == ["values", "", "640 B", "704 B", "-9.09 %", "640 B", "640 B", "exact"]
    assert "formula of keys" in page
    assert "made up, section 2" in page


def test_times_are_shown_beside_their_predictions(comparison: RunComparison) -> None:
    """The first repetition of each is dropped; two answers share a step of 12.5 ms."""
    page = render_page(comparison)
    first, next_token = ["400.0 ms", "500.0 ms", "0.0 us", "-20.0 %"], ["10.0 ms", "12.5 ms", "0.0 us", "-20.0 %"]
    assert cells(page, "answer-times", 1)[1:] == [*first, *next_token, "160"]
    assert cells(page, "answer-times", 3)[5:9] == ["n/a", "12.5 ms", "0.0 us", "n/a"]


def test_losses_have_columns_where_any_text_was_read(comparison: RunComparison) -> None:
    page = render_page(comparison)
    assert cells(page, "answer-table", 3)[4:] == ["2", "2.5", "0.5", f"{math.exp(2):.4f}", f"{math.exp(2.5):.3f}"]
    assert cells(page, "answer-table", 1)[4:] == ["n/a"] * 5
    without = render_page(compared(result(served())))
    assert len(cells(without, "answer-table", 1)) == 4


def test_training_and_serving_stand_beside_each_other() -> None:
    trained = made.case()
    memory = made.estimate({made.Moment.STEADY: {made.P: 100}})
    both = compared(CaseResult(trained, (memory,)), result(served()))
    page = render_page(both)
    ids = Outline(page).values("id")
    assert {"cases", "case-table", "served", "cache-table"} <= set(ids)
    assert cells(page, "case-table", 1)[0].startswith(trained.label)
    assert len(re.findall(r'<details class="case">', page)) == 2


def test_a_served_case_that_ended_early_says_so() -> None:
    case = served()
    measurement = made.measured(case, [], Outcome.CACHE_FULL, reason="full after 3 of 8 tokens")
    only = compared(replace(result(case), measurement=measurement))
    page = render_page(only)
    assert "full after 3 of 8 tokens" in page
    assert cells(page, "cache-table", 1)[2:5] == ["1.25 KiB", "n/a", "n/a"]
    Outline(page)


def test_a_case_of_which_nothing_is_known_is_a_row() -> None:
    page = render_page(compared(CaseResult(served(), unpredicted="no formula yet")))
    assert cells(page, "cache-table", 1)[1:] == ["n/a"] + [""] * 6
    assert "no formula yet" in page
    Outline(page)


def test_figures_show_bytes_by_component_and_times_over_what_is_kept(comparison: RunComparison) -> None:
    found = {chart.key: chart for chart in charts(comparison)}
    assert list(found) == ["cache-0", "decode-0", "decode-0-bars"]
    stacked, lines, bars = (ElementTree.fromstring(found[key].svg) for key in found)
    hover = [title.text or "" for title in stacked.iter("title")]
    assert "measured values: 704 B" in hover
    assert len(hover) == 3 * 4
    points = [title.text or "" for title in lines.iter("title")]
    assert len(points) == 2  # one kind of cache at two sizes; the other at one
    assert [title.text for title in bars.iter("title")] == [
        f"{comparison.cases[2].case.label.removeprefix('gpt-1m ')}: 12.5 ms measured (IQR 0.0 us), n/a predicted"
    ]
    assert any("12.5 ms measured" in text and "10.0 ms predicted" in text for text in points)
    shown = {text.text for text in lines.iter("text")}
    assert {"64", "128", "single bf16-mixed full", "predicted"} <= shown


def test_a_hostile_name_is_only_text() -> None:
    case = replace(made.hostile_case(), serving=Serving(new_tokens=8))
    comparison = compared(result(case))
    outline = Outline(render_page(comparison))
    assert outline.tags["script"] == 1
    assert not [name for _, name, _ in outline.attributes if name.startswith("on")]
    for chart in charts(comparison):
        assert ElementTree.fromstring(chart.svg).find(".//script") is None


def test_the_short_report_does_not_speak_of_training(comparison: RunComparison) -> None:
    text = markdown_report(comparison)
    assert "real answers" in text
    assert "real training" not in text
    assert "| -4.76 % |" in text
