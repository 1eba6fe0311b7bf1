"""What the speed suite found, as rows: torch-free, so that a report can read them back. Seconds."""

from __future__ import annotations

from dataclasses import dataclass

from suite.interleaved import Seconds
from suite.spec import AttentionKernel, Precision
from suite.stats import Interval, summarize

SCHEMA = 1
#: the contestants
OURS, REFERENCE, FUSED, BY_HAND = "ours", "transformers", "transformers, fused gelu", "by hand"


@dataclass(frozen=True)
class Race:
    """One form, precision and kernel. `ratios` are our median step over each other contestant's."""

    model: str
    precision: Precision
    attention: AttentionKernel
    reference: str  # transformers' class
    parameters: int
    losses: dict[str, float]  # of the first step, nats a token
    seconds: dict[str, Seconds]  # a step, round by round
    ratios: dict[str, Interval]


@dataclass(frozen=True)
class Overhead:
    """What the harness adds to a step: Trainer, the step's timer, and the sample it writes."""

    model: str
    seconds: dict[str, Seconds]
    added_seconds: Interval  # the median over rounds of ours - by hand
    fraction: dict[str, float]  # of each race's step by hand


@dataclass(frozen=True)
class SpeedReport:
    """Everything one run measured, and what it ran on."""

    schema: int
    threads: int
    versions: dict[str, str | None]
    seq_len: int
    micro_batch: int
    races: tuple[Race, ...]
    overhead: Overhead


def lines(report: SpeedReport) -> list[str]:
    """The report for a reader: a line a ratio, then the harness' share."""
    told = []
    for row in report.races:
        ours = summarize(row.seconds[OURS])
        assert ours is not None
        noise = " (noisy)" if ours.is_noisy else ""
        told += [
            f"{row.model} {row.precision} {row.attention}: {ours.median * 1e3:.1f} ms a step{noise},"
            f" x{ratio.value:.3f} of {name} ({ratio.low:.3f} to {ratio.high:.3f})"
            for name, ratio in row.ratios.items()
        ]
    worst, added = max(report.overhead.fraction.values()), report.overhead.added_seconds
    span = f"{added.low * 1e6:.0f} to {added.high * 1e6:.0f}"
    told.append(f"harness: {added.value * 1e6:.0f} us a step ({span}), {worst:.3%} of one at most")
    return told
