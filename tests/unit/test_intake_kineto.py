"""Profiler traces as measurements: step times, parts and peaks computed by hand."""

from __future__ import annotations

from typing import Any

import pytest

from reports.intake.kineto import read_traces
from reports.intake.kineto_parts import step_parts
from reports.intake.packed import Document
from reports.intake.reading import Reading
from reports.intake.spans import length, union, within, without
from suite.parse import SpecError
from suite.record import Moment, Quantity

pytestmark = pytest.mark.unit


def span(name: str, start: float, duration: float, cat: str = "user_annotation", **args: Any) -> dict[str, Any]:
    """A complete event, microseconds."""
    return {"ph": "X", "name": name, "cat": cat, "ts": start, "dur": duration, "pid": 1, "tid": 1, "args": args}


def steps(*durations: float, first: int = 3) -> list[dict[str, Any]]:
    """ProfilerStep# annotations, end to end from 0."""
    starts = [sum(durations[:place]) for place in range(len(durations))]
    return [
        span(f"ProfilerStep#{number}", start, duration)
        for number, (start, duration) in enumerate(zip(starts, durations, strict=True), start=first)
    ]


def memory(at: float, total: int, nbytes: int = 8, kind: int = 1, number: int = 0, reserved: int = 0) -> dict[str, Any]:
    """A [memory] event."""
    sums = {"Total Allocated": total, "Total Reserved": reserved, "Bytes": nbytes}
    args = {**sums, "Device Type": kind, "Device Id": number, "Addr": 1}
    return {"ph": "i", "name": "[memory]", "cat": "cpu_instant_event", "ts": at, "args": args}


def trace(*events: dict[str, Any], rank: int | None = 0, world: int = 1) -> dict[str, Any]:
    """The file."""
    about = {} if rank is None else {"distributedInfo": {"backend": "nccl", "rank": rank, "world_size": world}}
    return {"schemaVersion": 1, **about, "traceEvents": list(events)}


def read(*data: Any) -> Reading:
    return read_traces([Document(f"trace{place}.json", each) for place, each in enumerate(data)])


def seconds(reading: Reading) -> list[tuple[int, float]]:
    return [(s.index, s.value) for s in reading.samples if s.quantity is Quantity.STEP_TIME]


def test_steps_numbered_below_three_are_warm_up() -> None:
    reading = read(trace(*steps(900, 800, 700, 100, 110, 120, first=0)))
    assert seconds(reading) == [(3, pytest.approx(100e-6)), (4, pytest.approx(110e-6)), (5, pytest.approx(120e-6))]
    assert "3 steps, 3 dropped as warm-up" in reading.notes[0]


def test_a_profile_that_starts_later_loses_no_step() -> None:
    assert [value for _, value in seconds(read(trace(*steps(100, 110, first=12))))] == pytest.approx([1e-4, 1.1e-4])


def test_of_three_first_steps_the_first_alone_is_dropped_and_reports_keep_the_others() -> None:
    assert seconds(read(trace(*steps(900, 100, 110, first=0)))) == [
        (3, pytest.approx(1e-4)),
        (4, pytest.approx(1.1e-4)),
    ]


def test_without_step_annotations_the_optimizer_marks_them() -> None:
    updates = [span("Optimizer.step#AdamW.step", 100 * place, 20) for place in range(6)]
    reading = read(trace(*updates))
    assert [index for index, _ in seconds(reading)] == [3, 4, 5]
    assert all(value == pytest.approx(100e-6) for _, value in seconds(reading))


def test_a_host_that_runs_ahead_leaves_the_device_to_time_the_steps() -> None:
    device = [span(f"ProfilerStep#{3 + place}", 50 + 400 * place, 350, "gpu_user_annotation") for place in range(3)]
    device.append(span("gemm", 60, 1140, "kernel"))
    reading = read(trace(*steps(100, 100, 100), *device))
    assert [value for _, value in seconds(reading)] == pytest.approx([400e-6, 400e-6, 350e-6])
    same = read(trace(*steps(400, 400, 400), *device))  # the host waits: its own steps count
    assert [value for _, value in seconds(same)] == pytest.approx([400e-6] * 3)
    strayed = read(trace(*steps(400, 400, 400), *device, span("ProfilerStep#5", 850, 9e9, "gpu_user_annotation")))
    assert seconds(strayed) == seconds(same)


def test_parts_of_a_step_sum_to_it() -> None:
    parts = step_parts(
        [
            span("ampere_sgemm", 100, 500, "kernel", stream=7),
            span("vectorized_elementwise_kernel", 550, 50, "kernel", stream=20),  # at the same time
            span("ncclDevKernel_AllReduce_Sum_f32_RING_LL(ncclDevKernelArgsStorage<4096ul>)", 500, 300, "kernel"),
            span("void multi_tensor_apply_kernel", 800, 100, "kernel"),
            span("Memcpy DtoH", 850, 100, "gpu_memcpy"),
            span("Memcpy HtoD", 700, 60, "gpu_memcpy"),  # while it communicates
            span("Memset", 980, 10, "gpu_memset"),
            span("outside", 1500, 100, "kernel"),
            span("aten::mm", 0, 1000, "cpu_op"),  # the host's own time is not the device's
            span("nccl:all_reduce", 500, 300, "gpu_user_annotation"),
        ],
        0,
        1000,
    )
    assert parts is not None
    # compute 100..600, 800..900, 980..990; communication 500..800, of which 600..800 alone; copies 900..950 alone
    assert parts.seconds == pytest.approx(
        {"compute": 610e-6, "exposed_communication": 200e-6, "exposed_copies": 50e-6, "idle": 140e-6}
    )
    assert parts.overlapped_seconds == pytest.approx(100e-6)
    assert sum(parts.seconds.values()) == pytest.approx(1e-3)


def test_a_cpu_s_parts_are_its_operators() -> None:
    parts = step_parts(
        [
            span("aten::linear", 0, 300, "cpu_op"),
            span("aten::addmm", 10, 200, "cpu_op"),
            span("gloo:all_reduce", 250, 250, "cpu_op"),
            span("c10d::allreduce_", 250, 5, "cpu_op"),
            span("ProfilerStep#3", 0, 1000),
        ],
        0,
        1000,
    )
    assert parts is not None
    assert parts.seconds == pytest.approx(
        {"compute": 300e-6, "exposed_communication": 200e-6, "exposed_copies": 0.0, "idle": 500e-6}
    )


def test_spans_are_sets_of_instants() -> None:
    first, second = union([(0, 3), (2, 5), (9, 9), (7, 12)]), union([(1, 2), (4, 8), (11, 20)])
    assert first == [(0, 5), (7, 12)]
    assert without(first, second) == [(0, 1), (2, 4), (8, 11)]
    assert within(first, 4, 8) == [(4, 5), (7, 8)]
    assert length(first) == 10
    inside = {place for start, end in first for place in range(int(start), int(end))}
    taken = {place for start, end in second for place in range(int(start), int(end))}
    assert length(without(first, second)) == len(inside - taken)


def test_peaks_are_told_by_phase_within_the_steps_kept() -> None:
    phases = [
        span("autograd::engine::evaluate_function: AddmmBackward0", 40, 30, "cpu_op"),
        span("Optimizer.step#AdamW.step", 80, 15),
    ]
    events = [
        memory(-50, 9999),  # before the steps
        memory(20, 500, reserved=2048),
        memory(50, 800, reserved=4096),
        memory(60, 900, nbytes=-8),  # a free tells no peak
        memory(85, 700, reserved=4096),
        memory(30, 10**9, kind=0, number=-1),  # the CPU's
        memory(30, 100, number=1),  # another device's
    ]
    reading = read(trace(*steps(100), *phases, *events))
    found = {s.moment: s.value for s in reading.samples if s.quantity is Quantity.MEMORY}
    assert found == {Moment.LOSS: 500, Moment.BACKWARD_PEAK: 800, Moment.OPTIMIZER_PEAK: 700}
    assert [s.value for s in reading.samples if s.quantity is Quantity.RESERVED] == [4096]
    assert "rank 0: device 0 is the fullest; 1 more are in the trace and not used" in reading.notes
    assert reading.least_bytes == {}


def test_a_cpu_s_count_says_how_low_it_falls() -> None:
    reading = read(trace(*steps(100), memory(20, 500, kind=0), memory(30, 16, nbytes=-484, kind=0)))
    assert reading.least_bytes == {0: 16}


def test_the_slowest_rank_gives_the_parts_and_every_rank_its_steps() -> None:
    slow = trace(*steps(200), span("gemm", 0, 50, "kernel"), rank=1, world=2)
    fast = trace(*steps(100), span("gemm", 0, 50, "kernel"), rank=0, world=2)
    reading = read(fast, slow)
    assert {s.rank: s.value for s in reading.samples} == pytest.approx({0: 1e-4, 1: 2e-4})
    assert reading.parts_seconds["idle"] == pytest.approx(150e-6)
    assert reading.world_size == 2


@pytest.mark.parametrize(
    "files, words",
    [
        ([{"segments": []}], "'trace0.json' is no trace: it has no traceEvents"),
        ([{"traceEvents": []}], "'trace0.json' is empty: no event"),
        ([{"traceEvents": {}}], "'trace0.json': traceEvents: expected a list, got {}"),
        (
            [trace(span("aten::mm", 0, 1, "cpu_op"))],
            "neither ProfilerStep# nor Optimizer.step# annotations nor [memory]",
        ),
        ([trace({"ph": "X", "name": "ProfilerStep#3", "ts": "soon", "dur": None})], "neither ProfilerStep#"),
        ([trace(*steps(1)), trace(*steps(1))], "2 traces are of rank 0; give one a rank"),
        (
            [trace(*steps(1), world=2), trace(*steps(1), rank=1, world=4)],
            "the traces are of jobs of 2, 4 ranks; give those of one job",
        ),
    ],
)
def test_what_is_no_trace_is_refused_in_one_line(files: list[Any], words: str) -> None:
    with pytest.raises(SpecError) as caught:
        read(*files)
    assert words in str(caught.value)
    assert str(caught.value).startswith("FILE: ")
    assert "\n" not in str(caught.value)
