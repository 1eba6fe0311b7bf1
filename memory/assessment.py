"""Does a case fit its device? The fullest rank's peak, what torch's allocator reserves for it, and what else is taken.

On a CPU there is no caching allocator: the peak is held against the memory there is, as `memory.verdict` has it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from memory.allocator_settings import UNLIMITED, AllocatorSettings
from memory.device_terms import DeviceTerm, Place, device_terms
from memory.estimate import MemoryModel, representative_ranks
from memory.replay import Replay, replay, segregated_bytes
from memory.verdict import Verdict, available_bytes, reserved_upper_bytes, verdict_of
from parallelism.traffic import estimate_traffic
from suite.hardware import Device, DeviceKind


@dataclass(frozen=True)
class Assessment:
    """A case on a device: every figure is computed when it is asked for, the cheap ones first."""

    model: MemoryModel
    device: Device
    settings: AllocatorSettings = AllocatorSettings()
    of_rank: int | None = None
    """the rank it is about; None: the one that needs most"""

    @cached_property
    def rank(self) -> int:
        """The rank that it is about."""
        if self.of_rank is not None:
            return self.of_rank
        return max(representative_ranks(self.model.case.layout), key=self.model.peak_bytes)

    @cached_property
    def peak_bytes(self) -> int:
        """Bytes of its fullest moment."""
        return self.model.peak_bytes(self.rank)

    @cached_property
    def terms(self) -> tuple[DeviceTerm, ...]:
        """What it takes of the device beside its tensors."""
        if not self.has_allocator:
            return ()
        ledger = self.model.ledger_of_share(self.rank)
        return device_terms(self.device, estimate_traffic(self.model.case, ledger, self.rank).messages)

    @property
    def has_allocator(self) -> bool:
        """Does torch reserve this device's memory?"""
        return self.device.kind is not DeviceKind.CPU

    @cached_property
    def available_bytes(self) -> int | None:
        """What a rank's tensors may take: on a GPU its memory less context and communicators; None: not known."""
        if not self.has_allocator or self.device.memory_bytes.value is None:
            return available_bytes(self.model.case, self.device)
        outside = sum(term.nbytes or 0 for term in self.terms if term.place is Place.DEVICE)
        return max(0, int(self.device.memory_bytes.value) - outside)

    @cached_property
    def replay(self) -> Replay | None:
        """What the allocator comes to: on the device as it is, or, where that is too small, on one without end."""
        if not self.has_allocator:
            return None
        limit = self.available_bytes
        if self._endless.reserved_bytes <= (UNLIMITED if limit is None else limit) or self.is_full:
            return self._endless
        return self._limited

    @property
    def reserved_bytes(self) -> int | None:
        """torch's max_memory_reserved, by replay; None without a caching allocator."""
        return None if self.replay is None else self.replay.reserved_bytes

    @property
    def unlimited_reserved_bytes(self) -> int:
        """What torch's allocator would reserve of a device without end; the peak itself without such an allocator."""
        return self._endless.reserved_bytes if self.has_allocator else self.peak_bytes

    @cached_property
    def is_full(self) -> bool:
        """Would torch run out of memory? Not where it first reserves more than there is: it empties its cache then."""
        limit = self.available_bytes
        if limit is None:
            return False
        if self.peak_bytes > limit:
            return True
        return self.has_allocator and self._endless.reserved_bytes > limit and self._limited.is_full

    @cached_property
    def reserved_upper_bytes(self) -> int:
        """A bound of what is reserved: the largest of the replay, blocks that serve one size alone, and peak / 0.8."""
        bounds = [reserved_upper_bytes(self.peak_bytes)]
        if self.has_allocator:
            bounds += [self._endless.reserved_bytes, self._segregated]
        return max(bounds)

    @cached_property
    def verdict(self) -> Verdict:
        """fits: with every bound; tight: by the replay, if not by its bound; oom: not even so."""
        limit = self.available_bytes
        if limit is None or not self.has_allocator:
            return verdict_of(self.peak_bytes, limit)
        if self.is_full:
            return Verdict.OOM
        return Verdict.FITS if self._fits else Verdict.TIGHT

    def is_at_least(self, wanted: Verdict) -> bool:
        """Is the verdict `wanted` or better? The same as asking for it, but cheaper where a peak tells."""
        if wanted is Verdict.FITS and self.has_allocator and not self._may_fit(reserved_upper_bytes(self.peak_bytes)):
            return False
        return self.verdict in (Verdict.FITS, wanted)

    @property
    def _fits(self) -> bool:
        """Does it fit with every bound? The cheap one first."""
        return self._may_fit(reserved_upper_bytes(self.peak_bytes)) and self._may_fit(self.reserved_upper_bytes)

    def _may_fit(self, reserved: int) -> bool:
        total = self.device.memory_bytes.value
        outside = sum(term.upper_bytes for term in self.terms if term.place is Place.DEVICE)
        return total is not None and reserved + outside <= total

    @cached_property
    def _workspaces(self) -> tuple[int, ...]:
        """What the matrix library's handles allocate, one by one."""
        held = [term.nbytes for term in self.terms if term.place is Place.ALLOCATOR]
        return tuple(part for nbytes in held if nbytes for part in (nbytes // 2, nbytes - nbytes // 2))

    @cached_property
    def _endless(self) -> Replay:
        return replay(self.model, self.rank, self.settings, workspaces=self._workspaces)

    @cached_property
    def _limited(self) -> Replay:
        limit = UNLIMITED if self.available_bytes is None else self.available_bytes
        return replay(self.model, self.rank, self.settings, limit, self._workspaces)

    @cached_property
    def _segregated(self) -> int:
        return segregated_bytes(self.model, self.rank, self._workspaces)
