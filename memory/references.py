"""Who still holds a tensor that passes between pipeline stages: torch's caches, its schedules' variables, its sends."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field


@dataclass(frozen=True, eq=False)
class Passed:
    """A stage's output for a micro-batch, or the gradient of its input. Identity is the object."""

    stage: int
    is_gradient: bool


@dataclass
class References:
    """Names and what they hold. A tensor is freed when the last name that holds it lets go, as Python does it: a name
    that is given something new takes that first."""

    freed: list[Passed] = field(default_factory=list)
    names: dict[Hashable, Passed] = field(default_factory=dict)
    counts: dict[Passed, int] = field(default_factory=dict)

    def assign(self, name: Hashable, tensor: Passed) -> None:
        """Let a name hold a tensor, in the place of what it held."""
        self.counts[tensor] = self.counts.get(tensor, 0) + 1
        self.drop(name)
        self.names[name] = tensor

    def drop(self, name: Hashable) -> None:
        """Let a name hold nothing."""
        tensor = self.names.pop(name, None)
        if tensor is None:
            return
        self.counts[tensor] -= 1
        if not self.counts[tensor]:
            self.freed.append(tensor)

    def take(self) -> list[Passed]:
        """What was freed since the last call."""
        freed, self.freed = self.freed, []
        return freed
