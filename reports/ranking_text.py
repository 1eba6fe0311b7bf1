"""What is said of rankings: a run's choices as a sentence, a table and Markdown; a choice's layouts one by one."""

from __future__ import annotations

from collections import Counter

from reports.compare import CaseComparison
from reports.ranking import Candidate
from reports.run_ranking import Held, RunChoice, RunRanking, held, regret_judged
from reports.serving_tables import TextTable
from reports.text import plural
from suite.units import NOT_KNOWN, bytes_text, number_text, percent_text, seconds_text

HEADINGS = ("choice", "layouts", "predicted fastest", "measured fastest", "regret", "rank correlation", "ranking")
LAYOUT_HEADINGS = (
    "predicted", "measured", "layout", "step predicted", "step measured", "IQR", "error", "peak predicted",
    "peak measured", "error",
)  # fmt: skip
#: columns of words
WORDS = ("choice", "layout", "predicted fastest", "measured fastest", "ranking")
TITLE = "Layouts ranked: the one predicted fastest beside the one measured fastest"


def ranking_sentence(ranking: RunRanking | None) -> str:
    """How often the layout predicted fastest was fastest, and what was lost where not; empty without a choice."""
    if ranking is None:
        return ""
    choices, correlation = len(ranking.choices), ranking.median_correlation
    unsure = Counter(map(held, ranking.choices))[Held.UNSURE]
    said = (
        f"Of {plural(choices, 'choice')} between layouts, the one predicted fastest was measured fastest in"
        f" {ranking.exact}; regret {percent_text(ranking.median_regret, 1)} in median,"
        f" {percent_text(ranking.mean_regret, 1)} on average, {percent_text(ranking.worst.regret, 1)} at worst"
        f" ({ranking.worst.label})"
    )
    said += f"; {unsure} not to be told from noise" if unsure else ""
    return said + (f"; rank correlation {number_text(correlation, 3)} in median." if correlation is not None else ".")


def ranking_rows(ranking: RunRanking) -> tuple[tuple[str, ...], ...]:
    """A row a choice."""
    return tuple(
        (
            choice.label, str(len(choice.candidates)), choice.picked.layout, choice.best.layout, regret_text(choice),
            _correlation(choice), held(choice).value,
        )
        for choice in ranking.choices
    )  # fmt: skip


def ranking_table(ranking: RunRanking) -> TextTable:
    """Its choices."""
    return TextTable(TITLE, HEADINGS, ranking_rows(ranking), WORDS)


def regret_text(choice: RunChoice) -> str:
    """'4.1 % (1.9 to 6.0 %)': with the interval that the readings leave it, 95 in 100."""
    found = regret_judged(choice)
    between = ""
    if found and found.interval:
        between = f" ({percent_text(found.interval.low, 1)} to {percent_text(found.interval.high, 1)})"
    return percent_text(choice.regret, 1) + between


def layout_table(choice: RunChoice) -> TextTable:
    """Every layout of a choice in the order that was predicted: its places, its time and its peak, both ways."""
    order = sorted(choice.candidates, key=lambda candidate: candidate.predicted)
    places = {each.name: place for place, each in enumerate(sorted(order, key=lambda each: each.measured), 1)}
    rows = tuple(_layout_row(place, places[each.name], each) for place, each in enumerate(order, 1))
    return TextTable(f"{choice.label}: layouts in the order predicted", LAYOUT_HEADINGS, rows, WORDS)


def _layout_row(predicted: int, measured: int, candidate: Candidate[CaseComparison]) -> tuple[str, ...]:
    of = candidate.of
    peak, step = of.peak, of.speed.step
    return (
        str(predicted), str(measured), candidate.layout, seconds_text(candidate.predicted),
        seconds_text(candidate.measured), seconds_text(step.iqr if step else None),
        percent_text(candidate.predicted / candidate.measured - 1, 1, signed=True),
        bytes_text(peak.predicted.bytes if peak.predicted else None),
        bytes_text(peak.measured.bytes if peak.measured else None), percent_text(peak.error, 2, signed=True),
    )  # fmt: skip


def _correlation(choice: RunChoice) -> str:
    return NOT_KNOWN if choice.correlation is None else number_text(choice.correlation, 3)
