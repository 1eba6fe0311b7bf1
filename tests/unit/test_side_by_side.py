"""Layouts of one run side by side: who is grouped with whom, what noise ties, who wins, what the reports say of it."""

from __future__ import annotations

import io
import json
import random
import re
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
from rich.cells import cell_len
from rich.console import Console

from reports.compare import CaseResult, Run
from reports.side_by_side.apart import Rule, lowest
from reports.side_by_side.figures import group_charts
from reports.side_by_side.groups import Group, SideBySide, lay_side_by_side
from reports.side_by_side.mapping import side_by_side_mapping
from reports.side_by_side.markdown import side_by_side_markdown
from reports.side_by_side.tables import group_tables
from reports.side_by_side.text import print_side_by_side
from reports.side_by_side.wins import Basis, Win, front, wins
from reports.summary import compare_run
from run_all import main
from suite.cache import CacheDtype, CacheSpec
from suite.case import Case
from suite.collectives import Collective, Message, TrafficEstimate
from suite.layout import Layout, Schedule
from suite.parse import SpecError
from suite.record import CacheTerm, Moment, Outcome, Quantity, Sample, ServingEstimate
from suite.serving import Serving
from suite.spec import AttentionKernel, Precision, Recipe, Workload
from suite.store import EstimateRow, MeasurementRow, RunRow, RunStore
from tests.unit import report_samples as made

pytestmark = pytest.mark.unit

STEADY = [1.0, 1.0, 1.0]  # warm-up
TIMED = Rule(0.02, scatters=True)


def case(layout: Layout, **work: object) -> Case:
    """Eight sequences a step, however the layout divides them."""
    return made.case(layout=layout, workload=Workload(seq_len=64, micro_batch=8 // layout.data_ranks, **work))  # type: ignore[arg-type]


def result(
    of: Case, seconds: list[float], nbytes: int, *, promised: float = 1.0, said: int | None = None, sent: int = 0
) -> CaseResult:
    """A case that took these steps, held and sent so much, and was promised `promised` seconds and `said` bytes."""
    samples = made.memory_samples({Moment.LOSS: {made.P: nbytes}}) + made.series(Quantity.STEP_TIME, STEADY + seconds)
    samples += made.series(Quantity.LOSS, [4.0, 3.0])
    samples += [Sample(Quantity.BYTES_SENT, sent, 0, collective=Collective.ALL_REDUCE)]
    memory = (made.estimate({Moment.LOSS: {made.P: nbytes if said is None else said}}),)
    message = Message(Collective.ALL_REDUCE, "dp", 2, sent, 1, "gradients", "made", "up")
    return CaseResult(
        of, memory, made.time_estimate(of, promised), made.measured(of, samples), traffic=(TrafficEstimate((message,)),)
    )


def laid(*results: CaseResult) -> SideBySide:
    return lay_side_by_side(compare_run(Run("r", "now", "s", "bench", {}, results)))


DP, FSDP, TP, PP = Layout(dp=2), Layout(fsdp=2), Layout(tp=2), Layout(pp=2, schedule=Schedule.GPIPE)


def four(**more: object) -> Group:
    """dp2 fastest, fsdp2 leanest, tp2 as fast as dp2 within noise, pp2 slow and large."""
    found = laid(
        result(case(DP), [0.10, 0.11, 0.12, 0.13, 0.14], 2000, promised=0.10, sent=100),
        result(case(FSDP), [0.24, 0.25, 0.26, 0.27, 0.28], 1000, promised=0.20, sent=300),
        result(case(TP), [0.11, 0.12, 0.13, 0.14, 0.15], 3000, promised=0.09, sent=100),
        result(case(PP), [0.90, 0.91, 0.92, 0.93, 0.94], 3000, promised=0.95, said=900, sent=200),
    )
    (group,) = found.groups
    return group


# --- what noise ties -----------------------------------------------------------------------------------------------


def test_times_are_apart_beyond_their_spreads_by_hand() -> None:
    """Quartiles of 10..14 are 11 and 13; so of both samples the spreads are 4, and 3 times that is 12."""
    low = [10.0, 11, 12, 13, 14]
    assert not TIMED.apart(low, [value + 12 for value in low])
    assert TIMED.apart(low, [value + 12.5 for value in low])
    assert TIMED.apart([value + 12.5 for value in low], low)


def test_many_readings_need_half_the_distance_by_hand() -> None:
    """Quartiles of 0..10 are 2.5 and 7.5; so of both samples the spreads are 10, and 1.5 times that is 15."""
    low = [float(value) for value in range(11)]
    assert not TIMED.apart(low, [value + 15 for value in low])
    assert TIMED.apart(low, [value + 15.5 for value in low])


def test_times_within_two_percent_or_of_few_readings_tie() -> None:
    assert not TIMED.apart([1.0] * 9, [1.0199] * 9)
    assert TIMED.apart([1.0] * 9, [1.021] * 9)
    assert not TIMED.apart([1.0] * 3, [5.0] * 9)
    assert not TIMED.apart([], [5.0] * 9)


def test_what_does_not_scatter_is_told_by_its_value() -> None:
    assert Rule(1e-4).apart([10_000], [10_002])
    assert not Rule(1e-4).apart([10_000], [10_001])
    assert Rule(0.0).apart([0.0], [1.0])
    assert not Rule(0.0).apart([7.0], [7.0])


def test_equal_layouts_are_seldom_told_apart() -> None:
    """Five readings of one distribution on either side: the rule promises about one call in a thousand."""
    chance = random.Random(7)
    samples = [[chance.gauss(1, 0.05) for _ in range(5)] for _ in range(6000)]
    calls = sum(Rule(0.0, True).apart(*pair) for pair in zip(samples[::2], samples[1::2], strict=True))
    assert calls <= 12  # of 3,000; a rate of one in a thousand gives more in one of 10,000 tries


def test_the_lowest_with_its_ties_and_the_next() -> None:
    best = lowest([(3.0,), (1.0,), (), (1.0,), (2.0,)], Rule(0.0))
    assert best is not None
    assert (best.place, best.ties, best.next) == (1, (3,), 4)
    assert lowest([(3.0,), ()], Rule(0.0)) is None


# --- who is laid beside whom -----------------------------------------------------------------------------------------


def test_cases_of_the_same_work_and_ranks_are_a_group() -> None:
    found = laid(
        *(result(case(layout), [0.1] * 5, 10) for layout in (DP, FSDP)),
        *(result(case(layout), [0.1] * 5, 10) for layout in (Layout(dp=4), Layout(tp=4))),
        result(case(Layout()), [0.1] * 5, 10),
        result(case(DP, precision=Precision.FP32), [0.1] * 5, 10),
        result(replace(case(DP), recipe=Recipe(seed=3)), [0.1] * 5, 10),
    )
    assert [sorted(choice.name for choice in group.choices) for group in found.groups] == [
        ["dp2", "fsdp2"],
        ["dp4", "tp4"],
    ]
    assert [alone.case.layout.world_size for alone in found.alone] == [1, 2, 2]
    assert "2 ranks" in found.groups[0].title


def test_layouts_that_share_no_number_of_ranks_are_laid_beside_each_other_all_the_same() -> None:
    found = laid(*(result(case(layout), [0.1] * 5, 10) for layout in (Layout(), DP, Layout(dp=4))))
    assert [group.ranks for group in found.groups] == [(1, 2, 4)]
    assert found.groups[0].title.endswith("1, 2, 4 ranks")
    assert group_tables(found.groups[0])[0].headings[:2] == ("layout", "ranks")


def test_names_say_what_differs_and_nothing_else() -> None:
    eager = replace(case(DP), workload=replace(case(DP).workload, attention=AttentionKernel.EAGER))
    twice = replace(case(FSDP), workload=replace(case(FSDP).workload, micro_batch=2, micro_batches=2))
    found = laid(*(result(each, [0.1] * 5, 10) for each in (case(DP), eager, twice)))
    assert {choice.name for choice in found.groups[0].choices} == {"dp2 flash", "dp2 eager", "fsdp2 flash x2"}


def test_a_case_that_did_not_run_stands_behind_those_that_did() -> None:
    found = laid(
        made.failed(case(TP), Outcome.OOM, "too big"),
        CaseResult(case(PP), (), made.time_estimate(case(PP), 0.001)),
        result(case(DP), [0.1] * 5, 10),
    )
    assert [choice.name for choice in found.groups[0].choices] == ["dp2", "pp2-gpipe", "tp2"]


def test_nothing_to_lay_beside_is_said() -> None:
    with pytest.raises(SpecError, match=r"one case only, .*single.*nothing to lay side by side"):
        laid(result(case(Layout()), [0.1], 10))
    with pytest.raises(SpecError, match="no case: there is nothing"):
        laid()
    other = made.case("llama-1m", recipe=Recipe(seed=3))
    with pytest.raises(SpecError, match=r"no two of r's 2 cases do the same work \(model gpt-1m, llama-1m"):
        laid(result(case(Layout()), [0.1], 10), result(other, [0.1], 10))


# --- who wins --------------------------------------------------------------------------------------------------------


def by_title(group: Group) -> dict[str, Win]:
    return {win.criterion.title: win for win in wins(group)}


def named(win: Win) -> list[str]:
    return [choice.name for choice in win.winners]


def test_winners_by_hand() -> None:
    """dp2 0.12 s; tp2 0.13 s lies within 3 x (0.02 + 0.02); fsdp2 0.26 s does not, and has 0.26 / 0.12 - 1 more."""
    found = by_title(four())
    fastest = found["fastest"]
    assert named(fastest) == ["dp2", "tp2"]
    assert fastest.basis is Basis.MEASURED
    assert fastest.next is not None
    assert fastest.next.name == "fsdp2"
    assert fastest.margin == pytest.approx(0.26 / 0.12 - 1)
    assert named(found["leanest"]) == ["fsdp2"]
    assert found["leanest"].margin == 1
    assert named(found["fewest bytes sent"]) == ["dp2", "tp2"]


def test_what_the_prediction_picked_is_said_with_its_cost() -> None:
    """tp2 was promised the shortest step and ties; pp2 the least memory, and has three times the leanest's."""
    found = by_title(four())
    fastest, leanest = found["fastest"], found["leanest"]
    assert fastest.promised is not None
    assert (fastest.promised.name, fastest.held) == ("tp2", True)
    assert fastest.regret == pytest.approx(0.13 / 0.12 - 1)
    assert leanest.promised is not None
    assert (leanest.promised.name, leanest.held, leanest.regret) == ("pp2-gpipe", False, 2.0)


def test_the_best_trade_is_the_least_product() -> None:
    """dp2: 0.12 x 2000 = 240; fsdp2: 0.26 x 1000 = 260; tp2: 0.13 x 3000 = 390, beyond 3 x (0.02 x 2000 + 0.02 x
    3000) = 300 more than 240 only with pp2's 2760."""
    trade = by_title(four())["best trade"]
    assert named(trade) == ["dp2", "fsdp2", "tp2"]
    assert trade.next is not None
    assert (trade.next.name, trade.margin) == ("pp2-gpipe", pytest.approx(2760 / 240 - 1))


def test_the_front_has_what_nobody_is_told_to_beat() -> None:
    """tp2 ties dp2 in time and holds more; pp2 is slower than all."""
    assert front(four()) == (Basis.MEASURED, {"dp2", "fsdp2"})


def test_without_measurements_predictions_decide_and_say_so() -> None:
    def promised(layout: Layout, seconds: float, nbytes: int) -> CaseResult:
        of = case(layout)
        memory = (made.estimate({Moment.LOSS: {made.P: nbytes}}),)
        return CaseResult(of, memory, made.time_estimate(of, seconds))

    (group,) = laid(promised(DP, 1.0, 2000), promised(FSDP, 1.04, 1000), promised(TP, 1.06, 1009)).groups
    found = by_title(group)
    assert {win.basis for win in found.values()} == {Basis.PREDICTED}
    assert named(found["fastest"]) == ["dp2", "fsdp2"]  # within 5 %
    assert named(found["leanest"]) == ["fsdp2", "tp2"]  # within 1 %
    assert found["fastest"].held is None
    assert front(group) == (Basis.PREDICTED, {"fsdp2", "tp2"})


def test_a_number_that_one_layout_has_makes_no_winner() -> None:
    (group,) = laid(result(case(DP), [0.1] * 5, 10), made.failed(case(TP), Outcome.HANG, "stuck")).groups
    fastest = by_title(group)["fastest"]
    assert fastest.basis is Basis.PREDICTED  # both have that
    bare = laid(CaseResult(case(DP)), CaseResult(case(TP))).groups[0]
    assert {win.winners for win in wins(bare)} == {()}
    assert front(bare)[1] == frozenset()


def test_where_nobody_sends_anything_nobody_wins_by_it() -> None:
    eager = replace(case(Layout()), workload=replace(case(Layout()).workload, attention=AttentionKernel.EAGER))
    (group,) = laid(*(result(each, [0.1] * 5, 10) for each in (case(Layout()), eager))).groups
    assert "fewest bytes sent" not in by_title(group)


def served(dtype: CacheDtype, seconds: float, nbytes: int) -> CaseResult:
    """A served case whose cache holds so much and whose token takes so long; a tenth more was promised."""
    work = Workload(seq_len=32, micro_batch=2)
    of = made.case("llama-1m", workload=work, serving=Serving(new_tokens=3), cache=CacheSpec(cache_dtype=dtype))
    samples = [Sample(Quantity.CACHE, nbytes, 0, component=made.Component.KEYS)]
    samples += made.series(Quantity.DECODE_TIME, [seconds] * 12) + made.series(Quantity.PREFILL_TIME, [0.5] * 6)
    estimate = ServingEstimate((CacheTerm(made.Component.KEYS, nbytes, "f", "s"),), 0.5, seconds * 1.1)
    return CaseResult(of, measurement=made.measured(of, samples), serving=estimate)


def test_served_cases_are_laid_beside_each_other_by_their_tokens_and_caches() -> None:
    found = laid(served(CacheDtype.INT8, 0.2, 1000), served(CacheDtype.BF16, 0.1, 4000))
    (group,) = found.groups
    assert [choice.name for choice in group.choices] == ["bf16", "int8"]
    by = by_title(group)
    assert named(by["first token soonest"]) == ["bf16", "int8"]
    assert (named(by["next token soonest"]), named(by["smallest cache"])) == (["bf16"], ["int8"])
    assert named(by["best trade"]) == ["int8"]  # 200 beside 400
    overview, parts = group_tables(group)
    assert [cell.text for cell in overview.rows[0][:5]] == ["bf16", "500.0 ms", "0.0 %", "100.0 ms", "+10.0 %"]
    assert parts.headings == ("layout", "keys")
    assert [chart.title for chart in group_charts(group, "g")] == ["Time against memory"]
    assert "step" not in side_by_side_markdown(found).split("<details>")[0]
    json.dumps(side_by_side_mapping(found), allow_nan=False)


# --- what is said of it ----------------------------------------------------------------------------------------------


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
    assert "fsdp2" in page.read_text()
    assert "<script" in page.read_text()
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
