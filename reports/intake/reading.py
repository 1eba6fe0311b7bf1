"""What a measurement of another tool says, before it is laid beside an estimate."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from suite.parse import SpecError, require, shown
from suite.record import Outcome, Sample

#: what --from calls them
SNAPSHOT, KINETO = "snapshot", "kineto"
MEASURED = (SNAPSHOT, KINETO)
_RANK = re.compile(r"rank[^0-9]{0,2}(\d{1,6})", re.IGNORECASE)


@dataclass(frozen=True)
class Reading:
    """What the files of one import measured. A sample of MEMORY without a moment is a peak whose moment the file does
    not tell."""

    source: str
    """whose file it is, in words"""
    samples: tuple[Sample, ...]
    notes: tuple[str, ...] = ()
    """what was taken for granted, what the file lacks, what of it is not used: a line each"""
    parts_seconds: Mapping[str, float] = field(default_factory=dict)
    """of a step of the rank that is slowest, by what it is spent on; they sum to the step"""
    overlapped_seconds: float | None = None
    """of its communication, what computation hides"""
    world_size: int | None = None
    """ranks of the job that was measured, where the file says"""
    outcome: Outcome = Outcome.OK
    reason: str = ""
    allocator: Mapping[str, object] = field(default_factory=dict)
    """what torch's caching allocator was set to, where the file says"""
    least_bytes: Mapping[int, int] = field(default_factory=dict)
    """of ranks whose count of allocated bytes began with the recording: the least that it came to"""


def named_rank(name: str) -> int | None:
    """The rank that a file's name gives: 'rank3_snapshot.pickle', 'memory_rank-12.json'."""
    found = _RANK.search(name)
    return int(found[1]) if found else None


def count_of(value: object, where: str) -> int:
    """A size or a count: a whole number of at least 0, below 2^53. SpecError for anything else."""
    if type(value) is not int or not 0 <= value < 2**53:
        raise SpecError(f"{where}: expected a whole number of at least 0, got {shown(value)}")
    return value


def mappings_of(value: object, where: str) -> list[Mapping[str, object]]:
    """A list of objects. SpecError for anything else."""
    require(isinstance(value, list | tuple), f"{where}: expected a list, got {shown(value)}")
    assert isinstance(value, list | tuple)
    for number, item in enumerate(value):
        if not isinstance(item, Mapping):
            raise SpecError(f"{where}[{number}]: expected an object with keys, got {shown(item)}")
    return list(value)
