"""Layouts of one run side by side: who is grouped with whom, what noise ties, who wins where."""

from __future__ import annotations

import json
import random
from dataclasses import replace

import pytest

from reports.compare import CaseResult
from reports.side_by_side.apart import Rule, lowest
from reports.side_by_side.figures import group_charts
from reports.side_by_side.mapping import side_by_side_mapping
from reports.side_by_side.markdown import side_by_side_markdown
from reports.side_by_side.tables import group_tables
from reports.side_by_side.wins import Basis, front, wins
from suite.cache import CacheDtype
from suite.layout import Layout
from suite.parse import SpecError
from suite.record import Moment, Outcome
from suite.spec import AttentionKernel, Precision, Recipe
from tests.unit import report_samples as made
from tests.unit.layout_samples import DP, FSDP, PP, TP, by_title, case, four, laid, named, result, served

pytestmark = pytest.mark.unit

TIMED = Rule(0.02, scatters=True)


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
