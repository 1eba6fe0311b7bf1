"""Would predicted times pick the right layout? Regret and rank correlation over runs of one model, GPUs and batch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import median
from typing import Any

from suite.published import PublishedRow

#: what the runs of a choice have in common: model, GPUs, tokens of a step
COMMON = ("layers", "hidden", "heads", "vocab", "seq_len", "gpus", "global_batch", "recompute_kind", "precision_kind")
#: fewer layouts than these are no choice
LEAST = 2


@dataclass(frozen=True)
class Candidate:
    """A layout of a choice: measured and predicted seconds of its step."""

    row: PublishedRow
    measured: float
    predicted: float


@dataclass(frozen=True)
class Choice:
    """The layouts that were measured for one model, number of GPUs and global batch."""

    family: str
    label: str
    candidates: tuple[Candidate, ...]

    @cached_property
    def picked(self) -> Candidate:
        """The one with the lowest prediction; of equal ones the first."""
        return min(self.candidates, key=lambda candidate: candidate.predicted)

    @cached_property
    def best(self) -> Candidate:
        """The one that was measured fastest."""
        return min(self.candidates, key=lambda candidate: candidate.measured)

    @property
    def regret(self) -> float:
        """Measured time of the pick over the best one's, less one."""
        return self.picked.measured / self.best.measured - 1

    @cached_property
    def correlation(self) -> float | None:
        """Spearman's between predictions and measurements; None where either has no order."""
        return spearman([c.predicted for c in self.candidates], [c.measured for c in self.candidates])


@dataclass(frozen=True)
class Ranking:
    """All choices of a source."""

    family: str
    choices: tuple[Choice, ...]

    @property
    def median_regret(self) -> float:
        """Half of the choices lose no more than this."""
        return median(choice.regret for choice in self.choices)

    @property
    def worst(self) -> Choice:
        """The choice with the largest regret."""
        return max(self.choices, key=lambda choice: choice.regret)

    @property
    def mean_regret(self) -> float:
        """Over all choices."""
        return sum(choice.regret for choice in self.choices) / len(self.choices)

    @property
    def exact(self) -> int:
        """Choices whose pick is the best one."""
        return sum(choice.regret == 0 for choice in self.choices)

    def correlations(self, least: int = 4) -> list[float]:
        """Of the choices with that many layouts or more."""
        found = (choice.correlation for choice in self.choices if len(choice.candidates) >= least)
        return [each for each in found if each is not None]

    @property
    def median_correlation(self) -> float | None:
        """Of the choices with four layouts or more; None without any."""
        found = self.correlations()
        return median(found) if found else None


def rank_choices(timed: Iterable[tuple[PublishedRow, float]]) -> tuple[Ranking, ...]:
    """Rows of measured step times with their predicted seconds -> the choices among them, a source at a time.

    Rows of a choice share every cell of COMMON and their source. Those with one layout only are no choice.
    """
    groups: dict[tuple[str, ...], list[Candidate]] = {}
    for row, predicted in timed:
        measured = row.published
        if row.quantity == "step_seconds" and measured and row.text("global_batch"):
            key = (row.family, *(row.text(name) for name in COMMON))
            groups.setdefault(key, []).append(Candidate(row, measured, predicted))
    rankings: dict[str, list[Choice]] = {}
    for (family, *_), found in groups.items():
        if len(found) >= LEAST:
            rankings.setdefault(family, []).append(Choice(family, _label(found[0].row), tuple(found)))
    return tuple(Ranking(family, tuple(choices)) for family, choices in rankings.items())


def spearman(left: Sequence[float], right: Sequence[float]) -> float | None:
    """Pearson's correlation of ranks, equal values sharing their mean rank; None where one side is all equal."""
    a, b = _ranks(left), _ranks(right)
    mean = (len(a) + 1) / 2
    over = sum((x - mean) * (y - mean) for x, y in zip(a, b, strict=True))
    under = sum((x - mean) ** 2 for x in a) * sum((y - mean) ** 2 for y in b)
    return over / under**0.5 if under else None


def _ranks(values: Sequence[float]) -> list[float]:
    ordered = sorted(values)
    return [ordered.index(value) + (ordered.count(value) + 1) / 2 for value in values]


def _label(row: PublishedRow) -> str:
    return f"{row.text('layers')}x{row.text('hidden')} on {row.text('gpus')} GPUs, batch {row.text('global_batch')}"


def ranking_mapping(ranking: Ranking) -> dict[str, Any]:
    """As JSON-ready data."""
    return {
        "family": ranking.family,
        "choices": len(ranking.choices),
        "exact": ranking.exact,
        "median_regret": ranking.median_regret,
        "mean_regret": ranking.mean_regret,
        "worst_regret": ranking.worst.regret,
        "median_rank_correlation": ranking.median_correlation,
        "choices_correlated": len(ranking.correlations()),
        "worst": _choice_mapping(ranking.worst),
    }


def _choice_mapping(choice: Choice) -> dict[str, Any]:
    return {
        "label": choice.label,
        "layouts": len(choice.candidates),
        "picked": choice.picked.row.row_id,
        "picked_layout": layout_text(choice.picked.row),
        "best": choice.best.row.row_id,
        "best_layout": layout_text(choice.best.row),
        "regret": choice.regret,
    }


def layout_text(row: PublishedRow) -> str:
    """The layout in letters."""
    return " ".join(f"{name}{row.text(name)}" for name in ("dp", "tp", "pp") if row.text(name)) + (
        f", micro-batch {row.text('micro_batch')}"
    )
