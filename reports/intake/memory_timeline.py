"""The profiler's memory timeline as a measurement: what export_memory_timeline writes as .json, .json.gz, .raw.json.gz.

Format: torch/profiler/_memory_profiler.py, MemoryProfileTimeline. A timeline is [times, sizes], a row of sizes an
instant: a 0, then bytes by category; raw, it is a list of (time, action, bytes, category). What existed before the
profiler started is in it. Categories are the profiler's own guesses; bytes are those of tensors' storages.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from reports.intake.packed import Document
from reports.intake.reading import Reading, named_rank
from suite.parse import SpecError, require, shown
from suite.record import Component, Quantity, Sample

SOURCE = "torch profiler memory timeline"
#: torch's order (_CATEGORY_TO_INDEX): temporaries, autograd's own and what it cannot tell are our transients
_CATEGORIES = (
    Component.PARAMETERS,
    Component.OPTIMIZER,
    Component.INPUTS,
    Component.TRANSIENTS,
    Component.ACTIVATIONS,
    Component.GRADIENTS,
    Component.TRANSIENTS,
    Component.TRANSIENTS,
)
_ACTIONS = (1, 2, 3, 4)  # PREEXISTING, CREATE, INCREMENT_VERSION, DESTROY: signs are in the bytes


def is_timeline(data: Any) -> bool:
    """[times, sizes], or raw events."""
    if not isinstance(data, list) or not data or not isinstance(data[0], list):
        return False
    return _is_coalesced(data) or all(isinstance(row, list) and len(row) == 4 for row in data)


def read_timelines(documents: Iterable[Document]) -> Reading:
    """One timeline a process. SpecError, in one line, for what is none."""
    samples: list[Sample] = []
    notes = ["the profiler tells parameters, gradients and the rest by how operators use them: a guess of its own"]
    for place, document in enumerate(documents):
        said = named_rank(document.name)
        if said is None:
            notes.append(f"{document.name} does not say its rank: taken as rank {place}")
        rank = place if said is None else said
        sums = _at_peak(document)
        samples.append(Sample(Quantity.MEMORY, sum(sums.values()), rank))
        samples += [Sample(Quantity.MEMORY, value, rank, component=component) for component, value in sums.items()]
    return Reading(SOURCE, tuple(samples), tuple(notes))


def _is_coalesced(data: list[Any]) -> bool:
    times, *rest = data
    return len(rest) == 1 and isinstance(rest[0], list) and len(times) == len(rest[0]) and len(data) == 2


def _at_peak(document: Document) -> dict[Component, int]:
    """Bytes by component at the instant that holds most."""
    where = f"FILE: {shown(document.name)}"
    data = document.data
    require(is_timeline(data), f"{where} is no memory timeline: neither [times, sizes] nor raw events")
    rows = data[1] if _is_coalesced(data) else _accumulated(data, where)
    require(bool(rows), f"{where} is empty: no instant")
    for number, row in enumerate(rows):
        width = len(_CATEGORIES) + 1
        if not (isinstance(row, list) and len(row) == width and all(type(each) is int for each in row)):
            raise SpecError(f"{where}: sizes[{number}]: expected {width} whole numbers, got {shown(row)}")
    sums: dict[Component, int] = {}
    for component, value in zip(_CATEGORIES, max(rows, key=sum)[1:], strict=True):
        sums[component] = sums.get(component, 0) + value
    return {component: value for component, value in sums.items() if value}


def _accumulated(events: list[Any], where: str) -> list[list[int]]:
    """Sizes by category after every raw event."""
    level, rows = [0] * (len(_CATEGORIES) + 1), []
    for number, (_, action, nbytes, category) in enumerate(events):
        if action not in _ACTIONS or type(nbytes) is not int or category not in range(len(_CATEGORIES)):
            met = shown(events[number])
            raise SpecError(f"{where}: event {number}: expected (time, action, bytes, category), got {met}")
        level[category + 1] += nbytes
        rows.append(list(level))
    return rows
