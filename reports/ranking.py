"""Would predicted times pick the right layout? Regret and rank correlation over layouts of a model, GPUs and batch."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import median
from typing import Any, Generic, TypeVar

#: fewer layouts than these are no choice
LEAST = 2
#: layouts from which on a rank correlation says something
CORRELATED = 4

T = TypeVar("T")


@dataclass(frozen=True)
class Candidate(Generic[T]):
    """A layout of a choice: measured and predicted seconds of its step."""

    of: T
    """what was measured: a published row, a case of a run"""
    name: str
    layout: str
    measured: float
    predicted: float


@dataclass(frozen=True)
class Choice(Generic[T]):
    """The layouts that were measured for one model, number of GPUs and global batch."""

    family: str
    label: str
    candidates: tuple[Candidate[T], ...]

    @cached_property
    def picked(self) -> Candidate[T]:
        """The one with the lowest prediction; of equal ones the first."""
        return min(self.candidates, key=lambda candidate: candidate.predicted)

    @cached_property
    def best(self) -> Candidate[T]:
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
class Ranking(Generic[T]):
    """All choices of a source, one or more."""

    family: str
    choices: tuple[Choice[T], ...]

    @property
    def median_regret(self) -> float:
        """Half of the choices lose no more than this."""
        return median(choice.regret for choice in self.choices)

    @property
    def worst(self) -> Choice[T]:
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

    def correlations(self, least: int = CORRELATED) -> list[float]:
        """Of the choices with that many layouts or more."""
        found = (choice.correlation for choice in self.choices if len(choice.candidates) >= least)
        return [each for each in found if each is not None]

    @property
    def median_correlation(self) -> float | None:
        """Of the choices with four layouts or more; None without any."""
        found = self.correlations()
        return median(found) if found else None


@dataclass(frozen=True)
class Entry(Generic[T]):
    """A candidate, and the choice that it is one of: entries of a choice share source and key."""

    family: str
    key: Hashable
    label: str
    candidate: Candidate[T]


def rankings_of(entries: Iterable[Entry[T]]) -> tuple[Ranking[T], ...]:
    """The choices among them, a source at a time; a layout alone is no choice."""
    groups: dict[tuple[str, Hashable], list[Entry[T]]] = {}
    for entry in entries:
        groups.setdefault((entry.family, entry.key), []).append(entry)
    rankings: dict[str, list[Choice[T]]] = {}
    for (family, _), found in groups.items():
        if len(found) >= LEAST:
            choice = Choice(family, found[0].label, tuple(entry.candidate for entry in found))
            rankings.setdefault(family, []).append(choice)
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


def ranking_mapping(ranking: Ranking[Any]) -> dict[str, Any]:
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
        "worst": choice_mapping(ranking.worst),
    }


def choice_mapping(choice: Choice[Any]) -> dict[str, Any]:
    return {
        "label": choice.label,
        "layouts": len(choice.candidates),
        "picked": choice.picked.name,
        "picked_layout": choice.picked.layout,
        "best": choice.best.name,
        "best_layout": choice.best.layout,
        "regret": choice.regret,
    }
