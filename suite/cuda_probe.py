"""A step's memory on CUDA, from the caching allocator's own statistics: totals and peaks at the named moments.

The peak since the last mark belongs to the phase that the last mark began. States are told by their sizes; what a
moment holds besides is not divided. The allocator is reached through two functions, so that this can be tested, and
used for another backend with the same statistics, without a device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise

from suite.record import Component, Moment, Quantity, Sample


@dataclass(frozen=True)
class AllocatorStats:
    """One reading, in bytes (retries: a count); peaks are since the last reset."""

    allocated: int
    reserved: int
    peak_allocated: int
    peak_reserved: int
    peak_active: int
    retries: int


@dataclass(frozen=True)
class Reading:
    """What was read at a mark, and the states' bytes as they were then."""

    mark: str
    stats: AllocatorStats
    states: Mapping[Component, int]


def cuda_stats(device: int | None = None) -> AllocatorStats:
    """torch's statistics of a CUDA device, once its work is done."""
    import torch

    torch.cuda.synchronize(device)
    stats = torch.cuda.memory_stats(device)
    return AllocatorStats(
        allocated=stats["allocated_bytes.all.current"],
        reserved=stats["reserved_bytes.all.current"],
        peak_allocated=stats["allocated_bytes.all.peak"],
        peak_reserved=stats["reserved_bytes.all.peak"],
        peak_active=stats["active_bytes.all.peak"],
        retries=stats["num_alloc_retries"],
    )


class CudaMoments:
    """Takes a reading at every mark and turns the last step's into samples."""

    def __init__(self, read: Callable[[], AllocatorStats], reset: Callable[[], None]) -> None:
        self._read = read
        self._reset = reset
        self._before = read().allocated  # what lived before the pass began is not the case's
        self.readings: list[Reading] = []
        reset()

    def mark(self, name: str, states: Mapping[Component, int]) -> None:
        """A phase begins."""
        self.readings.append(Reading(name, self._read(), states))
        self._reset()

    def samples(
        self, rank: int, peaks: Mapping[Moment, str], levels: Mapping[Moment, str], forward: str, idle: str
    ) -> list[Sample]:
        """Totals and states of every moment: of `peaks` the highest of its phase, of `levels` the last at its mark."""
        idles = [index for index, reading in enumerate(self.readings) if reading.mark == idle]
        step = self.readings[idles[-2] + 1 : idles[-1] + 1]
        first = next(reading for reading in self.readings if reading.mark == forward)
        samples = self._moment(Moment.INIT, first.stats.allocated, first.states, rank)
        for moment, phase in peaks.items():
            ends = [after for before, after in pairwise(step) if before.mark == phase]
            top = max(ends, key=lambda reading: reading.stats.peak_allocated)
            samples += self._moment(moment, top.stats.peak_allocated, top.states, rank)
        for moment, name in levels.items():
            reading = [item for item in step if item.mark == name][-1]
            samples += self._moment(moment, reading.stats.allocated, reading.states, rank)
        whole = [reading.stats for reading in step[1:]]
        extremes = {
            Quantity.RESERVED: max(stats.peak_reserved for stats in whole),
            Quantity.ACTIVE: max(stats.peak_active for stats in whole),
            Quantity.ALLOCATOR_RETRIES: whole[-1].retries,
        }
        return samples + [Sample(quantity, value, rank) for quantity, value in extremes.items()]

    def _moment(self, moment: Moment, nbytes: int, states: Mapping[Component, int], rank: int) -> list[Sample]:
        total = Sample(Quantity.MEMORY, nbytes - self._before, rank, moment=moment)
        parts = (
            Sample(Quantity.MEMORY, value, rank, component=component, moment=moment)
            for component, value in states.items()
        )
        return [total, *parts]


def storage_bytes(storages: Iterable[tuple[int, int]]) -> int:
    """Bytes of distinct (address, bytes) storages: one that two tensors share counts once."""
    return sum(dict(storages).values())
