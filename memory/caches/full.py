"""A cache of every token, in arrays that are taken whole or grow: its bytes by formula."""

from __future__ import annotations

from memory.caches.terms import PLACE_BYTES, Stored, lane_terms
from suite.cache import Allocation
from suite.record import CacheTerm, Component, Quantity

SOURCE = "arXiv:2211.05102, section 2.1: 2 L k d elements a token"


def full_terms(stored: Stored) -> tuple[CacheTerm, ...]:
    """Stored: both lanes of every entry there is room for (growing: of every token held), a place an entry. Read by
    the last step: both lanes of every entry held, padding of shorter prompts included. Not counted: the old array
    beside the new one while it grows; the mask of a pass."""
    shape = stored.shape
    grows = stored.spec.allocation is Allocation.GROWING
    entries, letter = (shape.held, "(s+n-1)") if grows else (shape.room, "room")
    places = shape.sequences * shape.room * PLACE_BYTES
    return (
        *lane_terms(stored, Quantity.CACHE, entries, letter, SOURCE),
        CacheTerm(Component.TABLES, places, f"b*room*{PLACE_BYTES}", "places of entries, int64"),
        *lane_terms(stored, Quantity.CACHE_READ, shape.held, "(s+n-1)", SOURCE),
    )
