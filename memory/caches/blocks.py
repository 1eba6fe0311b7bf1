"""A block memory's bytes by formula: what the device keeps, what the host keeps, and what a step brings back of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from memory.caches.terms import PLACE_BYTES, Stored, lane_terms
from suite.block_shape import BlockShape
from suite.record import CacheTerm, Component, Quantity

SOURCE = "arXiv:2402.04617, section 3"
SCORE_BYTES = 4  # fp32


def block_terms(stored: Stored) -> tuple[CacheTerm, ...]:
    """Stored on the device: both lanes of sinks, of the newest w+B-2 tokens (or room, where that is less) and of the
    blocks that a pass fetches, keys of every block's representatives, a place and a score for each of the newest. On
    the host: both lanes of every block. Read by a step: all of these on the device, and the fetched blocks of the
    host's. Not counted: what attention makes of them in passing; the host's copy that a fetch gathers; that the
    fetched blocks are written before they are read."""
    shape, size = stored.shape, BlockShape.of(stored.shape, stored.spec)
    newest = shape.sequences * size.recent
    return (
        *_lanes(stored, size, Quantity.CACHE),
        CacheTerm(
            Component.TABLES, newest * (PLACE_BYTES + shape.layers * SCORE_BYTES),
            f"b*R*({PLACE_BYTES}+L*{SCORE_BYTES})",
            "places, int64, and scores, fp32, of the newest tokens",
        ),
        *_lanes(stored, size, Quantity.CACHE_READ),
    )  # fmt: skip


def _lanes(stored: Stored, size: BlockShape, quantity: Quantity) -> Iterator[CacheTerm]:
    """Keys and values on the device, and blocks of the host: all that are stored, or the fetched ones that are read."""
    fetched = size.fetched * size.block
    yield from lane_terms(stored, quantity, size.sinks + size.recent + fetched, "(sinks+R+F*B)", SOURCE)
    said = f"{SOURCE}: representatives"
    pairs = lane_terms(stored, quantity, size.blocks * size.representatives, "N*r", said)
    yield from pairs[::2]  # of keys and of values by turns, and representatives are keys alone
    entries, letter = (size.blocks * size.block, "N*B") if quantity is Quantity.CACHE else (fetched, "F*B")
    for term in lane_terms(stored, quantity, entries, letter, f"{SOURCE}: blocks"):
        yield replace(term, component=Component.HOST)
