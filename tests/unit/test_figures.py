"""The drawings: the right lengths at the right places, safe inside a page, the same every time."""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import pairwise
from xml.etree import ElementTree

import matplotlib
import pytest

from reports.compare import CaseResult, Run
from reports.figure_timeline import timeline_chart
from reports.figures import charts, chosen
from reports.palette import ALL, COMPONENTS, LINES
from reports.summary import RunComparison, compare_run
from reports.svg import Chart, as_file
from suite.layout import Layout
from suite.record import Component, Moment, Quantity
from suite.spec import Workload
from suite.timeline import Span, Timeline
from tests.unit import report_samples as made

pytestmark = pytest.mark.unit

P, A = made.P, made.A


@pytest.fixture(scope="module")
def comparison() -> RunComparison:
    return compare_run(made.sample_run())


@pytest.fixture(scope="module")
def drawn(comparison: RunComparison) -> tuple[Chart, ...]:
    return charts(comparison)


def one_case(predicted: made.Table, real: made.Table) -> dict[str, ElementTree.Element]:
    case = made.case()
    samples = made.memory_samples(real)
    result = CaseResult(case, (made.estimate(predicted),), None, made.measured(case, samples))
    found = charts(compare_run(Run("r", "now", "s", "bench", {}, (result,))))
    return {chart.key: ElementTree.fromstring(chart.svg) for chart in found}


def hovered(root: ElementTree.Element) -> dict[str, ElementTree.Element]:
    """Hover text -> the group it lies on."""
    return {group[0].text or "": group for group in root.iter("g") if len(group) and group[0].tag == "title"}


def box(element: ElementTree.Element) -> tuple[float, float, float, float]:
    """Left, top, right, bottom of the first path in the element."""
    path = next(element.iter("path")).get("d", "")
    points = [(float(x), float(y)) for x, y in re.findall(r"(-?[\d.]+) (-?[\d.]+)", path)]
    xs, ys = [x for x, _ in points], [y for _, y in points]
    return min(xs), min(ys), max(xs), max(ys)


def test_every_figure_of_the_page_is_there(drawn: tuple[Chart, ...]) -> None:
    keys = [re.sub(r"-\d+$", "", chart.key) for chart in drawn]
    assert set(keys) == {"peak", "error", "components", "moments", "loss", "throughput"}
    assert keys.count("peak") == 4  # a chart a model
    assert keys.count("loss") == 3  # a chart a loss group


def test_bars_are_as_long_as_their_bytes() -> None:
    drawings = one_case({Moment.LOSS: {P: 3072, A: 1024}}, {Moment.LOSS: {P: 3072, A: 3072}})
    bars = hovered(drawings["peak-0"])
    left, top, right, bottom = box(bars["predicted parameters: 3.00 KiB"])
    other_left, _, other_right, _ = box(bars["predicted activations: 1.00 KiB"])
    assert other_left == pytest.approx(right, abs=0.02)  # stacked: it begins where the other ends
    assert (right - left) / (other_right - other_left) == pytest.approx(3, abs=0.01)
    measured_left, measured_top, measured_right, _ = box(bars["measured parameters: 3.00 KiB"])
    assert (measured_left, measured_right) == pytest.approx((left, right), abs=0.02)
    assert measured_top > bottom > top  # below the predicted one


def test_columns_of_a_moment_stand_side_by_side() -> None:
    drawings = one_case({Moment.LOSS: {P: 2048}, Moment.STEADY: {P: 1024}}, {Moment.LOSS: {P: 1024}})
    columns = hovered(drawings["moments-0"])
    left = box(columns["loss, predicted: parameters 2.00 KiB of 2.00 KiB"])
    right = box(columns["loss, measured: parameters 1.00 KiB of 1.00 KiB"])
    later = box(columns["steady, predicted: parameters 1.00 KiB of 1.00 KiB"])
    assert left[2] < right[0] < right[2] < later[0]
    assert (left[3] - left[1]) / (right[3] - right[1]) == pytest.approx(2, abs=0.01)


def test_a_dot_stands_at_its_error_on_the_band() -> None:
    drawings = one_case({Moment.LOSS: {P: 1005}}, {Moment.LOSS: {P: 1000}})
    root = drawings["error"]
    band = next(path for path in root.iter("path") if "var(--band" in path.get("style", ""))
    xs = [float(x) for x in re.findall(r"(-?[\d.]+) -?[\d.]+", band.get("d", ""))]
    middle, half = (min(xs) + max(xs)) / 2, (max(xs) - min(xs)) / 2  # half is one per cent
    dot = next(next(group for text, group in hovered(root).items() if text.endswith("+0.50 %")).iter("use"))
    assert float(dot.get("x", "nan")) == pytest.approx(middle + half / 2, abs=0.05)


def test_curves_that_coincide_are_all_seen(drawn: tuple[Chart, ...]) -> None:
    root = ElementTree.fromstring(next(chart.svg for chart in drawn if chart.key == "loss-0"))
    styles = [path.get("style", "") for path in root.iter("path") if path.get("clip-path")]
    curves = [style for style in styles if "var(--s-" in style and "fill: none" in style]
    looks = {
        (re.findall(r"--s-\d", style)[0], "".join(re.findall(r"stroke-dasharray: [\d.,]+", style))) for style in curves
    }
    assert len(looks) == 7  # a colour and a dash for each of the seven layouts


def test_widths_of_coinciding_curves_fall() -> None:
    def learned(layout: Layout, micro: int) -> CaseResult:
        case = made.case(layout=layout, workload=Workload(seq_len=64, micro_batch=micro))
        return CaseResult(case, measurement=made.measured(case, made.series(Quantity.LOSS, [3.0, 2.0, 1.0])))

    run = Run("r", "now", "s", "b", {}, (learned(Layout(), 4), learned(Layout(dp=2), 2), learned(Layout(dp=4), 1)))
    (chart,) = charts(compare_run(run))
    root = ElementTree.fromstring(chart.svg)
    clipped = [path.get("style", "") for path in root.iter("path") if path.get("clip-path")]
    curves = [style for style in clipped if "var(--s-" in style]
    widths = [float(re.search(r"stroke-width: ([\d.]+)", style)[1]) for style in curves[:3]]  # type: ignore[index]
    assert all(wider > narrower + 1 for wider, narrower in pairwise(widths))


def test_drawings_are_the_same_every_time_and_carry_no_date(
    comparison: RunComparison, drawn: tuple[Chart, ...]
) -> None:
    again = charts(comparison)
    assert [chart.svg for chart in again] == [chart.svg for chart in drawn]
    assert not any("date" in chart.svg.lower() for chart in drawn)


def test_settings_of_matplotlib_are_left_as_they_were(comparison: RunComparison) -> None:
    before = dict(matplotlib.rcParams)
    charts(comparison)
    assert dict(matplotlib.rcParams) == before


def test_drawings_can_share_a_page(drawn: tuple[Chart, ...]) -> None:
    roots = [ElementTree.fromstring(chart.svg) for chart in drawn]
    ids = [element.get("id") for root in roots for element in root.iter() if element.get("id")]
    assert len(ids) == len(set(ids))
    for root in roots:
        known = {element.get("id") for element in root.iter()}
        used = [found for element in root.iter() for value in element.attrib.values() for found in _targets(value)]
        assert set(used) <= known
        assert {element.tag for element in root.iter()} <= {
            *("svg", "g", "path", "text", "title", "defs", "use", "clipPath", "rect", "tspan", "pattern")
        }


def _targets(value: str) -> list[str]:
    return re.findall(r"url\(#([^)]+)\)", value) or ([value[1:]] if re.fullmatch(r"#[\w-]+-\w+", value) else [])


def test_colours_follow_the_page(drawn: tuple[Chart, ...]) -> None:
    for chart in drawn:
        bare = re.sub(r"var\(--[\w-]+, #[0-9a-f]{6}\)", "", chart.svg)
        assert not re.findall(r"(?:fill|stroke): #\w+", bare), chart.key


def test_no_two_things_share_a_colour() -> None:
    assert set(COMPONENTS) == set(Component)
    for side in ("light", "dark"):
        values = [getattr(colour, side) for colour in ALL]
        assert len(values) == len(set(values)), side
    assert len({colour.variable for colour in ALL}) == len(ALL)
    assert len(LINES) >= 8


def test_a_hostile_name_is_only_text(drawn: tuple[Chart, ...]) -> None:
    chart = next(chart for chart in drawn if "script" in chart.title)
    root = ElementTree.fromstring(chart.svg)
    assert root.find(".//script") is None
    assert "<script" not in chart.svg
    assert any("<script>alert(" in (text.text or "") for text in root.iter("text"))
    assert "<script>" in root.get("aria-label", "")


def test_the_worst_case_is_opened_first_and_layouts_are_not_repeated(comparison: RunComparison) -> None:
    picked = chosen(comparison)
    assert picked[0] is comparison.worst_peak
    layouts = [str(case.case.layout) for case in picked]
    assert len(layouts) == len(set(layouts)) == 4


def test_a_run_without_numbers_has_no_figures() -> None:
    assert charts(compare_run(Run("r", "now", "s", "bench", {}, (CaseResult(made.case()),)))) == ()


def test_a_drawing_can_be_a_file_of_its_own(drawn: tuple[Chart, ...]) -> None:
    root = ElementTree.fromstring(as_file(drawn[0].svg))
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert "prefers-color-scheme" in (root[0].text or "")


def step_line() -> Timeline:
    """Four points: 1 KiB is held, activations grow to 3 KiB at place 4, and are gone at 8; the optimizer takes 2."""
    kib = 1024
    sizes = {P: (kib, kib, kib, kib), A: (0, 3 * kib, 0, 0)}
    moments = {Moment.FORWARD_PEAK: 1, Moment.AFTER_BACKWARD: 2, Moment.STEADY: 3}
    spans = (Span(Moment.FORWARD_PEAK, 4), Span(Moment.BACKWARD_PEAK, 8), Span(Moment.OPTIMIZER_PEAK, 10))
    return Timeline(0, (0, 4, 8, 10), sizes, moments, spans)


def test_a_timeline_stacks_its_components_and_puts_measurements_at_their_moments() -> None:
    case = made.case()
    table = {Moment.FORWARD_PEAK: {P: 1024, A: 3072}, Moment.STEADY: {P: 1024}}
    samples = made.memory_samples({Moment.FORWARD_PEAK: {P: 1024, A: 2048}, Moment.STEADY: {P: 1024}})
    result = CaseResult(case, (made.estimate(table),), None, made.measured(case, samples), timelines=(step_line(),))
    comparison = compare_run(Run("r", "now", "s", "bench", {}, (result,)))
    chart = next(chart for chart in charts(comparison) if chart.key == "timeline-0")
    root = ElementTree.fromstring(chart.svg)
    shown = hovered(root)
    parameters, activations = box(shown["parameters: at most 1.00 KiB"]), box(shown["activations: at most 3.00 KiB"])
    kib = parameters[3] - parameters[1]
    assert activations[3] - activations[1] == pytest.approx(3 * kib, abs=0.05)
    assert activations[3] == pytest.approx(parameters[1], abs=0.02)  # on top of them
    left, _, right, bottom = parameters
    peak = next(shown["forward peak: measured 3.00 KiB, predicted 4.00 KiB"].iter("use"))
    assert float(peak.get("x", "nan")) == pytest.approx(left + 0.4 * (right - left), abs=0.05)
    assert float(peak.get("y", "nan")) == pytest.approx(bottom - 3 * kib, abs=0.05)
    end = next(shown["steady: measured 1.00 KiB, predicted 1.00 KiB"].iter("use"))
    assert float(end.get("x", "nan")) == pytest.approx(right, abs=0.05)
    texts = [text.text for text in root.iter("text")]
    assert "▼ predicted peak 4.00 KiB   ● measured 3.00 KiB" in texts
    assert {"forward", "backward", "optimizer"} <= set(texts)


def test_names_of_phases_that_would_overlap_are_left_out() -> None:
    line = step_line()
    crowded = tuple(Span((Moment.FORWARD_PEAK, Moment.BACKWARD_PEAK)[place % 2], place + 1) for place in range(10))
    chart = timeline_chart(
        compare_run(Run("r", "now", "s", "b", {}, (CaseResult(made.case()),))).cases[0],
        replace(line, spans=crowded), (0, 1, 2), "key",
    )  # fmt: skip
    root = ElementTree.fromstring(chart.svg)
    names = [text.text for text in root.iter("text")]
    assert 0 < names.count("forward") + names.count("backward") < 10
    told = [title.text for title in root.iter("title")]
    assert told.count("forward") == told.count("backward") == 5  # by hovering, all the same
    assert chart.caption.startswith("Ranks 0 to 2. ")


def test_a_component_is_drawn_as_far_as_its_worst() -> None:
    drawings = one_case({Moment.LOSS: {P: 1040, A: 980}}, {Moment.LOSS: {P: 1000, A: 1000}})
    bars = hovered(drawings["components"])
    more = box(next(group for text, group in bars.items() if text.startswith("parameters: worst +2.000 %")))
    less = box(next(group for text, group in bars.items() if text.startswith("activations: worst -1.000 %")))
    assert more[0] == pytest.approx(less[2], abs=0.02)  # both from nothing
    assert more[2] - more[0] == pytest.approx(2 * (less[2] - less[0]), abs=0.05)
