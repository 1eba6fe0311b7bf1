"""What the formulas of all caches share: an element's bytes, and the terms of both lanes."""

from __future__ import annotations

from dataclasses import dataclass

from suite.cache import CacheSpec
from suite.cache_shape import CacheShape
from suite.operators import DType
from suite.record import CacheTerm, Component, Quantity

PLACE_BYTES = 8  # int64
SCALE_BYTES = 4  # a scale and an offset, fp16
LANES = (Component.KEYS, Component.VALUES)


@dataclass(frozen=True)
class Stored:
    """A rank's cache: its shape, its settings, and the number format of its elements (None: codes with scales)."""

    shape: CacheShape
    spec: CacheSpec
    dtype: DType | None

    @property
    def bits(self) -> int:
        """Of an element, or of its code."""
        if self.dtype is not None:
            return 8 * self.dtype.nbytes
        bits = self.spec.cache_dtype.bits
        assert bits is not None
        return bits

    @property
    def names(self) -> tuple[str, str]:
        """The lanes' elements a token of a layer, as formulas have them."""
        return ("k*d", "k*d") if self.shape.keys == self.shape.values else ("d_c", "d_rope")


def lane_terms(stored: Stored, quantity: Quantity, entries: int, letter: str, source: str) -> tuple[CacheTerm, ...]:
    """L b entries elements bytes of each lane; `letter` is what the formula calls the entries of a sequence."""
    return pool_terms(stored, quantity, stored.shape.sequences * entries, f"b*{letter}", source)


def pool_terms(stored: Stored, quantity: Quantity, entries: int, letters: str, source: str) -> tuple[CacheTerm, ...]:
    """L entries elements bytes of each lane, and where they are codes L entries elements / group x 4 of scales and
    offsets; `letters` is what the formula calls the entries of all sequences."""
    shape, bits = stored.shape, stored.bits
    numbers = tuple(
        CacheTerm(
            component, shape.layers * entries * lane.elements * bits // 8, f"L*{letters}*{name}*{_bytes_text(bits)}",
            source, quantity=quantity,
        )
        for component, lane, name in zip(LANES, shape.lanes, stored.names, strict=True)
    )  # fmt: skip
    return numbers if stored.dtype is not None else (*numbers, *_scales(stored, quantity, entries, letters))


def _scales(stored: Stored, quantity: Quantity, entries: int, letters: str) -> tuple[CacheTerm, ...]:
    """A scale and an offset for each token, head and group of a head, of each lane."""
    shape, group = stored.shape, stored.spec.quant_group
    return tuple(
        CacheTerm(
            Component.SCALES, shape.layers * entries * lane.elements // (group or lane.width) * SCALE_BYTES,
            f"L*{letters}*{name}/{group or lane.width}*{SCALE_BYTES}", "a scale and an offset a group, fp16",
            quantity=quantity,
        )
        for lane, name in zip(shape.lanes, stored.names, strict=True)
    )  # fmt: skip


def _bytes_text(bits: int) -> str:
    """Bytes of so many bits, as formulas have them."""
    return f"{bits // 8}" if bits % 8 == 0 else f"{bits}/8"
