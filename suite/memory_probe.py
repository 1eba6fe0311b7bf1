"""Measures a training step's memory at its named moments, by component, in a pass of its own.

On the CPU every block that is alive at a moment is told apart by what it is (parameters, buffers, gradients,
optimizer state, inputs: by address) or by when it was born and how long it lived (kept from forward, kept
from the loss, transient). The components of a moment sum to the allocator's total by construction. CUDA has
a probe of its own (suite/cuda_probe.py).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise

import torch
from torch import Tensor, nn

from suite.allocations import AllocationTrace, Block, Mark
from suite.record import Component, Moment, Quantity, Sample

#: marks of a step, in order; a phase runs from its mark to the next
SETUP, FORWARD, LOSS, BACKWARD, OPTIMIZER, IDLE = "setup", "forward", "loss", "backward", "optimizer", "idle"

PEAKS = {
    Moment.FORWARD_PEAK: FORWARD,
    Moment.LOSS: LOSS,
    Moment.BACKWARD_PEAK: BACKWARD,
    Moment.OPTIMIZER_PEAK: OPTIMIZER,
}
#: the mark at whose instant a level is read, in the measured step (its last micro-batch)
LEVELS = {Moment.AFTER_FORWARD: LOSS, Moment.AFTER_BACKWARD: OPTIMIZER, Moment.STEADY: IDLE}


def local_tensor(tensor: Tensor) -> Tensor:
    """A DTensor's part on this rank; any other tensor as it is."""
    local = getattr(tensor, "_local_tensor", None)
    return tensor if local is None else local


def state_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[Component, list[Tensor]]:
    """What a rank keeps, by component, as it is now."""
    parameters: list[Tensor] = list(model.parameters())
    return {
        Component.PARAMETERS: parameters,
        Component.BUFFERS: list(model.buffers()),
        Component.GRADIENTS: [item.grad for item in parameters if item.grad is not None],
        Component.OPTIMIZER: list(optimizer_tensors(optimizer)),
    }


def storage_address(tensor: Tensor) -> int:
    """The address of the block that holds a tensor's elements."""
    return local_tensor(tensor).untyped_storage().data_ptr()


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> Iterator[Tensor]:
    """Every tensor of an optimizer's state."""
    for state in optimizer.state.values():
        yield from (value for value in state.values() if isinstance(value, Tensor))


@dataclass
class Sightings:
    """Which addresses held what at the latest mark of a name. Addresses are reused, so both are needed."""

    seen: dict[tuple[str, Component], frozenset[int]] = field(default_factory=dict)
    address: Callable[[Tensor], int] = storage_address

    def see(self, mark_name: str, component: Component, tensors: Iterable[Tensor]) -> None:
        """Say that at the latest mark of that name these tensors are of this component."""
        self.seen[mark_name, component] = frozenset(self.address(tensor) for tensor in tensors)

    def states(self, mark_name: str, held: Mapping[Component, Iterable[Tensor]]) -> None:
        """Parameters, buffers, gradients and optimizer state as they are now."""
        for component, tensors in held.items():
            self.see(mark_name, component, tensors)


def cpu_samples(trace: AllocationTrace, sightings: Sightings, rank: int) -> list[Sample]:
    """MEMORY samples of the last step in `trace`: a total and its components at every moment."""
    step = _last_step(trace.marks)
    ages = _Ages(trace, step, sightings)
    instants = {Moment.INIT: next(item.at for item in trace.marks if item.name == FORWARD)}
    for moment, phase in PEAKS.items():
        spans = [(start.at, end.at) for start, end in pairwise(step) if start.name == phase]
        instants[moment] = max((trace.peak(*span) for span in spans), key=lambda found: found[0])[1]
    for moment, name in LEVELS.items():
        instants[moment] = [item.at for item in step if item.name == name][-1]
    samples = []
    for moment in Moment:
        at = instants[moment]
        samples.append(Sample(Quantity.MEMORY, trace.total(at), rank, moment=moment))
        for component, nbytes in sorted(ages.components(at).items()):
            samples.append(Sample(Quantity.MEMORY, nbytes, rank, component=component, moment=moment))
    return samples


def _last_step(marks: list[Mark]) -> list[Mark]:
    """The marks of the last step: from the first `forward` after the last but one `idle` to the last `idle`."""
    idles = [index for index, item in enumerate(marks) if item.name == IDLE]
    return marks[idles[-2] + 1 : idles[-1] + 1]


class _Ages:
    """Tells blocks apart: by address where they were seen, else by birth and death."""

    def __init__(self, trace: AllocationTrace, step: list[Mark], sightings: Sightings) -> None:
        self.trace = trace
        self.step = step
        self.known: dict[int, Component] = {}
        latest = {item.name: item.at for item in trace.marks}
        for (mark_name, component), addresses in sightings.seen.items():
            for block in trace.alive(latest[mark_name]):
                if block.address in addresses:
                    self.known.setdefault(id(block), component)

    def components(self, at: int) -> dict[Component, int]:
        """Bytes by component at an instant."""
        sums: dict[Component, int] = defaultdict(int)
        for block in self.trace.alive(at):
            sums[self.component(block)] += block.nbytes
        return sums

    def component(self, block: Block) -> Component:
        """What a block is for."""
        if id(block) in self.known:
            return self.known[id(block)]
        if block.is_gather:
            return Component.GATHERED
        if block.born < self.step[0].at:
            return Component.COMMUNICATION
        phase, end = self._phase(block.born)
        if phase in (FORWARD, LOSS) and block.is_alive(end):
            return Component.ACTIVATIONS if phase == FORWARD else Component.LOSS
        return Component.TRANSIENTS

    def _phase(self, at: int) -> tuple[str, int]:
        """The phase that an instant lies in, and its end."""
        for start, end in pairwise(self.step):
            if start.at <= at < end.at:
                return start.name, end.at
        return IDLE, self.step[-1].at
