"""Timing in turn: the order moves on, warm-up is dropped, intervals hold what they should."""

from __future__ import annotations

import gc

import pytest

from suite.interleaved import interleave, median_difference, ratio_of_medians


@pytest.mark.unit
def test_each_contestant_has_one_turn_a_round_and_the_order_moves_on() -> None:
    turns: list[tuple[str, int]] = []
    seen: list[int] = []
    contestants = {name: lambda index, name=name: turns.append((name, index)) for name in "abc"}
    readings = interleave(contestants, rounds=3, warmup=1, tell=seen.append)
    order = ["abc", "bca", "cab", "abc"]
    assert turns == [(name, index) for index, names in enumerate(order) for name in names]
    assert {name: len(values) for name, values in readings.items()} == {"a": 3, "b": 3, "c": 3}
    assert seen == [1, 2, 3, 4]


@pytest.mark.unit
def test_the_garbage_collector_rests_and_comes_back_even_after_a_failure() -> None:
    states: list[bool] = []
    interleave({"a": lambda index: states.append(gc.isenabled())}, rounds=1, warmup=0)
    assert states == [False]

    def fail(index: int) -> None:
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError):
        interleave({"a": fail}, rounds=1, warmup=0)
    assert gc.isenabled()


@pytest.mark.unit
def test_the_ratio_of_medians_and_its_interval() -> None:
    theirs = [float(10 + index % 5) for index in range(25)]
    ours = [0.5 * value for value in theirs]  # a slow moment meets both: the ratio is certain
    ratio = ratio_of_medians(ours, theirs)
    assert (ratio.value, ratio.low, ratio.high) == (0.5, 0.5, 0.5)
    scattered = ratio_of_medians(ours[::-1], theirs)
    assert scattered.value == 0.5
    assert scattered.low < 0.5 < scattered.high
    assert scattered == ratio_of_medians(ours[::-1], theirs)  # the same readings give the same interval


@pytest.mark.unit
def test_the_median_difference_is_taken_round_by_round() -> None:
    found = median_difference([1.0, 20.0, 300.0], [0.5, 19.5, 299.5])
    assert (found.value, found.low, found.high) == (0.5, 0.5, 0.5)


@pytest.mark.unit
@pytest.mark.parametrize("ours, theirs", [((), ()), ((1.0,), (1.0, 2.0))])
def test_unequal_or_missing_rounds_are_refused(ours: tuple[float, ...], theirs: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        ratio_of_medians(ours, theirs)
