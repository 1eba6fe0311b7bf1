"""The trace of a step: what the Trace Event format asks of it, and a pipeline's slices by hand."""

from __future__ import annotations

import json
from collections import defaultdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from parallelism.simulator.program import Stream
from parallelism.simulator.simulation import Simulation
from reports.trace_events import write_trace
from suite.parse import SpecError
from tests.unit.simulated import big, two_stages

pytestmark = pytest.mark.unit

Event = dict[str, Any]


def written(simulation: Simulation, folder: Path) -> list[Event]:
    """The events of the file, read back."""
    path = folder / "trace.json"
    write_trace(simulation, str(path))
    document = json.loads(path.read_text(encoding="utf-8"), parse_constant=lambda word: pytest.fail(word))
    assert document["displayTimeUnit"] in {"ms", "ns"}
    events: list[Event] = document["traceEvents"]
    return events


def check(events: list[Event]) -> None:
    """The format's rules for the kinds that are used here."""
    slices: dict[tuple[int, int], list[tuple[float, float]]] = defaultdict(list)
    for event in events:
        assert isinstance(event["name"], str)
        assert event["name"]
        assert type(event["pid"]) is type(event["tid"]) is int
        assert event["ts"] >= 0
        match event["ph"]:
            case "M":
                key = "name" if event["name"].endswith("_name") else "sort_index"
                assert event["name"] in {"process_name", "process_sort_index", "thread_name", "thread_sort_index"}
                assert list(event["args"]) == [key]
            case "X":
                assert event["dur"] > 0
                slices[event["pid"], event["tid"]].append((event["ts"], event["ts"] + event["dur"]))
            case "s" | "f":
                assert event["ph"] == "s" or event["bp"] == "e"
            case kind:
                pytest.fail(f"unknown phase {kind}")
    for line in slices.values():  # slices of a thread may not overlap in part; ours follow each other
        for (_, end), (start, _) in pairwise(line):
            assert start >= end * (1 - 1e-12)
    named = {(event["pid"], event["tid"]) for event in events if event["name"] == "thread_name"}
    assert named == set(slices)
    _check_flows([event for event in events if event["ph"] in "sf"], slices)


def _check_flows(flows: list[Event], slices: dict[tuple[int, int], list[tuple[float, float]]]) -> None:
    """Each id starts once and finishes once, later, both inside a slice of their thread."""
    starts = {event["id"]: event for event in flows if event["ph"] == "s"}
    ends = {event["id"]: event for event in flows if event["ph"] == "f"}
    assert len(starts) + len(ends) == len(flows)
    assert set(starts) == set(ends)
    for number, start in starts.items():
        assert start["ts"] < ends[number]["ts"]
        assert (start["cat"], start["name"]) == (ends[number]["cat"], ends[number]["name"])
        for event in (start, ends[number]):
            assert any(low <= event["ts"] < high for low, high in slices[event["pid"], event["tid"]])


def test_the_slices_of_1f1b(tmp_path: Path) -> None:
    events = written(two_stages(), tmp_path)
    check(events)
    found = {
        place: [(event["ts"], event["dur"]) for event in events if event["ph"] == "X" and event["pid"] == place]
        for place in (0, 1)
    }
    assert found == {
        0: [(0, 1e6), (1e6, 1e6), (4e6, 2e6), (7e6, 2e6)],
        1: [(1e6, 1e6), (2e6, 2e6), (4e6, 1e6), (5e6, 2e6)],
    }
    first = next(event for event in events if event["ph"] == "X")
    assert first["args"] == {"part": "compute", "stage": 0, "pass": "forward", "micro_batch": 0}
    names = {event["args"]["name"] for event in events if event["name"] == "process_name"}
    assert names == {"pipeline rank 0", "pipeline rank 1"}


def test_messages_are_arrows_from_their_stream(tmp_path: Path) -> None:
    events = written(two_stages(send=0.5), tmp_path)
    check(events)
    flows = [(event["ph"], event["ts"], event["pid"], event["tid"]) for event in events if event["ph"] in "sf"]
    # 0F0 is sent 1 to 1.5, and 1F0 starts; 1B0 is sent 4.5 to 5, and 0B0 starts
    assert flows.count(("s", 1e6, 0, Stream.SEND)) == 1
    assert flows.count(("f", 1.5e6, 1, Stream.COMPUTE)) == 1
    assert flows.count(("s", 4.5e6, 1, Stream.SEND)) == 1
    assert flows.count(("f", 5e6, 0, Stream.COMPUTE)) == 1
    assert len(flows) == 8  # two activations, two gradients


def test_messages_that_take_no_time_are_arrows_from_what_made_them(tmp_path: Path) -> None:
    starts = [event for event in written(two_stages(), tmp_path) if event["ph"] == "s"]
    assert [event["tid"] for event in starts] == [Stream.COMPUTE] * 4


def test_every_stream_of_a_large_step(tmp_path: Path) -> None:
    events = written(big(pp=4, micro_batches=8, units=3, schedule="zbv", virtual=2), tmp_path)
    check(events)
    assert {event["tid"] for event in events if event["ph"] == "X"} == set(Stream)
    kinds = {event["args"].get("pass") for event in events if event["ph"] == "X"}
    assert {"forward", "input", "weight"} <= kinds


def test_a_trace_too_large_is_refused_before_it_is_opened(tmp_path: Path) -> None:
    path, simulation = tmp_path / "trace.json", two_stages()
    tasks = len(simulation.program.graph)
    with pytest.raises(SpecError, match=rf"--trace: {tasks} tasks are beyond --trace-limit\({tasks - 1}\)"):
        write_trace(simulation, str(path), limit=tasks - 1)
    assert not path.exists()
    write_trace(simulation, str(path), limit=tasks)
