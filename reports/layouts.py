"""The table of strategies: what each divides, sends and needs, what it combines with, and what is refused and why."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from parallelism.base import Strategy
from parallelism.strategies import STRATEGIES, strategies_of
from suite.case_rules import CASE_RULES
from suite.layout import Layout
from suite.layout_rules import RULES
from suite.parse import SpecError
from suite.serving_rules import SERVING_RULES


def strategies_mapping() -> dict[str, Any]:
    """The table as JSON-ready data: the strategies, the pairs that are refused, and the rules."""
    pairs = dict(refused_pairs())
    return {
        "strategies": [_row(strategy, pairs) for strategy in STRATEGIES.values()],
        "refused_pairs": [{"strategies": list(pair), "reason": reason} for pair, reason in pairs.items()],
        "rules": [{"refused": what, "because": why} for what, why in _rules()],
    }


def _rules() -> Iterator[tuple[str, str]]:
    for rule in RULES:
        yield rule.what, rule.why
    for fit in CASE_RULES:
        yield fit.what, fit.why
    for served in SERVING_RULES:
        yield f"of a served case: {served.what}", served.why


def refused_pairs() -> Iterator[tuple[tuple[str, str], str]]:
    """Pairs of strategies whose smallest layouts cannot be one layout, with the reason that a Case would give."""
    for one, other in combinations(STRATEGIES.values(), 2):
        try:
            both = Layout(**{**one.example, **other.example})
        except SpecError as refusal:
            yield (one.name, other.name), str(refusal)
            continue
        idle = next((each.name for each in (one, other) if not each.is_used(both)), None)
        if idle is not None:
            run_by = ", ".join(each.name for each in strategies_of(both))
            yield (one.name, other.name), f"{both} is run by {run_by}: {idle} is not needed there"


def _row(strategy: Strategy, pairs: dict[tuple[str, str], str]) -> dict[str, Any]:
    refused = {name for pair in pairs if strategy.name in pair for name in pair}
    return {
        "name": strategy.name,
        "setting": strategy.axis,
        "divides": sorted(strategy.divides),
        "costs": strategy.overheads,
        "sends": strategy.sends,
        "needs": strategy.needs,
        "combines_with": [name for name in STRATEGIES if name != strategy.name and name not in refused],
    }


def print_strategies(answer: dict[str, Any], console: Console) -> None:
    """The strategies one below the other, then what is refused and why."""
    for row in answer["strategies"]:
        table = Table(box=None, show_header=False, pad_edge=False, title=Text(row["name"], style="bold"))
        table.title_justify = "left"
        table.add_column(no_wrap=True, style="dim")
        table.add_column(overflow="fold")
        for key, value in row.items():
            if key != "name":
                text = ", ".join(value) if isinstance(value, list) else value
                table.add_row(key.replace("_", " "), Text(text or "nothing"))
        console.print(table)
        console.print()
    pairs = [(" with ".join(pair["strategies"]), pair["reason"]) for pair in answer["refused_pairs"]]
    console.print(_reasons("pairs that are not combined, at their smallest", pairs))
    rules = [(rule["refused"], rule["because"]) for rule in answer["rules"]]
    console.print(_reasons("refused before launch", rules))


def _reasons(title: str, rows: list[tuple[str, str]]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left", pad_edge=False)
    table.add_column("what", overflow="fold")
    table.add_column("because", overflow="fold")
    for what, why in rows:
        table.add_row(Text(what), Text(why))
    return table
