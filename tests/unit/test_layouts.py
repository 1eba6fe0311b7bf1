"""The table of strategies says of every pair whether it can be one layout, and of every refusal why."""

from __future__ import annotations

import pytest

from parallelism.strategies import STRATEGIES, strategies_of
from reports.layouts import strategies_mapping
from suite.case_rules import CASE_RULES
from suite.layout import Layout
from suite.layout_rules import RULES
from suite.serving_rules import SERVING_RULES

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_strategys_example_uses_it(name: str) -> None:
    layout = Layout(**STRATEGIES[name].example)
    assert STRATEGIES[name] in strategies_of(layout)


def test_the_table_says_everything_of_every_strategy() -> None:
    rows = {row["name"]: row for row in strategies_mapping()["strategies"]}
    assert list(rows) == list(STRATEGIES)
    for row in rows.values():
        assert all(isinstance(row[key], str) and row[key] for key in ("setting", "costs", "sends", "needs"))
        assert row["setting"] in Layout.__dataclass_fields__


def test_combining_is_mutual_and_what_does_not_combine_has_its_reason() -> None:
    answer = strategies_mapping()
    combines = {row["name"]: set(row["combines_with"]) for row in answer["strategies"]}
    refused = {frozenset(pair["strategies"]): pair["reason"] for pair in answer["refused_pairs"]}
    for one in combines:
        for other in combines:
            if one != other:
                assert (other in combines[one]) == (one in combines[other])
                assert (other in combines[one]) != (frozenset({one, other}) in refused)
    assert all(reason for reason in refused.values())


def test_every_rule_is_listed_with_its_reason() -> None:
    rules = [(rule["refused"], rule["because"]) for rule in strategies_mapping()["rules"]]
    own = [(rule.what, rule.why) for rule in RULES] + [(rule.what, rule.why) for rule in CASE_RULES]
    served = [(f"of a served case: {rule.what}", rule.why) for rule in SERVING_RULES]
    assert rules == own + served
