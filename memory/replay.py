"""Memory as torch's caching allocator reserves it: the walk's events, replayed through a simulation of it.

The model's state is allocated tensor by tensor, then two steps run: the first makes the optimizer's state, the second
finds it there. A free is paired with the allocation that it undoes by what it is called and by its size, the latest
first: where several tensors of one name and size are alive they are alike to the walk, and which of them goes is not
told; it matters to fragmentation alone.

FSDP2 gathers and reduces on streams of its own (torch/distributed/fsdp/_fully_shard/_fsdp_collectives.py): what it
allocates there cannot serve the others. The model is taken to be made in shards (on the meta device or in host memory),
not whole on the device.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from enum import IntEnum

from memory.allocator import (
    SMALL_REQUEST,
    Allocator,
    Block,
    CachingAllocator,
    DeviceFull,
    SegregatedAllocator,
)
from memory.allocator_settings import UNLIMITED, AllocatorSettings
from memory.estimate import MemoryModel
from memory.events import Label
from memory.gathers import SOURCE as FSDP2
from memory.holding import Holding
from memory.optimizer import optimizer_transient
from memory.pipeline_buffers import BUFFER
from memory.step import StepWalk, Stretch
from memory.tensors import tensor_sizes
from memory.units import shards_of, unit_of
from suite.formats import formats_of
from suite.layout import Layout, Schedule
from suite.operators import Ledger, Weight
from suite.record import Component

#: the first makes the optimizer's state
STEPS = 2

#: name of what is alive -> its tensors, latest last: (bytes as the walk counts them, their blocks)
Alive = list[tuple[int, tuple[Block, ...]]]
Name = tuple[Component, str]
BUFFERS: Name = (BUFFER.component, BUFFER.name)


class Stream(IntEnum):
    """A CUDA stream that tensors are allocated on."""

    MAIN = 0
    GATHER = 1  # FSDP2's all_gather_copy_in_stream
    REDUCE = 2  # FSDP2's reduce_scatter_stream


ON_GATHER = {"shard to be gathered", "gather output"}
ON_REDUCE = {
    "partly reduced gradients",
    "reduced gradients, before they are cast or added",
    "reduced gradients, added to the old",
    "gradients",
}


def stream_of(label: Label) -> Stream:
    """The stream that a tensor of this label is allocated on. Not counted: HSDP's cast, on a fourth stream."""
    if label.source != FSDP2:
        return Stream.MAIN
    return Stream.GATHER if label.name in ON_GATHER else Stream.REDUCE if label.name in ON_REDUCE else Stream.MAIN


@dataclass(frozen=True)
class Replay:
    """What the allocator came to."""

    reserved_bytes: int  # torch's max_memory_reserved
    allocated_bytes: int  # torch's max_memory_allocated: blocks as they were cut
    retries: int  # times that the device was full and the cache was emptied
    is_full: bool  # did even that not help? Then torch raises its OutOfMemoryError
    unpaired: int  # frees for which nothing alive was found


def replay(
    model: MemoryModel,
    rank: int,
    settings: AllocatorSettings | None = None,
    limit: int = UNLIMITED,
    workspaces: Sequence[int] = (),
) -> Replay:
    """Replay a rank's first two steps on a device that has `limit` bytes for the allocator. `workspaces`: what kernel
    libraries allocate once, and keep."""
    allocator = CachingAllocator(settings, limit)
    run = _Run(allocator, _groups(model, rank))
    is_full = False
    try:
        _steps(model, rank, run, workspaces)
    except DeviceFull:
        is_full = True
    return Replay(allocator.peak_reserved, allocator.peak_allocated, allocator.retries, is_full, run.unpaired)


def segregated_bytes(model: MemoryModel, rank: int, workspaces: Sequence[int] = ()) -> int:
    """What the same two steps reserve if no block ever serves a request of another size, nor of another stream.

    A bound of fragmentation: for each size, as many blocks as were ever alive at once. Any order of equal requests, any
    pairing of frees and any placing of segments gives the same. Not a theorem: best fit may cut a block that its own
    size will want again, and then reserves more; how often it does, the replay shows.
    """
    allocator = SegregatedAllocator()
    _steps(model, rank, _Run(allocator, _groups(model, rank)), workspaces)
    return allocator.reserved


def _steps(model: MemoryModel, rank: int, run: _Run, workspaces: Sequence[int]) -> None:
    """The model's state, and the steps."""
    case, ledger, held = model.case, model.ledger_of_rank(rank), model.held(rank)
    walk, transient = _steady_walk(model, rank), optimizer_transient(case, ledger, rank)

    def make(items: Iterable[Holding]) -> None:
        for item in items:
            run.make((item.component, item.name), tensor_sizes(case, ledger, item))

    make(item for item in held if not item.is_lazy)
    run.make((Component.TRANSIENTS, "library workspaces"), workspaces)
    make(item for item in held if item.is_lazy and item.component is not Component.OPTIMIZER)
    for step in range(STEPS):
        run.stretches(walk)
        if step == 0:
            make(item for item in held if item.is_lazy and item.component is Component.OPTIMIZER)
        if transient is not None:
            run.pass_by(transient.nbytes)
        run.end_step()


def _steady_walk(model: MemoryModel, rank: int) -> StepWalk:
    """The walk over a step; of 1F1B with two micro-batches a rank at most: the others repeat them."""
    case = model.case
    enough = 2 * case.layout.pp
    if case.layout.pp == 1 or case.layout.schedule is not Schedule.ONE_F_ONE_B or case.workload.micro_batches <= enough:
        return model.step(rank)
    return MemoryModel(replace(case, workload=replace(case.workload, micro_batches=enough))).step(rank)


def _groups(model: MemoryModel, rank: int) -> dict[int, tuple[int, ...]]:
    """Bytes that FSDP2 makes or frees at once -> of each tensor in them: a unit's gathered parameters, what they are
    resharded to, and its whole gradients but the last one, which goes later."""
    layout = model.case.layout
    if layout.fsdp == 1:
        return {}
    to = 1 if isinstance(layout.reshard_after_forward, bool) else layout.reshard_after_forward
    formats = formats_of(model.case)
    element = formats.numerics.weights.nbytes
    found: dict[int, tuple[int, ...]] = {}
    for weights in _units(model.ledger_of_rank(rank), layout):
        parameters = unit_of(weights, *shards_of(layout)).parameters
        parts = [
            *(tuple(element * item.flat // share for item in parameters) for share in {1, to}),
            *(tuple(size * item.elements for item in parameters[:-1]) for size in (element, formats.reduced.nbytes)),
        ]
        found |= {sum(part): part for part in parts}
    return found


def _units(ledger: Ledger, layout: Layout) -> Iterator[Sequence[Weight]]:
    """Parameters that are gathered together: a block's, under expert parallelism its experts' and the others by
    themselves, and the rest's."""
    for segment in {placed.segment for placed in ledger.segments if placed.prefix}:
        yield segment.weights
        for is_expert in (True, False) if layout.ep > 1 else ():
            if group := [weight for weight in segment.weights if weight.is_expert is is_expert]:
                yield group
    yield [weight for placed in ledger.segments if not placed.prefix for weight in placed.segment.weights]


@dataclass
class _Run:
    """A replay under way."""

    allocator: Allocator
    groups: dict[int, tuple[int, ...]]
    alive: dict[Name, Alive] = field(default_factory=dict)
    unpaired: int = 0
    slots: Sequence[int] = ()  # a pipeline's buffers
    held: set[Name] = field(default_factory=set)
    compiled: dict[int, list[tuple[int, Name, Alive, Stream]]] = field(default_factory=dict)

    def make(self, name: Name, sizes: Sequence[int]) -> None:
        """Allocate tensors that outlive the step."""
        self.held.add(name)
        if name == BUFFERS:
            self.slots = sizes
        alive = self.alive.setdefault(name, [])
        alive += [(size, (self.allocator.allocate(size),)) for size in sizes if size]

    def pass_by(self, nbytes: int) -> None:
        """A tensor that comes and goes."""
        self.allocator.free(self.allocator.allocate(nbytes))

    def stretches(self, walk: StepWalk) -> None:
        """Every event of a step."""
        allocate, free = self.allocator.allocate, self.allocator.free
        for stretch in walk.stretches:
            for nbytes, name, alive, stream in self._compile(stretch):
                if nbytes > 0:
                    parts = self.groups.get(nbytes) if name[1] == "gathered parameters" else None
                    sizes = (nbytes,) if parts is None else parts
                    alive.append((nbytes, tuple([allocate(size, stream) for size in sizes])))
                    continue
                is_latest = alive and alive[-1][0] == -nbytes
                for block in alive.pop()[1] if is_latest else self._find(alive, -nbytes):
                    free(block)

    def end_step(self) -> None:
        """Gradients go, and what else the step has left; a pipeline's tensors that took a buffer's place stay in it."""
        buffers = self.alive.get(BUFFERS, [])
        for name, alive in self.alive.items():
            if name in self.held:
                continue
            for nbytes, blocks in alive:
                if len(buffers) < len(self.slots) and nbytes == self.slots[0] and name[0] is not Component.GRADIENTS:
                    buffers.append((nbytes, blocks))
                    continue
                for block in blocks:
                    self.allocator.free(block)
            alive.clear()

    def _compile(self, stretch: Stretch) -> list[tuple[int, Name, Alive, Stream]]:
        """A stretch's events with what they come to; phases that repeat are the same object."""
        found = self.compiled.get(id(stretch.phase))
        if found is None:
            found = self.compiled[id(stretch.phase)] = []
            for event in (event for event in stretch.phase.events if event.nbytes):
                name = event.label.component, event.label.name
                found.append((event.nbytes, name, self.alive.setdefault(name, []), stream_of(event.label)))
        return found

    def _find(self, alive: Alive, nbytes: int) -> tuple[Block, ...]:
        """The blocks that a free of so many bytes is about: the latest tensor of that size, a parameter of a unit that
        was gathered, a unit's gradients, or a tensor of that size under another name."""
        is_unit = nbytes in self.groups
        found = _latest(alive, nbytes) or (is_unit and _together(alive, nbytes)) or _part_of(alive, nbytes)
        if not found and is_unit:
            found = tuple(block for size in self.groups[nbytes] for block in _latest(alive, size))
        return found or _together(alive, nbytes) or self._elsewhere(nbytes)

    def _elsewhere(self, nbytes: int) -> tuple[Block, ...]:
        for name, alive in self.alive.items():
            if name not in self.held:
                for place, (size, blocks) in enumerate(alive):
                    if size == nbytes:
                        del alive[place]
                        return blocks
        self.unpaired += 1
        return ()


def _latest(alive: Alive, nbytes: int) -> tuple[Block, ...]:
    """The latest tensor of that size."""
    for place in range(len(alive) - 1, -1, -1):
        if alive[place][0] == nbytes:
            return alive.pop(place)[1]
    return ()


def _together(alive: Alive, nbytes: int) -> tuple[Block, ...]:
    """The latest tensors that were made one after the other and go at once: a block's groups of parameters."""
    for end in range(len(alive), 0, -1):
        total = 0
        for start in range(end - 1, -1, -1):
            total += alive[start][0]
            if total == nbytes:
                found = tuple(block for _, blocks in alive[start:end] for block in blocks)
                del alive[start:end]
                return found
            if total > nbytes:
                break
    return ()


def _part_of(alive: Alive, nbytes: int) -> tuple[Block, ...]:
    """One of the tensors that were made together."""
    for place in range(len(alive) - 1, -1, -1):
        size, blocks = alive[place]
        for block in blocks if len(blocks) > 1 else ():
            if 0 <= block.size - nbytes <= SMALL_REQUEST:
                alive[place] = size - nbytes, tuple(other for other in blocks if other is not block)
                return (block,)
    return ()
