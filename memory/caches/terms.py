"""What the formulas of all caches share: an element's bytes, and the terms of both lanes."""

from __future__ import annotations

from dataclasses import dataclass

from suite.cache import CacheSpec
from suite.cache_shape import CacheShape
from suite.operators import DType
from suite.record import CacheTerm, Component, Quantity

PLACE_BYTES = 8  # int64
LANES = (Component.KEYS, Component.VALUES)


@dataclass(frozen=True)
class Stored:
    """A rank's cache: its shape, its settings, and the number format of its elements (None: codes with scales)."""

    shape: CacheShape
    spec: CacheSpec
    dtype: DType | None

    @property
    def names(self) -> tuple[str, str]:
        """The lanes' elements a token of a layer, as formulas have them."""
        return ("k*d", "k*d") if self.shape.keys == self.shape.values else ("d_c", "d_rope")


def lane_terms(stored: Stored, quantity: Quantity, entries: int, letter: str, source: str) -> tuple[CacheTerm, ...]:
    """L b entries elements bytes of each lane; `letter` is what the formula calls the entries of a sequence."""
    return pool_terms(stored, quantity, stored.shape.sequences * entries, f"b*{letter}", source)


def pool_terms(stored: Stored, quantity: Quantity, entries: int, letters: str, source: str) -> tuple[CacheTerm, ...]:
    """L entries elements bytes of each lane; `letters` is what the formula calls the entries of all sequences."""
    shape = stored.shape
    assert stored.dtype is not None
    size = stored.dtype.nbytes
    return tuple(
        CacheTerm(
            component, shape.layers * entries * lane.elements * size, f"L*{letters}*{name}*{size}", source,
            quantity=quantity,
        )
        for component, lane, name in zip(LANES, shape.lanes, stored.names, strict=True)
    )  # fmt: skip
