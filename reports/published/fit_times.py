"""Constants of step times fitted again: one fitter a set, on rows with split = fit."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from reports.published.megatron_machines import B200, JEAN_ZAY, SHARE
from reports.published.megatron_steps import megatron_step, selene_step
from reports.published.step_time import StepTime
from reports.published.time_constants import FittedSet, recorded_sets
from reports.published.vtrain import FAMILIES, FITTED, START, WHAT, vtrain_step
from suite.published import PublishedRow

FOLDS = 5


@dataclass(frozen=True)
class Fitter:
    """How a set of constants is fitted: the families whose `quantity` rows it is fitted on, where the search starts,
    the predictor that it is for, and tensor-parallel degrees to keep to (empty: any)."""

    families: tuple[str, ...]
    quantity: str
    start: Mapping[str, float]
    what: Mapping[str, str]
    predict: Callable[[PublishedRow, Mapping[str, FittedSet]], StepTime]
    tp: tuple[int, ...] = ()


#: by the set's name
FITTERS: dict[str, Fitter] = {
    FITTED: Fitter(FAMILIES, "step_seconds", START, WHAT, vtrain_step),
    "megatron_selene": Fitter(("vtrain_multi",), "step_seconds", {"matrix_share": 0.8}, SHARE, selene_step, (8,)),
    "megatron_zero_bubble": Fitter(
        ("zero_bubble",), "samples_per_s_per_gpu", {"matrix_share": 0.8}, SHARE, megatron_step
    ),
    "megatron_internevo": Fitter(
        ("internevo",), "tokens_per_s_per_gpu", {"matrix_share": 0.8}, SHARE, megatron_step
    ),
    "megatron_jean_zay": Fitter(
        ("bigscience",), "step_seconds", {"matrix_share": 0.7, "unaligned_share": 0.7}, JEAN_ZAY, megatron_step
    ),
    "megatron_b200": Fitter(
        ("simumax_b200",), "step_seconds", {"matrix_share": 0.6, "half_waves": 3.0}, B200,
        megatron_step,
    ),
}  # fmt: skip


def fit_sets(rows: Sequence[PublishedRow]) -> dict[str, FittedSet]:
    """The sets that rows with split = fit speak of, fitted on them; the others are not in it."""
    found = {}
    for name, fitter in FITTERS.items():
        own = rows_of(fitter, rows)
        if len(own) >= len(fitter.start):
            found[name] = fit_set(name, own)
    return found


def rows_of(fitter: Fitter, rows: Sequence[PublishedRow]) -> list[PublishedRow]:
    """Those a fitter may use."""
    return [
        row
        for row in rows
        if row.text("split") == "fit"
        and row.family in fitter.families
        and row.quantity == fitter.quantity
        and (not fitter.tp or row.count("tp") in fitter.tp)
    ]


def fit_set(name: str, rows: Sequence[PublishedRow], start: Mapping[str, float] | None = None) -> FittedSet:
    """One set on these rows."""
    from reports.published.least_squares import fit  # numpy: loaded where something is fitted, not to read a table

    fitter = FITTERS[name]
    base = FittedSet(fitter.start, fitter.what, ())

    def logarithms(values: Mapping[str, float]) -> list[float]:
        sets = {**recorded_sets(), name: replace(base, values=values)}
        return [math.log(_over_published(row, fitter.predict(row, sets))) for row in rows]

    found = fit(start or fitter.start, logarithms)
    return FittedSet(found.values, fitter.what, tuple(sorted(row.row_id for row in rows)))


def fold_errors(name: str, rows: Sequence[PublishedRow]) -> list[float]:
    """Signed relative errors of rows that were left out: fold k is every fifth row from the k-th."""
    fitter, errors = FITTERS[name], []
    for fold in range(FOLDS):
        held = [row for place, row in enumerate(rows) if place % FOLDS == fold]
        kept = [row for place, row in enumerate(rows) if place % FOLDS != fold]
        sets = {**recorded_sets(), name: fit_set(name, kept)}
        errors += [_over_published(row, fitter.predict(row, sets)) - 1 for row in held]
    return errors


def _over_published(row: PublishedRow, step: StepTime) -> float:
    """Predicted over published seconds, of rows that print a step's time, or its sequences or tokens a second and
    GPU."""
    if row.quantity in ("samples_per_s_per_gpu", "tokens_per_s_per_gpu"):
        length = step.seq_len if row.quantity.startswith("tokens") else 1
        return step.seconds * (row.published or 1.0) * step.gpus / (step.sequences * length)
    return step.seconds / (row.published or 1.0)
