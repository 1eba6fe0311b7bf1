"""Long runs whose interruptions were published: their rates, and what their effective time says of what was not.

Facts with their sources; none is a constant of this project. What a source leaves open is an argument here.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from parallelism.simulator.checkpoints import best_interval
from parallelism.simulator.failures import Checkpoint, Failures, Recovery, Reliability
from parallelism.simulator.goodput import goodput, longest_restart_s

DAY_HOURS = 24.0
WEEK_HOURS = 7 * DAY_HOURS
#: no step is so short, no interval so long, in any of these runs
_SHORTEST_S, _LONGEST_S = 1.0, 7 * 86400.0


@dataclass(frozen=True)
class PublishedRun:
    """What is known of a run. `effective` is the effective (useful) share of its time, as stated or as it follows from
    stated figures; None: not stated. `assumed`: what had to be taken for granted even so."""

    name: str
    devices: int
    hours: float
    unexpected: float
    source: str
    planned: float = 0
    effective: float | None = None
    interval_s: float | None = None
    checkpoint_s: float | None = None
    assumed: tuple[str, ...] = field(default=())

    @property
    def failures(self) -> Failures:
        """Unexpected interruptions alone, shared out over the devices."""
        return Failures.of_count(self.devices, self.unexpected, self.hours)

    @property
    def interruptions(self) -> Failures:
        """Planned ones as if they too had come unexpectedly and lost work: the most that they can have cost."""
        return Failures.of_count(self.devices, self.unexpected + self.planned, self.hours)


LLAMA3_405B = PublishedRun(
    "Llama 3 405B",
    devices=16384,
    hours=54 * DAY_HOURS,
    unexpected=419,
    planned=47,
    effective=0.90,  # "higher than"
    source="arXiv:2407.21783, section 3.3.4",
    assumed=("all 16,384 devices of table 4 ran for the 54 days; checkpoint, interval and restart are not stated",),
)

#: the same paper, section 3.3.1: storage, and the most that a device writes of a checkpoint
LLAMA3_STORAGE_BYTES_PER_SECOND = 2e12  # sustained
LLAMA3_LARGEST_SHARD_BYTES = 4e9

MEGASCALE = PublishedRun(
    "MegaScale's production run",
    devices=10_000,  # "more than"
    hours=3 * WEEK_HOURS,
    unexpected=100,  # "over"
    effective=0.90,  # "over"
    source="arXiv:2402.15627, sections 6.2 and 6.3",
    assumed=("'several weeks' as three; 'over 100' restarts as 100; 'more than 10,000' devices as 10,000",),
)
#: the same paper, section 6.3: detection and diagnosis, then back to where the crash was
MEGASCALE_DETECT_S, MEGASCALE_CATCH_UP_S = 600.0, 900.0

BLOOM = PublishedRun(
    "BLOOM 176B",
    devices=384,
    hours=WEEK_HOURS,
    unexpected=1.5,  # "1-2 GPU failures a week"
    interval_s=100 * 105.0,  # "every 3h (100 iterations)", an iteration of 105 s
    checkpoint_s=40.0,
    source="huggingface/blog, bloom-megatron-deepspeed-technology.md; bigscience, train/tr11-176B-ml/chronicles.md",
    assumed=("a failure rate of the devices alone: maintenance and repairs of the program are not in it",),
)

OPT_175B = PublishedRun(
    "OPT-175B",
    devices=992,
    hours=60 * DAY_HOURS,
    unexpected=35 + 70,
    effective=33 * 1024 / 992 / 60,
    source="arXiv:2205.01068, sections 2.4 and 2.5; metaseq, projects/OPT/chronicles/final_update.md",
    assumed=("two months as 60 days; 33 days on 1,024 devices without a failure, scaled to 992; '70+' as 70",),
)

RUNS = (LLAMA3_405B, MEGASCALE, BLOOM, OPT_175B)


def reliability(failures: Failures, checkpoint_s: float, restart_s: float = 0.0) -> Reliability:
    """A run with blocking checkpoints and a replacement always at hand."""
    return Reliability(failures, Checkpoint(checkpoint_s), Recovery(load_s=restart_s))


def effective_time(failures: Failures, checkpoint_s: float, restart_s: float, interval_s: float | None = None) -> float:
    """The share of time that is useful; saving as often as is best where the interval was not stated."""
    run = reliability(failures, checkpoint_s, restart_s)
    return goodput(run, interval_s or best_interval(run, _SHORTEST_S, _LONGEST_S))


def longest_restart(failures: Failures, checkpoint_s: float, effective: float) -> float | None:
    """Seconds that a restart can take at most where the effective time is what it is said to be, saving as often as is
    best; a longer one contradicts it. None: it is contradicted whatever the restart."""
    run = reliability(failures, checkpoint_s)
    return longest_restart_s(run, best_interval(run, _SHORTEST_S, _LONGEST_S), effective)
