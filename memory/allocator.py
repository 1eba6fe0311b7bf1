"""torch's CUDA caching allocator as a simulation: which requests make it ask the device for more memory.

Facts of c10/cuda/CUDACachingAllocator.cpp. A request is rounded up to 512 bytes. Each stream has a pool for requests
up to 1 MiB, cut from segments of 2 MiB, and one for larger requests: below 10 MiB they are cut from segments of 20 MiB,
else a segment is the request rounded up to 2 MiB. The smallest free block that is large enough serves, the one at the
lowest address of equals; what it has too much becomes a free block of its own if the pool is the small one or more than
1 MiB is left. A freed block is joined with free neighbours of its segment. Segments stay: only when the device has no
more are those that are wholly free given back, and the request tried once more.

With expandable segments each pool has one segment that grows at its end, in pages of 2 MiB (of 20 MiB for larger
requests), and every block is cut to size.

Not simulated: freeing that waits for another stream (record_stream), graph pools, garbage collection, rounding to
powers of two; where the driver puts a segment (addresses rise here).
"""

from __future__ import annotations

from bisect import bisect_left, insort
from dataclasses import dataclass, field
from typing import Protocol

from memory.allocator_settings import LARGE_SEGMENT, UNLIMITED, AllocatorSettings

BLOCK_BYTES = 512  # what requests are rounded to
SMALL_REQUEST = 2**20  # the largest of the small pool
SMALL_SEGMENT = 2 * 2**20
OWN_SEGMENT = 10 * 2**20  # from here on a request gets a segment of its own size
SEGMENT_ROUNDING = 2 * 2**20


class DeviceFull(Exception):
    """The device has no more memory: torch would raise its OutOfMemoryError here."""


@dataclass(slots=True, eq=False)
class Block:
    """A piece of a segment, between the pieces before and after it."""

    pool: Pool
    address: int
    size: int
    before: Block | None = None
    after: Block | None = None
    is_free: bool = False


@dataclass(slots=True, eq=False)
class Pool:
    """The free blocks of one stream's small or large requests, by size and address, and an expandable segment's end."""

    is_small: bool
    free: list[tuple[int, int, Block]] = field(default_factory=list)
    last: Block | None = None

    def add(self, block: Block) -> None:
        """A block is free."""
        block.is_free = True
        insort(self.free, (block.size, block.address, block))

    def remove(self, block: Block) -> None:
        """A block is no longer there to be taken."""
        block.is_free = False
        del self.free[bisect_left(self.free, (block.size, block.address))]


class Allocator(Protocol):
    """Hands out blocks, and takes them back."""

    def allocate(self, nbytes: int, stream: int = 0) -> Block:
        """A block for so many bytes, above 0."""
        ...

    def free(self, block: Block) -> None:
        """Take it back."""
        ...


class CachingAllocator:
    """One process's allocator on one device. `reserved` and `allocated` are torch's memory_reserved and
    memory_allocated; `limit` is what the device has for it."""

    def __init__(self, settings: AllocatorSettings | None = None, limit: int = UNLIMITED) -> None:
        self.settings = AllocatorSettings() if settings is None else settings
        self.limit = limit
        self.reserved = self.peak_reserved = 0
        self.allocated = self.peak_allocated = 0
        self.retries = 0
        self._pools: dict[tuple[int, bool], Pool] = {}
        self._next_address = 0

    def allocate(self, nbytes: int, stream: int = 0) -> Block:
        """A block for so many bytes, above 0. Raises DeviceFull where not even an emptied cache leaves room."""
        size = -(-nbytes // BLOCK_BYTES) * BLOCK_BYTES
        is_small = size <= SMALL_REQUEST
        key = (stream, is_small)
        pool = self._pools.get(key)
        if pool is None:
            pool = self._pools[key] = Pool(is_small)
        block = self._best_fit(pool, size)
        if block is None:
            block = self._grow(pool, size) if self.settings.expandable_segments else self._new_segment(pool, size)
        self._split(block, size)
        self.allocated += block.size
        if self.allocated > self.peak_allocated:
            self.peak_allocated = self.allocated
        return block

    def free(self, block: Block) -> None:
        """Put a block back, joined with its free neighbours."""
        self.allocated -= block.size
        pool, before, after = block.pool, block.before, block.after
        if before is not None and before.is_free:
            pool.remove(before)
            block.address = before.address
            block.size += before.size
            block.before = before.before
            if block.before is not None:
                block.before.after = block
        if after is not None and after.is_free:
            pool.remove(after)
            block.size += after.size
            block.after = after.after
            if block.after is not None:
                block.after.before = block
            if pool.last is after:
                pool.last = block
        pool.add(block)

    # --- where a request goes ---------------------------------------------------------------------------

    def _best_fit(self, pool: Pool, size: int) -> Block | None:
        """The smallest free block of at least `size`, taken out of the pool."""
        place = bisect_left(pool.free, (size,))
        if place == len(pool.free):
            return None
        if self.settings.expandable_segments and pool.free[place][2] is pool.last and place + 1 < len(pool.free):
            place += 1  # the end of the segment counts as large as it could grow
        block = pool.free[place][2]
        largest = self.settings.max_split_bytes
        if size < largest <= block.size or (size >= largest and block.size >= size + LARGE_SEGMENT):
            return None
        del pool.free[place]
        block.is_free = False
        return block

    def _split(self, block: Block, size: int) -> None:
        """Cut a taken block to size, if what is left over is worth a block of its own."""
        rest = block.size - size
        pool = block.pool
        if pool.is_small or self.settings.expandable_segments:
            if rest < BLOCK_BYTES:
                return
        elif rest <= SMALL_REQUEST or size >= self.settings.max_split_bytes:
            return
        remainder = Block(pool, block.address + size, rest, block, block.after)
        if block.after is not None:
            block.after.before = remainder
        block.after = remainder
        block.size = size
        if pool.last is block:
            pool.last = remainder
        pool.add(remainder)

    # --- the device's memory ----------------------------------------------------------------------------

    def _new_segment(self, pool: Pool, size: int) -> Block:
        """A segment for a request that no free block serves."""
        if pool.is_small:
            nbytes = SMALL_SEGMENT
        elif size < OWN_SEGMENT:
            nbytes = LARGE_SEGMENT
        else:
            nbytes = -(-size // SEGMENT_ROUNDING) * SEGMENT_ROUNDING
        if self.reserved + nbytes > self.limit:
            self._empty_cache()
        self._reserve(nbytes)
        self._next_address += nbytes
        return Block(pool, self._next_address - nbytes, nbytes)

    def _grow(self, pool: Pool, size: int) -> Block:
        """An expandable segment's end, grown by whole pages to at least `size`."""
        page = _page(pool)
        if self.reserved + self._missing(pool, size) > self.limit:
            self._empty_cache()
        nbytes, last = self._missing(pool, size), pool.last
        self._reserve(nbytes)
        if last is not None and last.is_free:
            pool.remove(last)
            last.size += nbytes
            return last
        grown = Block(pool, 0 if last is None else -(-(last.address + last.size) // page) * page, nbytes, last)
        if last is not None:
            last.after = grown
        pool.last = grown
        return grown

    def _missing(self, pool: Pool, size: int) -> int:
        """Bytes of the pages that a request needs beyond what is free at the segment's end."""
        there = pool.last.size if pool.last is not None and pool.last.is_free else 0
        return -(-(size - there) // _page(pool)) * _page(pool)

    def _reserve(self, nbytes: int) -> None:
        if self.reserved + nbytes > self.limit:
            raise DeviceFull
        self.reserved += nbytes
        if self.reserved > self.peak_reserved:
            self.peak_reserved = self.reserved

    def _empty_cache(self) -> None:
        """Give back every segment that is wholly free, and every such page of an expandable one."""
        self.retries += 1
        for pool in self._pools.values():
            if self.settings.expandable_segments:
                for _, _, block in tuple(pool.free):
                    self.reserved -= _unmap(block)
                continue
            self.reserved -= sum(size for size, _, block in pool.free if _is_whole(block))
            pool.free = [entry for entry in pool.free if not _is_whole(entry[2])]


class SegregatedAllocator:
    """An allocator whose blocks serve requests of one size and stream alone: nothing is cut, nothing is joined."""

    def __init__(self) -> None:
        self.reserved = 0
        self._pools: dict[tuple[int, int], Pool] = {}

    def allocate(self, nbytes: int, stream: int = 0) -> Block:
        """A block of that size: a free one, else a new one."""
        grain = BLOCK_BYTES if nbytes < OWN_SEGMENT else SEGMENT_ROUNDING
        size = -(-nbytes // grain) * grain
        pool = self._pools.setdefault((stream, size), Pool(size <= SMALL_REQUEST))
        if pool.free:
            return pool.free.pop()[2]
        self.reserved += size
        return Block(pool, 0, size)

    def free(self, block: Block) -> None:
        """Put a block back."""
        block.pool.free.append((0, 0, block))


def _is_whole(block: Block) -> bool:
    """Is the block all of its segment?"""
    return block.before is None and block.after is None


def _page(pool: Pool) -> int:
    """Bytes by which an expandable segment grows."""
    return SMALL_SEGMENT if pool.is_small else LARGE_SEGMENT


def _unmap(block: Block) -> int:
    """Give back the whole pages in a free block of an expandable segment: how many bytes. What lies before and after
    them stays free; the addresses are not used again."""
    pool, page, end = block.pool, _page(block.pool), block.address + block.size
    first, last = -(-block.address // page) * page, end // page * page
    if first >= last:
        return 0
    pool.remove(block)
    if block.address < first:
        head = Block(pool, block.address, first - block.address, block.before, block)
        if block.before is not None:
            block.before.after = head
        block.before = head
        pool.add(head)
    if last < end:
        tail = Block(pool, last, end - last, block, block.after)
        if block.after is not None:
            block.after.before = tail
        block.after = tail
        if pool.last is block:
            pool.last = tail
        pool.add(tail)
    block.address, block.size = first, last - first
    return block.size
