"""Memory snapshots as measurements: peaks computed by hand, in every form that torch leaves them in."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reports.intake.packed import Document
from reports.intake.reading import Reading
from reports.intake.snapshot import read_snapshot, read_snapshots
from suite.parse import SpecError
from suite.record import Moment, Outcome, Quantity
from tests.unit.snapshot_samples import FRAMES, MIB, Heap, block, event, freed, segment, snapshot

pytestmark = pytest.mark.unit


def read(data: Any, name: str = "rank0_snapshot.json") -> Reading:
    return read_snapshots([Document(name, data)])


def values(data: Any, name: str = "rank0_snapshot.json") -> tuple[float, float, float]:
    """Peaks of allocated, active and reserved bytes of the one rank."""
    reading = read(data, name)
    found = {sample.quantity: sample.value for sample in reading.samples}
    return found[Quantity.MEMORY], found[Quantity.ACTIVE], found[Quantity.RESERVED]


def test_a_block_is_allocated_until_its_free_is_requested_and_active_until_it_is_completed() -> None:
    trace = [
        event("segment_alloc", 0, 2 * MIB),
        event("alloc", 0, 1000),  # a block of 1024
        event("alloc", 1024, 512),
        *freed(0, 1000),
        event("alloc", 4096, 2048),  # 512 + 2048 = 2560 are allocated
        event("free_requested", 1024, 512),  # a stream still reads it
    ]
    data = snapshot([segment([block(512, "active_pending_free"), block(2048)])], trace)
    assert values(data) == (2560, 2560, 2 * MIB)
    data["device_traces"][0].insert(-1, event("alloc", 8192, 100))  # beside a block that waits, and asks for less
    data["segments"][0]["blocks"].insert(0, block(512, requested=100))
    assert values(data) == (2660, 3072, 2 * MIB)


def test_what_waits_for_a_stream_is_active_and_not_allocated() -> None:
    trace = [event("alloc", 0, 4096), event("free_requested", 0, 4096), event("alloc", 4096, 1024)]
    data = snapshot([segment([block(4096, "active_pending_free"), block(1024)])], trace)
    assert values(data) == (4096, 5120, 2 * MIB)


def test_blocks_from_before_a_trace_that_was_cut_off_are_in_the_peak() -> None:
    # 4096 and 8192 live before the first event; 1024 joins them, then 4096 go
    trace = [event("alloc", 64, 1024), *freed(0, 4096)]
    data = snapshot([segment([block(8192), block(1024)])], trace)
    assert values(data) == (4096 + 8192 + 1024, 4096 + 8192 + 1024, 2 * MIB)


def test_a_peak_before_the_first_event_is_found() -> None:
    data = snapshot([segment([block(512)])], freed(0, 4096))
    assert values(data)[0] == 4608
    assert read(data).samples[0].moment is None  # no event tells when


def test_a_free_that_was_requested_before_the_trace_begins_is_not_counted_twice() -> None:
    trace = [event("free_completed", 9, 8192), event("alloc", 0, 1024), event("free_requested", 0, 1024)]
    data = snapshot([segment([block(1024, "active_pending_free")])], trace)
    assert values(data) == (1024, 8192, 2 * MIB)


@pytest.mark.parametrize("kept", ["free_requested", "free_completed"])
def test_one_of_the_two_frees_stands_for_both_where_the_other_was_skipped(kept: str) -> None:
    trace = [event("alloc", 0, 4096), *freed(0, 4096), event("alloc", 0, 1024), event("snapshot", 0, 0)]
    trace = [each for each in trace if each["action"] in (kept, "alloc", "snapshot")]
    assert values(snapshot([segment([block(1024)])], trace)) == (4096, 4096, 2 * MIB)


def test_segments_given_back_are_in_the_peak_of_what_is_reserved() -> None:
    trace = [event("segment_alloc", 0, 20 * MIB), event("segment_free", 0, 20 * MIB), event("alloc", 0, 512)]
    assert values(snapshot([segment([block(512)])], trace))[2] == 22 * MIB


def test_expandable_segments_are_reserved_page_by_page() -> None:
    maps = [event("segment_map", 2 * MIB * page, 2 * MIB) for page in range(3)]
    trace = [*maps, event("segment_unmap", 4 * MIB, 2 * MIB), event("alloc", 0, 512)]
    data = snapshot([segment([block(512)], 4 * MIB)], trace, expandable_segments=True)
    assert values(data)[2] == 6 * MIB
    assert read(data).allocator["expandable_segments"] is True


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 100_000)), min_size=1, max_size=60), st.integers(1, 120))
def test_a_cut_trace_gives_the_peak_of_the_instants_that_it_covers(moves: list[Any], entries: int) -> None:
    heap = Heap()
    for is_free, size in moves:
        heap.free(size) if is_free and heap.live else heap.allocate(size)
    kept = min(entries, len(heap.trace))
    assert values(heap.dump(kept))[0] == max(heap.levels[len(heap.trace) - kept :])


def test_devices_of_one_process_are_ranks_unless_the_name_says_whose_it_is() -> None:
    data = snapshot(
        [segment([block(512)], device=0), segment([block(4096)], device=1)],
        [event("alloc", 0, 512)],
        [event("alloc", 0, 4096)],
    )
    both = read(data, "snapshot.json")
    assert {s.rank: s.value for s in both.samples if s.quantity is Quantity.MEMORY} == {0: 512, 1: 4096}
    one = read(data, "rank7.json")  # its own device, and a stray tensor on another
    assert {s.rank: s.value for s in one.samples if s.quantity is Quantity.MEMORY} == {7: 4096}
    assert one.notes == ("rank7.json: rank 7 is on device 1; not used: device 0 (512 B)",)


def test_segments_without_events_are_a_level_and_no_peak() -> None:
    reading = read(snapshot([segment([block(1024, requested=900), block(512, "active_awaiting_free")])], []))
    assert [(s.quantity, s.value, s.moment) for s in reading.samples] == [
        (Quantity.MEMORY, 900, Moment.STEADY),
        (Quantity.ACTIVE, 1536, None),
        (Quantity.RESERVED, 2 * MIB, None),
    ]
    assert "no events, so no peak" in reading.notes[0]
    old = read([segment([block(1024, requested=900)])])  # a list of segments alone
    assert old.samples[0].value == 900


def test_events_without_segments_start_from_the_least_that_can_have_been() -> None:
    data = {"device_traces": [[*freed(0, 2048), event("alloc", 0, 1024)]]}
    assert values(data)[0] == 2048


def test_running_out_of_memory_is_the_outcome() -> None:
    oom = {"action": "oom", "device_free": 3 * MIB, "size": 4 * MIB, "stream": 0, "frames": []}
    reading = read(snapshot([segment([block(1024)])], [event("alloc", 0, 1024), oom]))
    assert reading.outcome is Outcome.OOM
    assert reading.reason == "rank 0: torch raised OutOfMemoryError: 4.00 MiB asked for, 3.00 MiB free"


@pytest.mark.parametrize(
    "name, filename, moment",
    [
        ("step", "/lib/torch/optim/adamw.py", Moment.OPTIMIZER_PEAK),
        ("clip_grad_norm_", "/lib/torch/nn/utils/clip_grad.py", Moment.OPTIMIZER_PEAK),
        ("torch::autograd::Engine::thread_main", "engine.cpp", Moment.BACKWARD_PEAK),
        ("unpack_hook", "/lib/torch/utils/checkpoint.py", Moment.BACKWARD_PEAK),
        ("cross_entropy", "/lib/torch/nn/functional.py", Moment.LOSS),
        ("linear", "functional.py", Moment.FORWARD_PEAK),
    ],
)
def test_the_stack_of_the_event_at_the_peak_tells_the_phase(name: str, filename: str, moment: Moment) -> None:
    frames = [{"filename": filename, "line": 1, "name": name}, *FRAMES]
    trace = [event("alloc", 0, 512), event("alloc", 512, 4096, frames=frames), *freed(512, 4096)]
    assert read(snapshot([segment([block(512)])], trace)).samples[0].moment is moment


@pytest.mark.parametrize(
    "data, words",
    [
        ({"traceEvents": []}, "is no snapshot: it has neither segments nor device_traces"),
        ({"segments": [], "device_traces": [[], []]}, "is empty: no segment and no event"),
        ({"segments": 3}, "segments: expected a list, got 3"),
        ({"segments": [7]}, "segments[0]: expected an object with keys, got 7"),
        ({"segments": [{}]}, "segments[0].total_size: expected a whole number of at least 0, got None"),
        ({"segments": [{"total_size": -1}]}, "segments[0].total_size: expected a whole number of at least 0, got -1"),
        ({"segments": [{"total_size": 2.0**70}]}, "segments[0].total_size: expected a whole number"),
        ({"segments": [{"total_size": 1, "device": "gpu"}]}, "segments[0].device: expected a whole number"),
        ({"device_traces": {"0": []}}, "device_traces: expected a list a device, got {'0': []}"),
        ({"device_traces": [[{"action": "melt"}]]}, "device_traces[0][0].action: 'melt' is not known; known: alloc,"),
        (
            {"device_traces": [[{"action": "alloc", "size": "big"}]]},
            "device_traces[0][0].size: expected a whole number",
        ),
        (
            snapshot([segment([block(512)])], [event("alloc", 0, 512), event("alloc", 0, 2048)]),
            "device 0: the trace allocates more than its segments hold at the end (-2.00 KiB at its start)",
        ),
    ],
)
def test_what_is_no_snapshot_or_does_not_add_up_is_refused_in_one_line(data: Any, words: str) -> None:
    with pytest.raises(SpecError) as caught:
        read_snapshot(Document("a.json", data))
    message = str(caught.value)
    assert message.startswith("FILE: 'a.json'")
    assert words in message
    assert "\n" not in message
