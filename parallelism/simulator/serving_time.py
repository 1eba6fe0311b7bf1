"""How long a served case's prompts take to read, and one token more of every sequence to make."""

from __future__ import annotations

from dataclasses import dataclass

from suite.case import Case
from suite.hardware.calibration import Calibration
from suite.parse import SpecError
from suite.record import CacheTerm


@dataclass(frozen=True)
class ServingTime:
    """Seconds until every sequence has its first token, and from one token to the next of all of them."""

    prefill_seconds: float
    decode_seconds: float
    basis: str  # where the rates come from, in words


def serving_time(case: Case, cache: tuple[CacheTerm, ...], calibration: Calibration | None = None) -> ServingTime:
    """Times of a served case whose decode steps read that cache. SpecError where a rate is not known."""
    raise SpecError(f"cluster.device: {case.cluster.device}: serving is not timed yet")
