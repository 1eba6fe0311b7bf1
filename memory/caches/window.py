"""A rolling buffer of the newest tokens, with or without sinks beside it: its bytes by formula."""

from __future__ import annotations

from memory.caches.terms import PLACE_BYTES, Stored, lane_terms
from suite.record import CacheTerm, Component, Quantity

WINDOW_SOURCE = "arXiv:2310.06825, section 2: a rolling buffer"
SINKS_SOURCE = "arXiv:2309.17453, section 3.2: sinks and a rolling buffer"


def window_terms(stored: Stored) -> tuple[CacheTerm, ...]:
    """Stored: both lanes of every entry, a place an entry; room is no more than window w and sinks S. Read by the last
    step: both lanes of as many entries as the longest sequence has, those that a shorter one has not filled included.
    Not counted: what a pass of several tokens reads beside the buffer; the mask of a pass; with sinks, the rotated keys
    that attention reads, and the cosines and sines of a pass, which are made once for all layers."""
    shape = stored.shape
    kept, source = ("S+w", SINKS_SOURCE) if stored.spec.sinks else ("w", WINDOW_SOURCE)
    places = shape.sequences * shape.room * PLACE_BYTES
    return (
        *lane_terms(stored, Quantity.CACHE, shape.room, f"min({kept},room)", source),
        CacheTerm(Component.TABLES, places, f"b*min({kept},room)*{PLACE_BYTES}", "places of entries, int64"),
        *lane_terms(stored, Quantity.CACHE_READ, shape.held, f"min({kept},s+n-1)", source),
    )
