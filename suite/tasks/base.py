"""What a task makes: a global batch of examples, the same whatever the layout."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from suite.models.base import IGNORED

if TYPE_CHECKING:
    from suite.case import Case

Rows = NDArray[Any]


class TextWindows(Protocol):
    """Where a task cuts its text from (suite/data.py's Windows)."""

    @property
    def count(self) -> int:
        """Windows an epoch."""
        ...

    def global_batch(self, step: int, global_batch_size: int) -> tuple[Rows, Rows]:
        """Ids [B, s] and the ids that follow them, [B, s], of a step."""
        ...


@dataclass(frozen=True, eq=False)
class Examples:
    """A global batch of B rows."""

    ids: Rows
    """[B, s] what the model reads"""
    labels: Rows
    """[B, t] what it should answer; IGNORED where nothing is asked"""
    extras: Mapping[str, Rows] = field(default_factory=dict)
    """by the name of the model's argument, [B, ...]: what else it reads"""

    @property
    def answers(self) -> Rows | None:
        """How many labels of each row count, [B]; None where all do."""
        counted = (self.labels != IGNORED).sum(axis=1)
        return None if (counted == self.labels.shape[1]).all() else counted


@dataclass(frozen=True)
class Task:
    """How examples are made.

    window    (case) -> tokens of text that a row is made of
    examples  (case, windows, step, rows) -> a step's global batch; decided by the recipe's seed, the step and the row
    """

    window: Callable[[Case], int]
    examples: Callable[[Case, TextWindows, int, int], Examples]


def row_random(seed: int, step: int, row: int) -> np.random.Generator:
    """The generator that decides one row of one step, whatever rank asks."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, step, row])))
