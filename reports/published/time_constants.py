"""Constants of step times, in files: each set with its values, what they are, and the rows they were fitted on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

HERE = Path(__file__).parent / "fitted"


@dataclass(frozen=True)
class FittedSet:
    """A few named constants that were fitted together.

    values      by name, SI
    what        each is
    rows        ids of the rows they were fitted on; those rows are not scored
    fold_error  mean absolute error on rows that were left out, five folds of the fit rows
    """

    values: Mapping[str, float]
    what: Mapping[str, str]
    rows: tuple[str, ...]
    fold_error: float | None = None

    def to_mapping(self) -> dict[str, Any]:
        """As JSON-ready data."""
        return {
            "values": dict(self.values),
            "what": dict(self.what),
            "fold_error": self.fold_error,
            "rows": list(self.rows),
        }

    @classmethod
    def from_mapping(cls, found: Mapping[str, Any]) -> FittedSet:
        """From the data of a file."""
        return cls(
            MappingProxyType(found["values"]), MappingProxyType(found["what"]), tuple(found["rows"]),
            found.get("fold_error"),
        )  # fmt: skip


@cache
def recorded_sets() -> Mapping[str, FittedSet]:
    """Every set that the project ships, by its file's name."""
    return MappingProxyType(
        {path.stem: FittedSet.from_mapping(json.loads(path.read_text())) for path in sorted(HERE.glob("*.json"))}
    )
