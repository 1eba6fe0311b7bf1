"""The walk: which bytes live when, as torch's reference counts and autograd engine would have it.

A forward walk allocates what kernels write and frees a tensor when its last reader has run, unless the
backward pass keeps it. A backward walk runs the kernels in reverse (the engine's order: latest first),
allocates gradients, sums what meets, and frees what was kept. The result is a log of events, from which any
level, peak and composition can be read. Pure arithmetic: nothing is run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

from memory.events import Act, Log, Phase
from memory.labels import Labels, WalkRules
from memory.liveness import contributions_of, is_tied, last_reads, modules_of, parts_of, receivers_of
from memory.storages import Gradient, Storage
from suite.operators import TO_LOCAL, Array, Derivative, Kernel, Operator, Region, Segment, Weight


@dataclass(frozen=True)
class SegmentWalk:
    """A segment's three stretches: forward, the end of autocast (its cached copies go), backward."""

    forward: Phase
    uncache: Phase
    backward: Phase
    #: tied weights and lent arrays whose gradient stays alive for an earlier segment -> did it come through a view?
    waiting: Mapping[str, bool]


def walk_segment(segment: Segment, rules: WalkRules) -> SegmentWalk:
    """Walk one segment of one micro-batch. Its input is alive at the start, its output at the end of forward;
    its output's gradient is alive at the start of backward, its input's at the end."""
    return Walker(segment, rules).run()


class Walker:
    """Walks one segment once; its log is cut into stretches."""

    def __init__(self, segment: Segment, rules: WalkRules) -> None:
        self.segment = segment
        self.rules = rules
        self.log = Log()
        self.storages: dict[Array, Storage] = {}
        self.saved: dict[Kernel | Region, list[Storage]] = {}
        self.gradients: dict[Array, Gradient] = {}
        self.unwrapped: list[tuple[Array, Gradient]] = []
        self.cache: dict[Array, Storage] = {}
        self.kept: dict[Array, Storage] = {}  # outputs that selective checkpointing's cache holds for reruns
        self.pending = contributions_of(segment.body)
        self.gives = receivers_of(segment.body) & set(segment.borrows)
        self.labels = Labels(segment, rules)
        self.modules = modules_of(segment)
        self.waiting: list[tuple[Act, tuple[Weight, ...]]] = []  # told once a kernel's derivative has let go
        self.trains = True  # does a backward pass follow?
        self.rerun_by: Kernel | None = None  # its module is in its backward pass while its forward is run again

    def run(self) -> SegmentWalk:
        """The three stretches."""
        forward, uncache = self.run_forward()
        self._take_back_output()
        self._backward(self.segment.body)
        waiting = {str(array.tied_to): left.is_view for array, left in self.gradients.items() if is_tied(array)}
        waiting |= {array.name: left.is_view for array, left in self.gradients.items() if array in self.segment.opens}
        return SegmentWalk(forward, uncache, self._cut(), waiting)

    def run_forward(self, keeps: bool = True) -> tuple[Phase, Phase]:
        """The forward pass and the end of autocast; then the gradients that backward starts from are there. Where
        nothing is kept, as in inference, no backward pass can follow."""
        self.trains = keeps
        for array in self.segment.inputs + self.segment.batch:
            naming = partial(self.labels.of_border, array)
            self.storages[array] = Storage(naming, array.nbytes, 1 + self.rules.keeps_input)
        output, lent = self.segment.output, self.segment.borrows + self.segment.makes
        for array in self.segment.borrows:
            self.storages[array] = Storage(partial(self.labels.of_lent, array), array.nbytes)
        outputs = (output,) if output is not None else ()
        held = self.segment.inputs + self.segment.batch + outputs
        self._forward(self.segment.body, keeps, held + tuple(set(lent) - self.segment.closes))
        for array in (*self.segment.inputs, *self.segment.closes):
            self._release_name(array)
        forward = self._cut()
        for storage in self.cache.values():
            self._release(storage)
        uncache = self._cut()
        if output is not None:
            self.gradients[output] = Gradient(self._gradient_storage(output), False)
            self.gradients[output].storage.references += self.rules.keeps_seed
        given = self.gives - self.segment.opens
        for array in (item for item in lent if item in given or item in self.segment.awaits):
            is_view = self.rules.awaiting.get(array.name, False)
            self.gradients[array] = Gradient(self._gradient_storage(array), is_view)
        for weight in self.segment.weights:
            if weight.name in self.rules.awaiting:
                is_view = self.rules.awaiting[weight.name]
                is_last = not is_view and not weight.is_part
                self.gradients[weight] = Gradient(self._gradient_storage(weight, is_last), is_view)
        return forward, uncache

    def _take_back_output(self) -> None:
        """The next segment's backward pass has let go of the output; what this one's kernels keep of it lives on."""
        output = self.segment.output
        if output is not None and self.storages[output].references > 1:
            self.storages[output].references -= 1
            self.log.add(output.nbytes, self.storages[output].naming)

    # --- forward ----------------------------------------------------------------------------------------

    def _forward(self, body: tuple[Operator | Region, ...], keeps: bool, held: tuple[Array, ...]) -> None:
        """Run `body`; inside a region to be rerun it keeps nothing. The caller holds `held`."""
        parts = list(parts_of(body))
        last = last_reads(parts)
        for index, part in enumerate(parts):
            if isinstance(part, Region):
                self._forward(part.body, False, (*part.inputs, *part.outputs, *part.kept))
                self.kept |= {array: self.storages.pop(array) for array in part.kept}
                self.saved[part] = [self._retain(array) for array in part.inputs]
            else:
                self._run(part, keeps)
            for array in last.get(index, ()):
                if array not in held:
                    self._release_name(array)

    def _run(self, kernel: Kernel, keeps: bool, recomputed: bool = False) -> None:
        if kernel is not self.rerun_by:
            self.log.note(Act.NEEDED, self.modules.first.get(kernel, ()))
        is_found = any(array in self.kept for array in kernel.writes)
        for array in kernel.writes:
            if is_found:
                self.storages[array] = self.kept.pop(array)
            elif kernel.is_view:
                self.storages[array] = self._retain(kernel.reads[0])
            elif kernel.is_weight_cast:
                if array not in self.storages:  # else a later reader's of the same copy
                    self.storages[array] = self._cast_weight(kernel, array, recomputed)
            else:
                self.storages[array] = self._allocate(array, recomputed)
        self._scratch(kernel.name, kernel.prepared_scratch if is_found else kernel.forward_scratch)
        held = kernel.holds if self.trains and not recomputed else ()
        if keeps or held:
            kept = (*held, *(kernel.saves if keeps else ()))
            before = self.saved.get(kernel, []) if recomputed else []
            self.saved[kernel] = before + [self._retain(array) for array in kept if array in self.storages]
        if kernel is not self.rerun_by:
            self.log.note(Act.RERUN if recomputed else Act.LEFT, self.modules.last.get(kernel, ()))

    def _allocate(self, array: Array, recomputed: bool) -> Storage:
        naming = partial(self.labels.of_recomputed if recomputed else self.labels.of_made, array)
        self.log.add(array.nbytes, naming)
        return Storage(naming, array.nbytes)

    def _cast_weight(self, kernel: Kernel, copy: Array, recomputed: bool) -> Storage:
        """Autocast casts a weight once and holds the copy until it ends."""
        weight = kernel.reads[0]
        if weight not in self.cache:
            self.cache[weight] = self._allocate(copy, recomputed)
        storage = self.cache[weight]
        storage.references += 1
        return storage

    # --- backward ---------------------------------------------------------------------------------------

    def _backward(self, body: tuple[Operator | Region, ...]) -> None:
        for part in reversed(list(parts_of(body))):
            if isinstance(part, Region):
                self._rerun(part)
            else:
                self._derive(part)
            self._tell()

    def _rerun(self, region: Region) -> None:
        """Run a region again from its inputs, keeping what its backward reads; it stops at the last such tensor.

        The first derivative that reads a kept tensor sets it off: those behind it, which read none, come before.
        """
        kernels = [kernel for kernel in parts_of(region.body) if isinstance(kernel, Kernel)]
        ends = max((index for index, kernel in enumerate(kernels) if kernel.saves), default=-1)
        for kernel in reversed(kernels[ends + 1 :]):
            self._derive(kernel)
        self.rerun_by = kernels[ends]
        self.log.note(Act.NEEDED, self.modules.last.get(kernels[ends], ()))
        self._recompute(region, kernels, ends)
        starts = next((index for index, kernel in enumerate(kernels) if kernel.saves), 0)
        for index in range(ends, -1, -1):
            self._derive(kernels[index])
            if index == starts:  # the last derivative that reads what was run again lets go of its inputs
                for storage in self.saved.pop(region):
                    self._release(storage)
                for array in region.kept:
                    if array in self.kept:  # the rerun stopped short of it
                        self._release(self.kept.pop(array))
        for storage in self.saved.pop(region, ()):
            self._release(storage)

    def _recompute(self, region: Region, kernels: list[Kernel], ends: int) -> None:
        """Run kernels forward up to `ends`, which is not run if all it would keep is there. Frames that would have
        returned later hold their tensors to the end."""
        outer, self.cache = self.cache, {}
        inputs = dict(zip(region.inputs, self.saved[region], strict=True))
        for array, storage in inputs.items():
            storage.references += 1
            self.storages[array] = storage
        last = last_reads(list(kernels))
        made: list[Array] = []
        for index, kernel in enumerate(kernels[: ends + 1]):
            is_there = all(array in inputs or array in made for array in kernel.saves)
            if index == ends and is_there and not kernel.saves_last:
                self.saved[kernel] = [self._retain(array) for array in kernel.saves]
                break
            made += kernel.writes
            self._run(kernel, True, recomputed=True)
            for array in last.get(index, ()):
                if array not in region.inputs and array in made:
                    self._release_name(array)
        for array in (*made, *inputs):
            self._release_name(array)
        for storage in self.cache.values():
            self._release(storage)
        self.cache = outer

    def _derive(self, kernel: Kernel) -> None:
        """A kernel's backward: gradients beside scratch, then what it kept and its output's gradient go."""
        if kernel.is_weight_cast and not kernel.gradients:
            return  # found in autocast's cache: the first cast's backward serves all readers
        self._tell()
        if kernel is not self.rerun_by:
            self.log.note(Act.NEEDED, self.modules.last.get(kernel, ()))
        seeds = [self.gradients.pop(array) for array in kernel.writes if array in self.gradients]
        made: list[tuple[Array, Gradient]] = []
        if seeds or not any(array.shape for array in kernel.writes[:1]):
            if kernel.derivative is not None:
                made += self._run_derivative(kernel, kernel.derivative)
            for array in kernel.gradients if kernel.derivative is None else ():
                storage = self._gradient_storage(array, self._is_last(array, kernel))
                self.log.add(storage.nbytes, storage.naming)
                made.append((array, Gradient(storage, kernel.through_view)))
            self._scratch(kernel.name, kernel.backward_scratch)
            for array in kernel.passes:
                seed = seeds[0].storage
                seed.references += 1
                made.append((array, Gradient(seed, kernel.through_view)))
        for storage in self.saved.pop(kernel, ()):
            self._release(storage)
        for gradient in seeds:
            self._release(gradient.storage)
        if kernel.name == TO_LOCAL:
            made, self.unwrapped = self.unwrapped, []
        for array, gradient in made:
            if kernel.name != TO_LOCAL and isinstance(array, Weight) and array.is_part:
                self.unwrapped.append((array, gradient))
            else:
                self._accumulate(array, gradient)
        if any(not isinstance(array, Weight) for array in (*kernel.gradients, *kernel.passes)):
            self.waiting.append((Act.LEFT, self.modules.first.get(kernel, ())))  # the input's gradient tells it

    def _run_derivative(self, kernel: Kernel, derivative: Derivative) -> list[tuple[Array, Gradient]]:
        """A custom function's backward: its kernels, what they make dying with its last reader, gradients excepted."""
        last = last_reads(list(derivative.kernels))
        for index, step in enumerate(derivative.kernels):
            self._run(step, False)
            for array in last.get(index, ()):
                if array not in derivative.gradients:
                    self._release_name(array)
        found = zip(kernel.gradients, derivative.gradients, strict=True)
        return [(array, Gradient(self.storages.pop(made), kernel.through_view)) for array, made in found]

    def _accumulate(self, array: Array, new: Gradient) -> None:
        """torch's InputBuffer: in place where the first holds its storage alone and is no view, nor a DTensor's, else a
        new sum."""
        old = self.gradients.get(array)
        is_part = isinstance(array, Weight) and array.is_part
        if old is None:
            self.gradients[array] = new
        elif old.storage.references == 1 and not old.is_view and not is_part:
            self._release(new.storage)
        else:
            total = self._gradient_storage(array, not is_part or self._is_only(array))
            self.log.add(total.nbytes, total.naming)
            self._release(old.storage)
            self._release(new.storage)
            self.gradients[array] = Gradient(total, False)
        if isinstance(array, Weight):
            self._arrive(array)

    def _arrive(self, weight: Weight) -> None:
        """AccumulateGrad runs once every contribution is there: the gradient is taken over, or added and freed."""
        self.pending[weight] -= 1
        if self.pending[weight] or self.rules.waits(weight):
            return
        gradient = self.gradients.pop(weight)
        if self.rules.adds(weight):
            self._release(gradient.storage)
        self.waiting.append((Act.REDUCIBLE, (weight,)))

    def _tell(self) -> None:
        """Gradients reach their weights, and modules their end, when what the derivative held is freed."""
        for act, weights in self.waiting:
            self.log.note(act, weights)
        self.waiting.clear()

    # --- bookkeeping ------------------------------------------------------------------------------------

    def _is_last(self, array: Array, kernel: Kernel) -> bool:
        """Will a weight's new gradient become its .grad? Not if it is added to another, or replaced by their sum."""
        if not isinstance(array, Weight) or array in self.gradients:
            return False
        return not (kernel.through_view or array.is_part) or self._is_only(array)

    def _is_only(self, weight: Array) -> bool:
        """Is a weight's next gradient the last one?"""
        return self.pending[weight] == 1 and isinstance(weight, Weight) and not self.rules.waits(weight)

    def _gradient_storage(self, array: Array, is_last: bool = True) -> Storage:
        if isinstance(array, Weight):
            return Storage(partial(self.labels.of_weights, array, is_last), array.nbytes)
        return Storage(partial(self.labels.of_gradient, array), array.nbytes)

    def _scratch(self, name: str, nbytes: int) -> None:
        if nbytes:
            naming = partial(self.labels.of_workspace, name, nbytes)
            self.log.add(nbytes, naming)
            self.log.add(-nbytes, naming)

    def _retain(self, array: Array) -> Storage:
        storage = self.storages[array]
        storage.references += 1
        return storage

    def _release_name(self, array: Array) -> None:
        storage = self.storages.pop(array, None)
        if storage is not None:
            self._release(storage)

    def _release(self, storage: Storage) -> None:
        storage.references -= 1
        if storage.references == 0:
            self.log.add(-storage.nbytes, storage.naming)

    def _cut(self) -> Phase:
        phase, self.log = self.log.freeze(), Log()
        return phase
