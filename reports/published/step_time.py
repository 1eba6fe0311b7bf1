"""What a predictor says of a published run: the seconds of its step, and what else rates and utilisations need."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType


@dataclass(frozen=True)
class Flops:
    """Of one step on all ranks together. Attention over the full square (12 L h s a token, arXiv:2204.02311, appendix
    B) and the part of it that a causal mask leaves out; recomputed forward work apart, in the full convention."""

    model: float
    masked: float = 0.0
    recomputed: float = 0.0


@dataclass(frozen=True)
class StepTime:
    """What a predictor says of a row's run.

    seconds     of one optimizer step
    sequences   that a step takes, all replicas together
    seq_len     tokens of each
    gpus        that the run has
    flops       of a step, for rates and utilisations; None where they are not needed
    others      seconds of quantities that only this source has, by the row's `quantity`
    """

    seconds: float
    sequences: int
    seq_len: int
    gpus: int
    basis: str
    flops: Flops | None = None
    assumed: tuple[str, ...] = ()
    fitted_on: tuple[str, ...] = ()
    others: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))
