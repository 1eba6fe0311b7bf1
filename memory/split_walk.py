"""The walk of a backward pass in two: gradients of inputs first, of weights when the schedule has time for them.

Read off torch/distributed/pipelining/_backward.py and held to allocator traces. The pass over inputs keeps the graph,
and with it all that forward kept; and the gradient of every output whose weights come later. The pass over weights
runs autograd for one operator after another, first to last: an operator's own kept tensors go with it, the others with
the graph when the last is done. What lies above the last operator with weights (the loss) goes after the first pass.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from memory.events import Phase
from memory.labels import WalkRules
from memory.liveness import parts_of
from memory.walk import Gradient, Storage, Walker
from suite.operators import Array, Kernel, Operator, Region, Segment, Weight


@dataclass(frozen=True)
class WeightPass:
    """One operator's weights: their gradients are made; what came of the first pass goes; if they were added to
    others, they go, after the next operator's are made."""

    made: Phase
    seed: Phase
    added: Phase


@dataclass(frozen=True)
class SplitWalk:
    """A segment's stretches when its backward pass is split."""

    inputs: Phase
    above: Phase  # what goes after the pass over inputs if nothing follows the segment
    weights: tuple[WeightPass, ...]
    left: Phase  # what goes with the graph


def walk_split(segment: Segment, rules: WalkRules, is_top: bool) -> SplitWalk:
    """Walk one segment of one micro-batch; `is_top`: it is the last of its stage. Forward is as in walk_segment."""
    return _SplitWalker(segment, rules).split(is_top)


class _SplitWalker(Walker):
    def __init__(self, segment: Segment, rules: WalkRules) -> None:
        super().__init__(segment, rules)
        self.seeds: dict[Kernel, list[Storage]] = {}
        self.regions: list[Storage] = []

    def split(self, is_top: bool) -> SplitWalk:
        self.run_forward()
        self._inputs(self.segment.body)
        inputs = self._cut()
        last = max((place for place, kernel in enumerate(self._kernels) if self._weights(kernel)), default=-1)
        if is_top:
            self._free(self._kernels[last + 1 :])
        above = self._cut()
        weights = tuple(self._weight_pass(kernel) for kernel in self._kernels if kernel in self.seeds)
        self._free(self._kernels)
        for storage in self.regions:
            self._release(storage)
        return SplitWalk(inputs, above, weights, self._cut())

    @cached_property
    def _kernels(self) -> list[Kernel]:
        """Those outside regions, which hold no weights."""
        return [part for part in parts_of(self.segment.body) if isinstance(part, Kernel)]

    @cached_property
    def _casts(self) -> dict[Array, Kernel]:
        """Autocast's copies of weights, and the kernels whose backward leads from them to the weights."""
        return {kernel.writes[0]: kernel for kernel in self._kernels if _casts_weight(kernel) and kernel.gradients}

    def _weights(self, kernel: Kernel) -> list[Array]:
        """Of a kernel's gradients, those of weights or of their copies."""
        if _casts_weight(kernel):
            return []
        return [array for array in kernel.gradients if isinstance(array, Weight) or array in self._casts]

    # --- gradients of inputs ----------------------------------------------------------------------------

    def _inputs(self, body: tuple[Operator | Region, ...]) -> None:
        for part in reversed(list(parts_of(body))):
            if isinstance(part, Region):
                for storage in self.saved[part]:
                    storage.references += 1
                    self.regions.append(storage)
                self._rerun(part)
            elif not _casts_weight(part):
                self._derive_inputs(part)

    def _derive_inputs(self, kernel: Kernel) -> None:
        """A kernel's backward without its weights: what it kept stays, and its output's gradient if weights wait."""
        seeds = [self.gradients.pop(array) for array in kernel.writes if array in self.gradients]
        weights = self._weights(kernel)
        made: list[tuple[Array, Gradient]] = []
        if seeds or not any(array.shape for array in kernel.writes[:1]):
            if kernel.derivative is not None:
                made += self._run_derivative(kernel, kernel.derivative)
            for array in kernel.gradients if kernel.derivative is None else ():
                if array not in weights:
                    storage = self._gradient_storage(array)
                    self.log.add(storage.nbytes, storage.naming)
                    made.append((array, Gradient(storage, kernel.through_view)))
            if not weights or kernel.name == "linear":  # a norm's workspace is for its weights
                self._scratch(kernel.name, kernel.backward_scratch)
            for array in kernel.passes:
                passed = seeds[0].storage
                passed.references += 1
                made.append((array, Gradient(passed, kernel.through_view)))
        if weights:
            self.seeds[kernel] = [gradient.storage for gradient in seeds]
        else:
            for gradient in seeds:
                self._release(gradient.storage)
        for array, gradient in made:
            self._accumulate(array, gradient)

    # --- gradients of weights ---------------------------------------------------------------------------

    def _weight_pass(self, kernel: Kernel) -> WeightPass:
        found: list[Storage] = []
        copies: list[tuple[Array, Storage]] = []
        for array in self._weights(kernel):
            storage = self._gradient_storage(array)
            self.log.add(storage.nbytes, storage.naming)
            if isinstance(array, Weight):
                found.append(storage)
            else:
                copies.append((array, storage))
        self._scratch(kernel.name, kernel.backward_scratch)
        self._free([kernel])
        for copy, narrow in reversed(copies):
            wide = self._gradient_storage(self._casts[copy].gradients[0])
            self.log.add(wide.nbytes, wide.naming)
            self._release(narrow)
            found.append(wide)
        made = self._cut()
        for storage in self.seeds[kernel]:
            self._release(storage)
        seed = self._cut()
        if self.rules.accumulate:
            for storage in found:
                self._release(storage)
        return WeightPass(made, seed, self._cut())

    def _free(self, kernels: list[Kernel]) -> None:
        """Let go of what kernels kept from forward."""
        for kernel in kernels:
            for storage in self.saved.pop(kernel, ()):
                self._release(storage)


def _casts_weight(kernel: Kernel) -> bool:
    """Does it make a copy of a weight in the compute type, cached by autocast or not?"""
    return kernel.name == "cast" and isinstance(kernel.reads[0], Weight)
