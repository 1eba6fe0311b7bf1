"""A small set of choices in which every two values of every two settings meet at least once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

Choice = dict[str, Any]
#: two settings and the places of their values
Pair = tuple[tuple[str, int], tuple[str, int]]


def pairwise(settings: Mapping[str, Sequence[Any]]) -> list[Choice]:
    """Greedy: each choice starts from a pair not met yet and takes, setting by setting, the value that meets most of
    those left. The same settings give the same list, not the shortest there is."""
    left = {
        ((one, here), (other, there))
        for one, other in combinations(settings, 2)
        for here in range(len(settings[one]))
        for there in range(len(settings[other]))
    }
    choices = []
    while left:
        places = dict(min(left))
        for name, values in settings.items():
            if name not in places:
                gains = [_met(left, settings, places, name, place) for place in range(len(values))]
                places[name] = gains.index(max(gains))
        left -= set(_pairs(settings, places))
        choices.append({name: settings[name][places[name]] for name in settings})
    return choices


def _met(left: set[Pair], settings: Mapping[str, Sequence[Any]], places: dict[str, int], name: str, place: int) -> int:
    """Pairs not met yet that this value makes with what is chosen so far."""
    return sum((name, place) in pair for pair in left.intersection(_pairs(settings, places | {name: place})))


def _pairs(settings: Mapping[str, Sequence[Any]], places: dict[str, int]) -> list[Pair]:
    chosen = [(name, places[name]) for name in settings if name in places]
    return list(combinations(chosen, 2))
