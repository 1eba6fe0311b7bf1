"""A rank that is slower than the others, step after step: a hot device, a poor host, another model of device."""

from __future__ import annotations

import math
from dataclasses import dataclass

from suite.parse import SpecError, require, shown


@dataclass(frozen=True)
class SlowRank:
    """A rank whose compute takes `factor` times as long, in every step."""

    rank: int
    factor: float

    def __post_init__(self) -> None:
        require(self.rank >= 0, f"slow: a rank is not negative, got {self.rank}")
        require(0 < self.factor < math.inf, f"slow: a factor is positive and finite, got {shown(self.factor)}")

    @classmethod
    def parse(cls, text: str, where: str = "slow") -> SlowRank:
        """From RANK:FACTOR."""
        rank, _, factor = text.partition(":")
        try:
            return cls(int(rank), float(factor))
        except ValueError as error:
            if isinstance(error, SpecError):
                raise
            raise SpecError(f"{where}: {shown(text)} is not RANK:FACTOR, as in 17:1.1") from None

    def __str__(self) -> str:
        return f"{self.rank}:{self.factor:g}"
