"""The CPU allocator's own account of a stretch of code: every block with its birth, death and size.

torch.profiler hears every allocation of the CPU allocator in the process. Started before anything is built,
its running total is the CPU's counterpart of CUDA's memory_allocated, to the byte. Resident-set figures are
no substitute: malloc keeps and reuses pages.
"""

from __future__ import annotations

import time
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import torch
import torch.distributed
from torch.library import _scoped_library
from torch.profiler import ProfilerActivity, profile, record_function

MARK = "shardscope.mark."
#: spans that FSDP2 and gloo leave around their own work
GATHER_SPANS = ("FSDP::", "gloo:")


@dataclass(slots=True)
class Block:
    """One allocation: address, bytes, the nanoseconds between which it lived (None: to the end), and whether a
    sharding strategy or its collective asked for it."""

    address: int
    nbytes: int
    born: int
    died: int | None = None
    is_gather: bool = False

    def is_alive(self, at: int) -> bool:
        """Is it allocated at that nanosecond?"""
        return self.born <= at and (self.died is None or at < self.died)


@dataclass(frozen=True)
class Mark:
    """A named instant."""

    name: str
    at: int


@dataclass
class AllocationTrace:
    """What was recorded: blocks in order of birth, marks in order, and the running total at every change."""

    blocks: list[Block] = field(default_factory=list)
    marks: list[Mark] = field(default_factory=list)
    times: list[int] = field(default_factory=list)
    totals: list[int] = field(default_factory=list)

    def total(self, at: int) -> int:
        """Bytes allocated at an instant."""
        index = bisect_right(self.times, at)
        return self.totals[index - 1] if index else 0

    def peak(self, start: int, end: int) -> tuple[int, int]:
        """(bytes, instant) of the highest point from `start` to `end`, both included."""
        first, last = bisect_right(self.times, start), bisect_right(self.times, end)
        best = max(range(first, last), key=self.totals.__getitem__, default=None)
        at_start = self.total(start)
        if best is None or self.totals[best] <= at_start:
            return at_start, start
        return self.totals[best], self.times[best]

    def alive(self, at: int) -> Iterator[Block]:
        """The blocks that are allocated at an instant."""
        return (block for block in self.blocks if block.is_alive(at))


def mark(name: str) -> None:
    """Leave a named instant in the trace, on the allocator's own clock."""
    with record_function(MARK + name):
        pass


@contextmanager
def record_allocations() -> Iterator[AllocationTrace]:
    """Record every CPU allocation inside the block; the trace is filled in when the block ends."""
    trace = AllocationTrace()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        yield trace
    results = profiler.profiler
    assert results is not None
    _fill(trace, results.kineto_results.experimental_event_tree())


@contextmanager
def settled_collectives(seconds: float = 0.005) -> Iterator[None]:
    """Let gloo's worker threads drop their references before the caller goes on.

    The profiler does not hear what a thread frees that it was not started on. gloo's thread holds a collective's
    tensors for a moment after `wait` returns; whoever drops the last reference frees them. A pause makes that the
    caller, whose frees are heard. For passes that count bytes, never for passes that are timed.
    """
    wait = torch.distributed.Work.wait
    with _scoped_library("_c10d_functional", "IMPL") as library:
        library.impl("all_gather_into_tensor", _all_gather, "CPU")
        library.impl("reduce_scatter_tensor", _reduce_scatter, "CPU")
        torch.distributed.Work.wait = _settling(wait, seconds)  # type: ignore[method-assign]
        try:
            yield
        finally:
            torch.distributed.Work.wait = wait  # type: ignore[method-assign]


def _settling(wait: Callable[..., Any], seconds: float) -> Callable[..., Any]:
    def wait_and_settle(*arguments: Any) -> Any:
        result = wait(*arguments)
        time.sleep(seconds)
        return result

    return wait_and_settle


def _all_gather(x: torch.Tensor, ranks: int, group_name: Any) -> torch.Tensor:
    """The functional operator, which holds its work where no pause can reach it: the same calls, waited for."""
    gathered = x.new_empty((ranks * x.shape[0], *x.shape[1:]))
    _group(group_name)._allgather_base(gathered, x).wait()
    return gathered


def _reduce_scatter(x: torch.Tensor, operation: str, ranks: int, group_name: Any) -> torch.Tensor:
    assert operation == "sum"  # what a process group does unless it is told
    mine = x.new_empty((x.shape[0] // ranks, *x.shape[1:]))
    _group(group_name)._reduce_scatter_base(mine, x).wait()
    return mine


def _group(name: Any) -> Any:
    return torch.distributed.distributed_c10d._resolve_process_group(name)


def _fill(trace: AllocationTrace, roots: Iterable[Any]) -> None:
    changes: list[tuple[int, int, int, bool]] = []
    for event, is_gather in _walk(roots):
        if event.tag == torch._C._profiler._EventType.Allocation:
            fields = event.extra_fields
            if fields.device.type == "cpu":
                changes.append((event.start_time_ns, fields.ptr, fields.alloc_size, is_gather))
        elif event.name.startswith(MARK):
            trace.marks.append(Mark(event.name.removeprefix(MARK), event.start_time_ns))
    changes.sort(key=lambda change: change[0])
    trace.marks.sort(key=lambda item: item.at)
    living: dict[int, Block] = {}
    applied: list[tuple[int, int]] = []
    for at, address, nbytes, is_gather in changes:
        if nbytes > 0:
            if address in living:  # its death was not heard; it is over by now
                lost = living.pop(address)
                lost.died = at
                applied.append((at, -lost.nbytes))
            block = Block(address, nbytes, at, is_gather=is_gather)
            living[address] = block
            trace.blocks.append(block)
        elif address in living:
            living.pop(address).died = at
        else:
            continue  # made before the recording began: never counted, so not subtracted
        applied.append((at, nbytes))
    trace.times = [at for at, _ in applied]
    trace.totals = list(accumulate(nbytes for _, nbytes in applied))


def _walk(roots: Iterable[Any]) -> Iterator[tuple[Any, bool]]:
    """Every event of the tree, and whether it lies inside FSDP's own calls or a collective. Iterative, because a
    backward pass can nest deeper than Python recurses."""
    stack = [(event, False) for event in roots]
    while stack:
        event, inside = stack.pop()
        inside = inside or event.name.startswith(GATHER_SPANS)
        yield event, inside
        stack.extend((child, inside) for child in event.children)
