"""Calls with keywords, as Python source laid out over as many lines as they need."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

WIDTH, STEP = 88, 4


@dataclass(frozen=True)
class Call:
    """A call as source: each value is source itself, or a call."""

    name: str
    keywords: Mapping[str, str | Call] = field(default_factory=dict)
    notes: Mapping[str, str] = field(default_factory=dict)
    """a comment above a keyword, by its name"""

    def source(self, indent: int = 0, before: int = 0) -> str:
        """The call's text; `indent` is that of its line, `before` the characters ahead of it there."""
        if not self.notes and not any(isinstance(value, Call) and value.notes for value in self.keywords.values()):
            words = (f"{key}={_source(value, 0, 0)}" for key, value in self.keywords.items())
            line = f"{self.name}({', '.join(words)})"
            if "\n" not in line and indent + before + len(line) + 1 <= WIDTH:
                return line
        inner = indent + STEP
        lines = []
        for key, value in self.keywords.items():
            lines += [f"{' ' * inner}# {note}" for note in self.notes.get(key, "").splitlines()]
            lines.append(f"{' ' * inner}{key}={_source(value, inner, len(key) + 1)},")
        return "\n".join([f"{self.name}(", *lines, f"{' ' * indent})"])


def _source(value: str | Call, indent: int, before: int) -> str:
    return value.source(indent, before) if isinstance(value, Call) else value
