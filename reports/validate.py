"""`validate`: published rows joined with what the formulas say of them, and scored a table and quantity at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from reports.published.analytic import predict_analytic
from reports.published.answers import CannotModel, Prediction
from reports.published.choices import rank_choices
from reports.published.fitted import Constants, fit_constants
from reports.published.kv_cache import predict_kv_cache
from reports.published.parameters import predict_parameters
from reports.published.runs import allocated_bytes, predict_run
from reports.published.serving import predict_serving
from reports.ranking import Ranking, ranking_mapping
from suite.parse import SpecError
from suite.published import PublishedRow, PublishedTable, TableKind, UnreadableCell, read_table


@dataclass(frozen=True)
class Result:
    """A row that was predicted. The error is (predicted - published) / published; a row that ran out of memory has
    none: it says only that the figure is larger than the device's memory."""

    row: PublishedRow
    prediction: Prediction

    @property
    def published(self) -> float | None:
        """The figure in bytes, or in what the quantity counts."""
        return self.row.published

    @property
    def error(self) -> float | None:
        """Signed and relative."""
        if not self.published:
            return None
        return (self.prediction.value - self.published) / self.published

    @property
    def is_fitted(self) -> bool:
        """Did a constant of its prediction come from this row's own figure, or another of the same run?"""
        return self.row.row_id in self.prediction.fitted_on

    @property
    def exceeds(self) -> bool | None:
        """Of a run that ended without memory: is the prediction larger than what there was? None for other rows."""
        limit = self.prediction.limit
        return None if limit is None else self.prediction.value > limit

    @property
    def prints_as_published(self) -> bool:
        """Would the prediction be printed with the published digits?"""
        return self.row.prints_as(self.prediction.value)


@dataclass(frozen=True)
class Skipped:
    """A row without a prediction, and why."""

    row: PublishedRow
    reason: str


@dataclass(frozen=True)
class Score:
    """How far a set of predictions is off. Rows that a constant was fitted on are not counted, nor those without a
    figure."""

    results: tuple[Result, ...]

    @cached_property
    def errors(self) -> tuple[float, ...]:
        """Signed relative errors of the rows that count."""
        return tuple(r.error for r in self.results if r.error is not None and not r.is_fitted)

    @property
    def mean_absolute(self) -> float | None:
        """Mean of the errors' sizes."""
        return sum(map(abs, self.errors)) / len(self.errors) if self.errors else None

    @property
    def bias(self) -> float | None:
        """Mean of the signed errors."""
        return sum(self.errors) / len(self.errors) if self.errors else None

    @property
    def worst(self) -> float | None:
        """The largest error, with its sign."""
        return max(self.errors, key=abs) if self.errors else None

    @property
    def fitted(self) -> int:
        """Rows that a constant was fitted on."""
        return sum(result.is_fitted for result in self.results)

    def by_family(self) -> dict[str, Score]:
        """Scores of the rows of each source."""
        names = dict.fromkeys(result.row.family for result in self.results)
        return {name: Score(tuple(r for r in self.results if r.row.family == name)) for name in names}


@dataclass(frozen=True)
class QuantityResult:
    """All rows of a quantity of a table."""

    quantity: str
    results: tuple[Result, ...]
    skipped: tuple[Skipped, ...]

    @property
    def score(self) -> Score:
        """Over every family."""
        return Score(self.results)


@dataclass(frozen=True)
class TableResult:
    """A table's quantities, in the order in which they first stand there."""

    table: PublishedTable
    quantities: tuple[QuantityResult, ...]

    @cached_property
    def rankings(self) -> tuple[Ranking[PublishedRow], ...]:
        """Choices among measured layouts, where several of one model, number of GPUs and batch were timed."""
        times = [r for found in self.quantities if found.quantity == "step_seconds" for r in found.results]
        return rank_choices((result.row, result.prediction.value) for result in times)


@dataclass(frozen=True)
class Validation:
    """Every table, and the constants that were fitted for them."""

    tables: tuple[TableResult, ...]
    constants: Constants


def validate_tables(paths: Sequence[str], fit_paths: Sequence[str] = ()) -> Validation:
    """Predict every row of the tables at `paths`.

    Constants are fitted on rows with split = fit of the tables at `fit_paths`, or are the recorded ones where none is
    given. SpecError, in one line, for a table that cannot be read.
    """
    fit = [row for path in fit_paths for row in read_table(path).rows]
    constants = fit_constants(fit, allocated_bytes) if fit_paths else Constants()
    return Validation(tuple(validate_table(read_table(path), constants) for path in paths), constants)


def validate_table(table: PublishedTable, constants: Constants) -> TableResult:
    """Every row of a table, by quantity."""
    rows = [figure for row in table.rows for figure in row.figures]
    answers = [_answer(row, constants) for row in rows]
    names = dict.fromkeys(row.quantity for row in rows)
    return TableResult(table, tuple(_of_quantity(name, answers) for name in names))


def _of_quantity(name: str, answers: Iterable[Result | Skipped]) -> QuantityResult:
    own = [answer for answer in answers if answer.row.quantity == name]
    return QuantityResult(
        name,
        tuple(answer for answer in own if isinstance(answer, Result)),
        tuple(answer for answer in own if isinstance(answer, Skipped)),
    )


def _answer(row: PublishedRow, constants: Constants) -> Result | Skipped:
    predictors: dict[TableKind, Callable[[PublishedRow], Prediction]] = {
        TableKind.PARAMETERS: predict_parameters,
        TableKind.SERVING: predict_serving,
        TableKind.KV_CACHE: predict_kv_cache,
        TableKind.ANALYTIC: predict_analytic,
        TableKind.HARDWARE: _calibration,
        TableKind.RUNS: lambda run: predict_run(run, constants),
    }
    try:
        return Result(row, predictors[row.kind](row))
    except (CannotModel, UnreadableCell, SpecError) as reason:  # a row's case may be one that a rule refuses
        return Skipped(row, str(reason))


def _calibration(row: PublishedRow) -> Prediction:
    raise CannotModel("calibration material: it feeds a device's figures, and no formula predicts it")


def validation_mapping(validation: Validation) -> dict[str, Any]:
    """`validate --json`: scores and rows of every table and quantity, skipped rows with their reason."""
    return {
        "tables": [
            {
                "table": found.table.name,
                "kind": found.table.kind.value,
                "rows": len(found.table.rows),
                "quantities": [_quantity_mapping(quantity) for quantity in found.quantities],
                "rankings": [ranking_mapping(ranking) for ranking in found.rankings],
            }
            for found in validation.tables
        ],
        "constants": validation.constants.to_mapping(),
    }


def _quantity_mapping(found: QuantityResult) -> dict[str, Any]:
    return {
        "quantity": found.quantity,
        **_score_mapping(found.score),
        "families": {name: _score_mapping(score) for name, score in found.score.by_family().items()},
        "results": [_result_mapping(result) for result in found.results],
        "skipped": [
            {
                "row_id": skip.row.row_id,
                "family": skip.row.family,
                "published": skip.row.published,
                "reason": skip.reason,
            }
            for skip in found.skipped
        ],
    }


def _score_mapping(score: Score) -> dict[str, Any]:
    return {
        "rows": len(score.errors),
        "mean_absolute_error": score.mean_absolute,
        "worst": score.worst,
        "bias": score.bias,
        "fitted_rows": score.fitted,
    }


def _result_mapping(result: Result) -> dict[str, Any]:
    row = result.row
    return {
        "row_id": row.row_id,
        "family": row.family,
        "split": row.text("split"),
        "ambiguity": row.text("ambiguity"),
        "published": result.published,
        "predicted": result.prediction.value,
        "error": result.error,
        "prints_as_published": result.prints_as_published,
        "exceeds_device": result.exceeds,
        "fitted": result.is_fitted,
        "basis": result.prediction.basis,
        "assumed": list(result.prediction.assumed),
        "source": row.text("source"),
    }
