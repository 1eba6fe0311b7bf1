"""The caching allocator's rules, request by request: every number derived by hand from CUDACachingAllocator.cpp."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memory.allocator import Block, CachingAllocator, DeviceFull
from memory.allocator_settings import AllocatorSettings
from suite.parse import SpecError

pytestmark = pytest.mark.unit

KIB, MIB = 2**10, 2**20
EXPANDABLE = AllocatorSettings(expandable_segments=True)


@pytest.mark.parametrize(
    "request_bytes, allocated, reserved",
    [
        (1, 512, 2 * MIB),
        (512, 512, 2 * MIB),
        (513, 1024, 2 * MIB),
        (MIB, MIB, 2 * MIB),  # the largest of the small pool
        (MIB + 1, MIB + 512, 20 * MIB),
        (10 * MIB - 512, 10 * MIB - 512, 20 * MIB),
        (10 * MIB, 10 * MIB, 10 * MIB),  # a segment of its own
        (10 * MIB + 1, 10 * MIB + 512, 12 * MIB),  # rounded to 2 MiB, and cut
        (11 * MIB, 12 * MIB, 12 * MIB),  # 1 MiB over, which is not more than 1 MiB: not cut off
        (11 * MIB - 512, 11 * MIB - 512, 12 * MIB),  # 1 MiB and 512 bytes over: cut off
    ],
)
def test_one_request(request_bytes: int, allocated: int, reserved: int) -> None:
    allocator = CachingAllocator()
    allocator.allocate(request_bytes)
    assert (allocator.allocated, allocator.reserved) == (allocated, reserved)


def test_small_requests_share_a_segment_and_large_ones_another() -> None:
    allocator = CachingAllocator()
    for _ in range(2):
        allocator.allocate(MIB)
    assert allocator.reserved == 2 * MIB
    allocator.allocate(512)
    assert allocator.reserved == 4 * MIB
    for _ in range(4):
        allocator.allocate(5 * MIB)
    assert allocator.reserved == 24 * MIB
    allocator.allocate(2 * MIB)
    assert allocator.reserved == 44 * MIB


def test_a_freed_block_serves_again_and_stays_reserved() -> None:
    allocator = CachingAllocator()
    block = allocator.allocate(100 * MIB)
    allocator.free(block)
    assert (allocator.allocated, allocator.reserved) == (0, 100 * MIB)
    allocator.allocate(100 * MIB)
    assert allocator.reserved == 100 * MIB
    allocator.allocate(100 * MIB)
    assert allocator.reserved == allocator.peak_reserved == 200 * MIB


def test_the_smallest_block_that_is_large_enough_serves() -> None:
    allocator = CachingAllocator()
    large, small = allocator.allocate(40 * MIB), allocator.allocate(30 * MIB)
    allocator.free(large)
    allocator.free(small)
    assert allocator.allocate(25 * MIB).address == small.address  # of the 30, of which 5 are left
    assert allocator.allocate(34 * MIB).address == large.address
    assert allocator.allocate(5 * MIB).address == small.address + 25 * MIB  # not of the 6 that the 40 has left
    assert allocator.reserved == 70 * MIB


def test_of_equal_blocks_the_lowest_address_serves() -> None:
    allocator = CachingAllocator()
    first, second = allocator.allocate(30 * MIB), allocator.allocate(30 * MIB)
    allocator.free(second)
    allocator.free(first)
    assert allocator.allocate(30 * MIB).address == first.address


def test_neighbours_are_joined_in_any_order() -> None:
    for order in ((0, 1, 2), (2, 1, 0), (0, 2, 1), (1, 0, 2)):
        allocator = CachingAllocator()
        blocks = [allocator.allocate(6 * MIB) for _ in range(3)]  # of one segment of 20, of which 2 are left
        for index in order:
            allocator.free(blocks[index])
        allocator.allocate(20 * MIB)
        assert allocator.reserved == 20 * MIB


def test_neighbours_of_two_segments_are_not_joined() -> None:
    allocator = CachingAllocator()
    blocks = [allocator.allocate(10 * MIB) for _ in range(2)]
    for block in blocks:
        allocator.free(block)
    allocator.allocate(20 * MIB)
    assert allocator.reserved == 40 * MIB


def test_a_live_block_between_free_ones_is_fragmentation() -> None:
    """10 of 20 MiB are free, in two parts: a request of 9 needs a segment more, though it is not for want of bytes."""
    allocator = CachingAllocator()
    blocks = [allocator.allocate(5 * MIB) for _ in range(4)]
    allocator.free(blocks[0])
    allocator.free(blocks[2])
    allocator.allocate(9 * MIB)
    assert (allocator.allocated, allocator.reserved) == (19 * MIB, 40 * MIB)


def test_streams_share_nothing() -> None:
    allocator = CachingAllocator()
    allocator.free(allocator.allocate(50 * MIB, stream=1))
    allocator.allocate(50 * MIB, stream=0)
    assert allocator.reserved == 100 * MIB
    allocator.allocate(50 * MIB, stream=1)
    assert allocator.reserved == 100 * MIB


def test_a_full_device_takes_back_what_is_wholly_free_and_tries_once_more() -> None:
    allocator = CachingAllocator(limit=100 * MIB)
    whole, split = allocator.allocate(40 * MIB), allocator.allocate(40 * MIB)
    allocator.free(whole)
    allocator.free(split)
    allocator.allocate(30 * MIB)  # of the first 40: what is left of it cannot be given back
    allocator.allocate(60 * MIB)
    assert (allocator.reserved, allocator.peak_reserved, allocator.retries) == (100 * MIB, 100 * MIB, 1)
    with pytest.raises(DeviceFull):
        allocator.allocate(12 * MIB)


def test_blocks_from_the_given_size_on_are_not_split() -> None:
    allocator = CachingAllocator(AllocatorSettings(max_split_bytes=100 * MIB))
    allocator.free(allocator.allocate(130 * MIB))
    allocator.allocate(50 * MIB)  # must not take the 130
    assert allocator.reserved == 180 * MIB
    block = allocator.allocate(111 * MIB)  # takes all of it: less than 20 MiB too much
    assert (block.size, allocator.reserved) == (130 * MIB, 180 * MIB)
    allocator.free(block)
    allocator.allocate(110 * MIB)  # 20 too much
    assert allocator.reserved == 290 * MIB


def test_an_expandable_segment_grows_by_pages_and_is_cut_to_size() -> None:
    allocator = CachingAllocator(EXPANDABLE)
    first = allocator.allocate(11 * MIB)
    assert (allocator.allocated, allocator.reserved) == (11 * MIB, 20 * MIB)
    allocator.allocate(11 * MIB)  # 9 are there, 2 more are needed: a page
    assert (allocator.allocated, allocator.reserved) == (22 * MIB, 40 * MIB)
    allocator.free(first)
    allocator.allocate(18 * MIB)  # the end is free
    assert allocator.reserved == 40 * MIB
    allocator.allocate(10 * MIB)  # the first block's place
    assert (allocator.allocated, allocator.reserved) == (39 * MIB, 40 * MIB)
    allocator.allocate(512)
    assert allocator.reserved == 42 * MIB


def test_the_end_of_an_expandable_segment_is_taken_last() -> None:
    """It counts as large as it could grow: a hole of 40 MiB serves before the 9 that are free at the end."""
    allocator = CachingAllocator(EXPANDABLE)
    first = allocator.allocate(40 * MIB)
    last = allocator.allocate(11 * MIB)
    allocator.free(first)
    assert allocator.allocate(5 * MIB).address == first.address
    assert allocator.allocate(36 * MIB).address == last.address + 11 * MIB  # only there is room to grow
    assert allocator.reserved == 100 * MIB


def test_an_expandable_segment_does_not_fragment_where_a_plain_one_does() -> None:
    """Ten blocks of 30 MiB go, then five of 60 come: ten segments of 30 MiB are no use, one of 300 is."""
    for chosen, reserved in ((AllocatorSettings(), 600 * MIB), (EXPANDABLE, 300 * MIB)):
        allocator = CachingAllocator(chosen)
        for block in [allocator.allocate(30 * MIB) for _ in range(10)]:
            allocator.free(block)
        for _ in range(5):
            allocator.allocate(60 * MIB)
        assert allocator.reserved == reserved


def test_free_pages_of_an_expandable_segment_are_given_back() -> None:
    allocator = CachingAllocator(EXPANDABLE, limit=100 * MIB)
    blocks = [allocator.allocate(size * MIB) for size in (30, 30, 21)]
    allocator.free(blocks[1])  # from 30 to 60: one whole page, from 40 to 60
    assert allocator.reserved == 100 * MIB
    allocator.allocate(35 * MIB)  # 19 are free at the end, a page more is needed
    assert (allocator.reserved, allocator.retries) == (100 * MIB, 1)
    with pytest.raises(DeviceFull):
        allocator.allocate(20 * MIB)


def test_settings_are_read_as_torch_writes_them() -> None:
    read = AllocatorSettings.parse("expandable_segments:True,max_split_size_mb:128")
    assert read == AllocatorSettings(True, 128 * MIB)
    assert AllocatorSettings.parse(" max_split_size_mb:21") == AllocatorSettings(False, 21 * MIB)


@pytest.mark.parametrize(
    "text, words",
    [
        ("", "is not modelled"),
        ("expandable_segment:True", "expandable_segments"),
        ("expandable_segments:yes", "True or False"),
        ("max_split_size_mb:20", "above 20"),
        ("max_split_size_mb:x", "max_split_size_mb"),
        ("expandable_segments:True,expandable_segments:True", "twice"),
    ],
)
def test_what_is_not_modelled_is_refused(text: str, words: str) -> None:
    with pytest.raises(SpecError) as caught:
        AllocatorSettings.parse(text)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(1, 40 * MIB)), min_size=1, max_size=60),
    st.sampled_from([AllocatorSettings(), EXPANDABLE, AllocatorSettings(max_split_bytes=32 * MIB)]),
)
def test_blocks_never_overlap_and_everything_comes_back(
    requests: list[tuple[int, int]], chosen: AllocatorSettings
) -> None:
    allocator, live = CachingAllocator(chosen), list[Block]()
    for draw, nbytes in requests:
        if draw == 0 and live:
            allocator.free(live.pop(nbytes % len(live)))
        else:
            live.append(allocator.allocate(nbytes))
        for is_small in (True, False):
            places = sorted((b.address, b.address + b.size) for b in live if b.pool.is_small is is_small)
            assert all(end <= start for (_, end), (start, _) in pairwise(places))
        assert sum(block.size for block in live) == allocator.allocated <= allocator.reserved
    for block in live:
        allocator.free(block)
    assert allocator.allocated == 0
    free = [block for pool in allocator._pools.values() for _, _, block in pool.free]
    assert sum(block.size for block in free) == allocator.reserved
    assert all(block.before is None and block.after is None for block in free)
