"""What is said of a published row: a prediction with what had to be assumed, or the reason why there is none."""

from __future__ import annotations

from dataclasses import dataclass


class CannotModel(Exception):
    """A row has no prediction; the message is the reason, in one line."""


@dataclass(frozen=True)
class Prediction:
    """A row's figure by formula, in the row's own unit.

    `assumed` lists what the row does not state, or states differently from what is modelled. `fitted_on` are the ids of
    the rows whose figures a fitted constant of this prediction comes from. `limit` is what a run that ended without
    memory had of it.
    """

    value: float
    basis: str
    assumed: tuple[str, ...] = ()
    fitted_on: tuple[str, ...] = ()
    limit: float | None = None
