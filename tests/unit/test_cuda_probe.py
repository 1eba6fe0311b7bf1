"""The CUDA probe's bookkeeping, against a made-up allocator: which peak belongs to which moment."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from suite.cuda_probe import AllocatorStats, CudaMoments, storage_bytes
from suite.memory_probe import BACKWARD, FORWARD, IDLE, LEVELS, LOSS, OPTIMIZER, PEAKS, SETUP
from suite.record import Component, Moment, Quantity

pytestmark = pytest.mark.unit


@dataclass
class FakeAllocator:
    """Counts bytes as an allocator would."""

    allocated: int = 0
    peak: int = 0
    retries: int = 0

    def move(self, *levels: int) -> None:
        for level in levels:
            self.allocated = level
            self.peak = max(self.peak, level)

    def read(self) -> AllocatorStats:
        return AllocatorStats(self.allocated, self.allocated + 7, self.peak, self.peak + 7, self.peak + 1, self.retries)

    def reset(self) -> None:
        self.peak = self.allocated


def step(allocator: FakeAllocator, moments: CudaMoments, scale: int) -> None:
    """forward to 50 (peak 60), loss to 40 (peak 80), backward to 30 (peak 90), optimizer back to 20 (peak 35)."""
    for mark, levels in ((FORWARD, (60, 50)), (LOSS, (80, 40)), (BACKWARD, (90, 30)), (OPTIMIZER, (35, 20))):
        moments.mark(mark, {Component.PARAMETERS: 10, Component.GRADIENTS: 10 if mark == OPTIMIZER else 0})
        allocator.move(*(1000 + scale * level for level in levels))
    moments.mark(IDLE, {Component.PARAMETERS: 10})


def test_each_peak_belongs_to_the_phase_it_was_reached_in() -> None:
    """Two steps, the first four times as large: only the last counts, less the 1000 bytes that were there before."""
    allocator = FakeAllocator(allocated=1000, peak=5000)
    moments = CudaMoments(allocator.read, allocator.reset)
    moments.mark(SETUP, {})
    allocator.move(1020)
    for scale in (4, 1):
        allocator.retries += 1
        step(allocator, moments, scale)
    samples = moments.samples(3, PEAKS, LEVELS, FORWARD, IDLE)
    totals = {item.moment: item.value for item in samples if item.quantity is Quantity.MEMORY and not item.component}
    assert totals == {
        Moment.INIT: 20,
        Moment.FORWARD_PEAK: 80,  # the step begins at 80, where the first one left off
        Moment.LOSS: 80,
        Moment.BACKWARD_PEAK: 90,
        Moment.OPTIMIZER_PEAK: 35,
        Moment.AFTER_FORWARD: 50,
        Moment.AFTER_BACKWARD: 30,
        Moment.STEADY: 20,
    }
    others = {item.quantity: item.value for item in samples if item.quantity is not Quantity.MEMORY}
    assert others == {Quantity.RESERVED: 1097, Quantity.ACTIVE: 1091, Quantity.ALLOCATOR_RETRIES: 2}
    assert {item.rank for item in samples} == {3}


def test_states_are_those_of_the_moment() -> None:
    allocator = FakeAllocator(allocated=0)
    moments = CudaMoments(allocator.read, allocator.reset)
    step(allocator, moments, 1)
    step(allocator, moments, 1)
    samples = moments.samples(0, PEAKS, LEVELS, FORWARD, IDLE)
    gradients = {item.moment: item.value for item in samples if item.component is Component.GRADIENTS}
    assert gradients[Moment.AFTER_BACKWARD] == 10
    assert gradients[Moment.AFTER_FORWARD] == 0


def test_a_storage_that_two_tensors_share_counts_once() -> None:
    assert storage_bytes([(0x10, 64), (0x20, 8), (0x10, 64)]) == 72
