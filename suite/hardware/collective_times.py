"""How long collectives take between this machine's ranks, by size and group."""

from __future__ import annotations

from dataclasses import dataclass

from suite.collectives import Collective


@dataclass(frozen=True, slots=True)
class CollectiveTime:
    """Seconds of one collective of so many ranks with so many bytes of payload (suite/collectives.py)."""

    collective: Collective
    ranks: int
    payload_bytes: int
    seconds: float
    iqr_seconds: float
