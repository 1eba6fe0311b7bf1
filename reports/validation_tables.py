"""What `validate` prints for a person: scores by table, quantity and source, what is skipped and why, and the rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from reports.text import plain
from reports.validate import QuantityResult, Result, Score, TableResult, Validation
from suite.published import TableKind
from suite.units import bytes_text, number_text, percent_text

_ALARM = "bold red"
#: words in the names of quantities that are bytes
_BYTES = ("bytes", "fits", "kv_kib", "weights", "optimizer", "activations", "states", "profile_")
#: words in the names of other quantities, the first that is there counts, and the unit of their figures
_UNITS = (
    ("pct", "%"), ("tokens_per_s", "tokens/s"), ("samples_per_s", "samples/s"), ("images_per_s", "images/s"),
    ("seconds", "s"), ("tflops", "TFLOP/s"), ("tokens", "tokens"), ("blocks", "blocks"),
)  # fmt: skip
#: the columns of scores and the characters that each takes
_WIDTHS = {"rows": 4, "mean": 8, "worst": 9, "bias": 9, "exact": 5, "fitted": 6, "skipped": 7}


def print_validation(validation: Validation, console: Console, rows: bool = False) -> None:
    """The scores, and why rows are skipped; with `rows` every row's published figure, prediction and error."""
    for found in validation.tables:
        kind = ": figures that their authors computed" if found.table.kind is TableKind.ANALYTIC else ""
        console.print(_text(f"{found.table.name}{kind}", "bold underline"))
        for table in score_tables(found):
            console.print(table)
        if found.rankings:
            console.print(ranking_table(found))
        if rows:
            for quantity in found.quantities:
                if quantity.results:
                    console.print(row_table(found, quantity))
        for reason, count in skip_reasons(found).items():
            console.print(_text(f"skipped {count}: {reason}", "dim"))
    console.print(
        _text(
            "Errors are (predicted - published) / published, `mean` of their sizes; `exact` rows print as published;"
            " those that a constant was fitted on are not scored."
        )
    )


def score_tables(found: TableResult) -> Iterator[Table]:
    """A table a quantity, a line a source: rows scored, mean absolute error, worst, bias, rows that print as published,
    rows fitted on, rows skipped. Their columns stand below each other."""
    for number, quantity in enumerate(found.quantities):
        table = Table(
            title=_text(quantity.quantity, "bold"), title_justify="left", box=None, pad_edge=False,
            show_header=number == 0,
        )  # fmt: skip
        table.add_column("source", overflow="fold", min_width=14, max_width=24)
        for name, width in _WIDTHS.items():
            table.add_column(name, justify="right", min_width=width)
        skipped = Counter(skip.row.family for skip in quantity.skipped)
        families = quantity.score.by_family()
        for name in dict.fromkeys([*families, *skipped]):
            table.add_row(*_cells(name, families.get(name, Score(())), skipped[name]))
        yield table


def _cells(family: str, score: Score, skipped: int) -> list[Text]:
    printed = sum(result.prints_as_published for result in score.results)
    numbers = [score.mean_absolute, score.worst, score.bias]
    texts = [percent_text(numbers[0]), *(percent_text(number, signed=True) for number in numbers[1:])]
    counts = [str(len(score.errors)), *texts, str(printed), str(score.fitted), str(skipped)]
    return [_text(text) for text in (family, *counts)]


def row_table(found: TableResult, quantity: QuantityResult) -> Table:
    """Every row of a quantity that was predicted."""
    table = _table(f"{found.table.name}: {quantity.quantity}")
    _head(table, "row", right=False)
    for name in ("published", "predicted", "error"):
        _head(table, name)
    _head(table, "by", right=False)
    for result in quantity.results:
        table.add_row(
            _text(f"{result.row.row_id} {result.row.text('model')}".strip()),
            _text(figure_text(quantity.quantity, result.published)),
            _text(figure_text(quantity.quantity, result.prediction.value)),
            _error(result),
            _text("; ".join((result.prediction.basis, *result.prediction.assumed)), "dim"),
        )
    return table


def ranking_table(found: TableResult) -> Table:
    """Would the predictions have picked the right layout? A line a source; regret is the pick's measured time over the
    best one's, less one; correlation is of ranks, over choices with four layouts or more. Rows that constants were
    fitted on are among them."""
    table = _table(
        "Layout picked by predicted time among those measured for a model, GPUs and batch (fitted rows, too)"
    )
    _head(table, "source", right=False)
    for name in ("choices", "best picked", "regret: median", "worst", "rank correlation"):
        _head(table, name)
    for ranking in found.rankings:
        correlation = ranking.median_correlation
        cells = (
            ranking.family, str(len(ranking.choices)), str(ranking.exact), percent_text(ranking.median_regret),
            f"{percent_text(ranking.worst.regret)} ({ranking.worst.label})",
            "n/a" if correlation is None else number_text(correlation, 3),
        )  # fmt: skip
        table.add_row(*map(_text, cells))
    return table


def skip_reasons(found: TableResult) -> dict[str, int]:
    """Reason -> how many rows, the most frequent first."""
    return dict(Counter(skip.reason for quantity in found.quantities for skip in quantity.skipped).most_common())


def figure_text(quantity: str, value: float | None) -> str:
    """A figure with its unit: bytes in a readable one, others with six digits. A run without memory has none."""
    if value is None:
        return "out of memory"
    if any(word in quantity for word in _BYTES) and "pct" not in quantity:
        return bytes_text(value)
    return f"{number_text(value, 6)} {unit_of(quantity)}".strip()


def unit_of(quantity: str) -> str:
    """The unit of a quantity's figures; empty for bytes, whose unit goes with their size, and for bare numbers."""
    if any(word in quantity for word in _BYTES) and "pct" not in quantity:
        return ""
    return next((unit for word, unit in _UNITS if word in quantity), "")


def error_text(result: Result) -> str:
    """'+1.60 %'; of a run that ended without memory, whether the prediction is larger, too."""
    if result.exceeds is not None:
        return "larger, too" if result.exceeds else "predicted to fit"
    return percent_text(result.error, signed=True) + (" (fitted on)" if result.is_fitted else "")


def _error(result: Result) -> Text:
    return _text(error_text(result), _ALARM if result.exceeds is False else "")


def _table(title: str) -> Table:
    return Table(title=_text(title, "bold"), box=box.SIMPLE_HEAD, title_justify="left", pad_edge=False)


def _head(table: Table, name: str, right: bool = True) -> None:
    table.add_column(_text(name), justify="right" if right else "left", overflow="fold")


def _text(text: str, style: str = "") -> Text:
    return Text(plain(text), style=style)
