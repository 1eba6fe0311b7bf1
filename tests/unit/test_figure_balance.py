"""The balance of experts: shares by hand, and a figure where a run has routing."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest

from reports.compare import CaseResult, Run
from reports.figure_balance import block_loads
from reports.figures import charts
from reports.summary import compare_run
from suite.case import case_from
from suite.record import Quantity, Sample
from tests.unit import report_samples as made

pytestmark = pytest.mark.unit

#: of 4 experts: block 1's get 10, 30, 0, 0 of rank 0 and 20, 0, 20, 0 of rank 1; block 3's all alike
ROUTED = {0: {4: 10, 5: 30, 6: 0, 7: 0, 12: 5, 13: 5, 14: 5, 15: 5}, 1: {4: 20, 5: 0, 6: 20, 7: 0}}
SAMPLES = tuple(
    Sample(Quantity.ROUTED_TOKENS, tokens, rank, index) for rank, row in ROUTED.items() for index, tokens in row.items()
)


def test_ranks_are_summed_and_compared_with_an_even_share() -> None:
    first, second = block_loads(4, SAMPLES)
    assert (first.block, first.tokens, first.even, first.imbalance) == (1, (30, 30, 20, 0), 20, 1.5)
    assert (second.block, second.tokens, second.imbalance) == (3, (5, 5, 5, 5), 1)
    assert first.words == ("block 1: expert 0 got most, 30 tokens, 1.5 of an even share; expert 3 fewest, 0, 0")


@pytest.mark.parametrize("has_routing", [True, False])
def test_the_page_has_the_figure_only_where_routing_was_recorded(has_routing: bool) -> None:
    experts = {"count": 4, "top_k": 1, "ffn": 32}
    case = case_from({"model": {"layers": 4, "hidden": 32, "heads": 4, "ffn": 32, "vocab": 64, "experts": experts}})
    samples = (*made.memory_samples({}), *(SAMPLES if has_routing else ()))
    result = CaseResult(case, (), None, made.measured(case, samples))
    found = {chart.key: chart for chart in charts(compare_run(Run("r", "now", "s", "bench", {}, (result,))))}
    assert ("balance-0" in found) is has_routing
    if has_routing:
        chart = found["balance-0"]
        drawn = ElementTree.fromstring(chart.svg)
        titles = [item.text for item in drawn.iter() if item.tag.endswith("title")]
        assert any(text and text.startswith("block 1: expert 0 got most, 30 tokens, 1.5 of") for text in titles)
        assert "Furthest from even: block 1: expert 0" in chart.caption
