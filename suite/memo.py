"""What is worked out once and serves every estimate that needs it again: handed on from one to the next."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import TypeVar, cast

T = TypeVar("T")
MISSING = object()


class Memo:
    """Results by key. A key is the name of what is made and all that it is made from."""

    def __init__(self) -> None:
        self.found: dict[Hashable, object] = {}
        self.named: dict[int, object] = {}

    def once(self, key: Hashable, make: Callable[[], T]) -> T:
        """What `make` gives; made the first time alone."""
        found = self.found.get(key, MISSING)
        if found is MISSING:
            found = self.found[key] = make()
        return cast(T, found)

    def name(self, thing: object) -> int:
        """A short key for an object that is none by itself: its identity, which no other has while this one is kept."""
        self.named[id(thing)] = thing
        return id(thing)

    def same(self, value: T) -> T:
        """The first object that was equal to this one: equal values become one, whose identity is a short key."""
        return cast(T, self.found.setdefault(("same", value), value))
