"""A validation as one self-contained page: scores, layouts picked, predicted against published, and every row."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from reports.figure_validation import quantity_charts
from reports.page_blocks import Block, Figures, Fold, Headline, Notes, Section, Tile, render_document
from reports.page_table import Cell, Column, Kind, Table, Tone, number, words
from reports.ranking import Ranking
from reports.text import plural
from reports.validate import QuantityResult, Result, Score, Skipped, TableResult, Validation
from reports.validation_tables import error_text, figure_text, skip_reasons
from suite.published import PublishedRow, TableKind
from suite.units import count_text, number_text, percent_text

#: tiles of the quantities with the most scored rows
_TILES = 4
#: a row's cells that say which run it was, with the letters before each; those of TEXTS stand alone
_LETTERS = ("dp", "fsdp", "tp", "cp", "pp", "vp", "ep")
_MEANING = (
    "Errors are (predicted - published) / published; mean is of their sizes, bias of the signed ones.",
    "Exact rows would be printed with the published digits. Rows that a constant was fitted on are shown, not scored.",
    "A run that ended without memory has no figure: it says only that its prediction should be larger than there was.",
)


def render_validation(validation: Validation) -> str:
    """The page as HTML."""
    sections = [Section("Scores", tuple(_score_blocks(validation)), "scores")]
    rankings = [ranking for found in validation.tables for ranking in found.rankings]
    if rankings:
        sections.append(Section("Layouts picked", tuple(_ranking_blocks(rankings)), "picked"))
    for place, found in enumerate(validation.tables):
        sections.append(Section(found.table.name, tuple(_table_blocks(found, f"file{place}")), f"file-{place}"))
    names = ", ".join(found.table.name for found in validation.tables)
    return render_document("Predicted against published", sections, meta=(f"Tables: {names}",))


def _score_blocks(validation: Validation) -> Iterator[Block]:
    quantities = [(found, quantity) for found in validation.tables for quantity in found.quantities]
    results = [result for _, quantity in quantities for result in quantity.results]
    skipped = sum(len(quantity.skipped) for _, quantity in quantities)
    exact = sum(result.prints_as_published for result in results)
    largest = sorted((q for _, q in quantities if q.score.errors), key=lambda q: -len(q.score.errors))[:_TILES]
    tiles = [
        Tile(
            "Rows predicted", count_text(len(results)), f"of {count_text(len(results) + skipped)}; others say why not"
        ),
        Tile("Printed as published", count_text(exact), f"of {count_text(len(results))} predictions"),
    ]
    tiles += [
        Tile(
            _named(quantity).capitalize(), percent_text(quantity.score.mean_absolute),
            f"mean absolute error of {plural(len(quantity.score.errors), 'row')}; bias"
            f" {percent_text(quantity.score.bias, signed=True)}",
        )
        for quantity in largest
    ]  # fmt: skip
    yield Headline(tuple(tiles))
    heads = ("rows", "mean", "worst", "bias", "exact", "fitted", "skipped")
    columns = [Column("quantity"), Column("source"), Column("table"), *(Column(name, Kind.NUMBER) for name in heads)]
    rows = tuple(row for found, quantity in quantities for row in _score_rows(found, quantity))
    yield Table("scores", "By quantity and source", tuple(columns), rows, example="step mean>10%")
    yield Notes(_MEANING)


def _score_rows(found: TableResult, quantity: QuantityResult) -> Iterator[tuple[Cell, ...]]:
    skipped = Counter(skip.row.family for skip in quantity.skipped)
    families = quantity.score.by_family()
    for name in dict.fromkeys([*families, *skipped]):
        score = families.get(name, Score(()))
        exact = sum(result.prints_as_published for result in score.results)
        counts = (exact, score.fitted, skipped[name])
        yield (
            words(_named(quantity)), words(name or "not named"), words(found.table.name),
            number(len(score.errors), count_text), number(score.mean_absolute, percent_text),
            number(score.worst, _signed), number(score.bias, _signed), *(number(count, count_text) for count in counts),
        )  # fmt: skip


def _ranking_blocks(rankings: list[Ranking[PublishedRow]]) -> Iterator[Block]:
    heads = ("choices", "best picked", "regret, median", "regret, mean", "regret, worst", "rank correlation")
    columns = (Column("source"), *(Column(name, Kind.NUMBER) for name in heads), Column("worst choice", Kind.PROSE))
    rows = tuple(
        (
            words(ranking.family), number(len(ranking.choices), count_text), number(ranking.exact, count_text),
            number(ranking.median_regret, percent_text), number(ranking.mean_regret, percent_text),
            number(ranking.worst.regret, percent_text), number(ranking.median_correlation, lambda v: number_text(v, 3)),
            words(ranking.worst.label),
        )
        for ranking in rankings
    )  # fmt: skip
    caption = "Would predicted times have picked the right layout among those measured for a model, GPUs and batch?"
    yield Table("rankings", caption, columns, rows)
    yield Notes(
        (
            "Regret is the measured time of the layout picked over the best one's, less one; rows that constants were"
            " fitted on are among them.",
            "Correlation is of ranks, the median over choices of four layouts or more.",
        )
    )
    heads_of_choice = (
        Column("choice"), Column("source"), Column("layouts", Kind.NUMBER), Column("regret", Kind.NUMBER),
        Column("rank correlation", Kind.NUMBER), Column("picked"), Column("measured best"),
    )  # fmt: skip
    choices = [choice for ranking in rankings for choice in ranking.choices]
    lines = tuple(
        (
            words(choice.label), words(choice.family), number(len(choice.candidates), count_text),
            number(choice.regret, percent_text, Tone.GOOD if choice.regret == 0 else Tone.PLAIN),
            number(choice.correlation, lambda v: number_text(v, 3)),
            words(choice.picked.layout), words(choice.best.layout),
        )
        for choice in choices
    )  # fmt: skip
    table = Table("choices", "Every choice", heads_of_choice, lines, example="regret>3% tp8")
    yield Fold("Every choice", (table,), plural(len(choices), "choice"))


def _table_blocks(found: TableResult, key: str) -> Iterator[Block]:
    if found.table.kind is TableKind.ANALYTIC:
        yield Notes(("Figures that their authors computed: a test of formulas, not of time or memory.",))
    charts = [chart for place, each in enumerate(found.quantities) for chart in quantity_charts(each, f"{key}-{place}")]
    if charts:
        yield Figures(tuple(charts))
    answers: list[Result | Skipped] = []
    for quantity in found.quantities:
        answers += (*quantity.results, *quantity.skipped)
    names = ("published", "predicted", "error")
    columns = (
        Column("row"), Column("quantity"), Column("source"), Column("configuration"),
        *(Column(name, Kind.NUMBER) for name in names), Column("state"), Column("by, or why not", Kind.PROSE),
    )  # fmt: skip
    rows = tuple(_row_cells(answer) for answer in answers)
    caption = f"Every row of {found.table.name}; a prediction with what it rests on, or why there is none"
    yield Table(f"{key}-rows", caption, columns, rows, example="tp8 scored error>10%")
    reasons = skip_reasons(found)
    if reasons:
        lines = tuple(f"{plural(count, 'row')}: {reason}" for reason, count in reasons.items())
        yield Fold("Why rows are skipped", (Notes(lines),), plural(sum(reasons.values()), "row"))


def _row_cells(answer: Result | Skipped) -> tuple[Cell, ...]:
    row = answer.row
    start = (words(row.row_id), words(_plain_name(row.quantity)), words(row.family), words(_configuration(row)))
    if isinstance(answer, Skipped):
        figure = None if row.is_oom else _published(row)
        text = "out of memory" if row.is_oom else figure_text(row.quantity, figure) if figure is not None else "n/a"
        return (*start, Cell(text, figure), Cell("n/a"), Cell("n/a"), words("skipped"), words(answer.reason))
    basis = "; ".join((answer.prediction.basis, *answer.prediction.assumed))
    size = None if answer.error is None else abs(answer.error)
    wrong = answer.exceeds is False
    sides = (Cell(figure_text(row.quantity, value), value) for value in (answer.published, answer.prediction.value))
    text = error_text(answer).removesuffix(" (fitted on)")  # the state says so
    error = Cell(text, size, Tone.BAD if wrong else Tone.PLAIN)
    return (*start, *sides, error, words(_state(answer)), words(basis))


def _state(result: Result) -> str:
    if result.exceeds is not None:
        return "out of memory"
    if result.is_fitted:
        return "fitted on"
    return "exact" if result.prints_as_published else "scored"


def _published(row: PublishedRow) -> float | None:
    try:
        return row.published
    except ValueError:  # a cell that is no number: the reason says so
        return None


def _configuration(row: PublishedRow) -> str:
    """The model, and the letters of the layout that are more than one: 'gpt3-175b tp8 pp12 gpus96 batch 64'."""
    sized = f"{row.text('layers')}x{row.text('hidden')}" if row.text("layers") and row.text("hidden") else ""
    letters = [f"{name}{row.text(name)}" for name in _LETTERS if row.text(name) not in ("", "0", "1")]
    counts = [f"{row.text(cell)} {noun}" for cell, noun in (("gpus", "GPUs"),) if row.text(cell)]
    batch = [f"{name.replace('_', '-')} {row.text(name)}" for name in ("micro_batch", "global_batch") if row.text(name)]
    return " ".join(part for part in (row.text("model") or sized, *letters, *counts, *batch) if part)


def _named(quantity: QuantityResult) -> str:
    return _plain_name(quantity.quantity)


def _plain_name(name: str) -> str:
    return name.replace("_", " ")


def _signed(value: float | None) -> str:
    return percent_text(value, signed=True)
