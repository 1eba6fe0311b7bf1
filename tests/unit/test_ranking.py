"""Picks, regret and rank correlation by hand."""

from __future__ import annotations

import pytest

from reports.published.choices import rank_choices
from reports.ranking import ranking_mapping, spearman
from suite.published import PublishedRow, TableKind

pytestmark = pytest.mark.unit


def timed(row_id: str, measured: float, predicted: float, **cells: str) -> tuple[PublishedRow, float]:
    base = {"family": "f", "quantity": "step_seconds", "global_batch": "8", "layers": "2", "gpus": "8", "tp": "1"}
    return PublishedRow(TableKind.RUNS, row_id, {**base, "value_si": str(measured), **cells}), predicted


def test_the_pick_is_the_lowest_prediction_and_pays_its_measured_time() -> None:
    """Predicted order b, a, c; measured order a, c, b: b was picked, 3 s where 2 s was best."""
    rows = [timed("a", 2, 2.0, tp="2"), timed("b", 3, 1.5, tp="4"), timed("c", 2.5, 9)]
    (ranking,) = rank_choices(rows)
    (choice,) = ranking.choices
    assert (choice.picked.name, choice.best.name) == ("b", "a")
    assert choice.regret == pytest.approx(0.5)
    assert choice.correlation == pytest.approx(1 - 6 * (1 + 4 + 1) / (3 * 8))  # rank differences 1, -2, 1
    assert (ranking.exact, ranking.median_regret, ranking.median_correlation) == (0, 0.5, None)
    assert ranking_mapping(ranking)["worst"]["picked_layout"].startswith("tp4")


def test_runs_of_other_models_gpus_or_batches_are_no_choice() -> None:
    rows = [timed("a", 1, 1), timed("b", 2, 2, gpus="4"), timed("c", 2, 2, layers="3"), timed("d", 2, 2, family="g"),
            timed("e", 2, 2, global_batch="4"), timed("f", 2, 2, quantity="mfu")]  # fmt: skip
    assert rank_choices(rows) == ()


def test_spearmans_correlation_shares_ranks_of_equal_values() -> None:
    """Ranks 1, 2.5, 2.5, 4 against 1, 2, 3, 4: 4.5 / sqrt(4.5 * 5)."""
    assert spearman([1, 5, 5, 9], [1, 2, 3, 4]) == pytest.approx(4.5 / (4.5 * 5) ** 0.5)
    assert spearman([1, 2, 3], [30, 20, 10]) == pytest.approx(-1)
    assert spearman([1, 1], [1, 2]) is None
