"""What holds bytes in a walk: storages, counted by who refers to them, and the gradients that lie in them."""

from __future__ import annotations

from dataclasses import dataclass

from memory.events import Naming


@dataclass(slots=True)
class Storage:
    """Bytes that live while something refers to them."""

    naming: Naming
    nbytes: int
    references: int = 1


@dataclass(slots=True)
class Gradient:
    """What a tensor's gradient is in."""

    storage: Storage
    is_view: bool
