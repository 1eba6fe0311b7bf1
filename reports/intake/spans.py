"""Stretches of time as sorted, disjoint (start, end) pairs: their union, what is common, what is left."""

from __future__ import annotations

from collections.abc import Iterable

Span = tuple[float, float]


def union(spans: Iterable[Span]) -> list[Span]:
    """The stretches in which any of them is; empty ones vanish."""
    found: list[Span] = []
    for start, end in sorted(spans):
        if end <= start:
            continue
        if found and start <= found[-1][1]:
            found[-1] = (found[-1][0], max(end, found[-1][1]))
        else:
            found.append((start, end))
    return found


def without(spans: list[Span], taken: list[Span]) -> list[Span]:
    """What of `spans` no `taken` covers; both as `union` gives them."""
    found, place = [], 0
    for start, end in spans:
        while place < len(taken) and taken[place][1] <= start:
            place += 1
        at, following = start, place
        while following < len(taken) and taken[following][0] < end:
            if taken[following][0] > at:
                found.append((at, taken[following][0]))
            at = max(at, taken[following][1])
            following += 1
        if at < end:
            found.append((at, end))
    return found


def within(spans: list[Span], start: float, end: float) -> list[Span]:
    """What of `spans` is between `start` and `end`."""
    return [(max(start, left), min(end, right)) for left, right in spans if left < end and right > start]


def length(spans: Iterable[Span]) -> float:
    """How long they are together."""
    return sum(end - start for start, end in spans)
