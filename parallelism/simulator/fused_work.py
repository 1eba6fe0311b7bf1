"""What a compiled segment does: runs of kernels between products are one kernel each, which reads its inputs and writes
its outputs (torch.compile's fusion of pointwise operations and reductions)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from parallelism.simulator.work import (
    COLLECTIVES,
    SILENT,
    Moved,
    SegmentWork,
    Work,
    backward_work,
    forward_work,
    is_arithmetic,
    parts_of,
    regions_of,
    rerun_parts,
)
from suite.operators import Array, Kernel, Operator, Segment, Weight

Part = tuple[Operator, Kernel]


def compiled_work(segment: Segment) -> SegmentWork:
    """A segment whose kernels are fused wherever no product, attention or collective comes between.

    Counted: each run's outside inputs once, what of it is read elsewhere once; backward, the gradients that reach it,
    what its derivatives need (its inputs, where that was made inside), the gradients that leave it. Not counted:
    what a compiler saves instead of making it again, tiles that are read twice, runs across segments.
    """
    parts = list(parts_of(segment.body))
    scene = _Scene(parts, segment.output)
    forward = [work for item in _runs(parts) for work in _forward(item, scene)]
    inputs: list[Work] = []
    weights: list[Work] = []
    for item in reversed(_runs(parts)):
        if isinstance(item, _Run):
            inputs += _moved(item.backward_bytes(scene))
        else:
            own, matrices = backward_work(*item)
            inputs += own
            weights += matrices
    again: list[Work] = []
    for region in regions_of(segment.body):
        again += [work for item in _runs(rerun_parts(region)) for work in _forward(item, scene)]
    return SegmentWork(tuple(forward), tuple(inputs), tuple(weights), tuple(again))


def _forward(item: _Run | Part, scene: _Scene) -> list[Work]:
    return _moved(item.forward_bytes(scene)) if isinstance(item, _Run) else list(forward_work(*item))


def _moved(nbytes: int) -> list[Work]:
    return [Moved(nbytes)] if nbytes else []


def _breaks(kernel: Kernel) -> bool:
    """Does a run end here? The compiler fuses no products, no attention and no communication."""
    return is_arithmetic(kernel) or kernel.name in COLLECTIVES or kernel.derivative is not None or _is_on_link(kernel)


def _is_on_link(kernel: Kernel) -> bool:
    return kernel.name == "all_to_all" or (kernel.is_view and kernel.name in ("sum", "sum_backward"))


def _runs(parts: Iterable[Part]) -> list[_Run | Part]:
    """Runs, and what comes between them, in order. A product ends what it depends on; the rest stays open, so that an
    activation joins the product that it gates."""
    found: list[_Run | Part] = []
    kernels: list[Kernel] = []
    for operator, kernel in parts:
        if not _breaks(kernel):
            if kernel.name not in SILENT:
                kernels.append(kernel)
            continue
        before = _behind(kernel, kernels)
        if before:
            found.append(_Run(tuple(before)))
            kernels = [item for item in kernels if item not in before]
        found.append((operator, kernel))
    return [*found, _Run(tuple(kernels))] if kernels else found


def _behind(kernel: Kernel, kernels: Sequence[Kernel]) -> list[Kernel]:
    """Those of the kernels that it depends on; all of them where it does not say what it reads."""
    if not kernel.reads:
        return list(kernels)
    wanted = set(kernel.reads)
    found = []
    for item in reversed(kernels):
        if wanted & set(item.writes):
            wanted |= set(item.reads)
            found.append(item)
    return found[::-1]


class _Scene:
    """Who reads an array of the segment, and who makes gradients of it."""

    def __init__(self, parts: Sequence[Part], output: Array | None) -> None:
        self.aliases: dict[Array, Array] = {}
        self.readers: dict[Array, set[Kernel]] = {}
        self.makers: dict[Array, list[Kernel]] = {}
        self.output = output
        for _, kernel in parts:
            if kernel.is_view and kernel.reads:
                self.aliases.update(dict.fromkeys(kernel.writes, self.root(kernel.reads[0])))
            if kernel.name in SILENT:
                continue
            for array in kernel.reads:
                self.readers.setdefault(self.root(array), set()).add(kernel)
            for array in (*kernel.gradients, *kernel.passes):
                self.makers.setdefault(self.root(array), []).append(kernel)

    def root(self, array: Array) -> Array:
        """The tensor that a view is of."""
        return self.aliases.get(array, array)


@dataclass(frozen=True, eq=False)
class _Run:
    """Kernels that are one kernel."""

    kernels: tuple[Kernel, ...]

    @cached_property
    def members(self) -> frozenset[Kernel]:
        return frozenset(self.kernels)

    def made(self, scene: _Scene) -> dict[Array, None]:
        """What its kernels write, views left out."""
        return dict.fromkeys(array for item in self.kernels if not item.is_view for array in item.writes if array.shape)

    def outside(self, scene: _Scene) -> dict[Array, None]:
        """What it reads of others."""
        made = self.made(scene)
        reads = (scene.root(array) for item in self.kernels for array in item.reads)
        return dict.fromkeys(array for array in reads if array not in made)

    def leaves(self, scene: _Scene) -> dict[Array, None]:
        """What of it others read."""
        return dict.fromkeys(
            array
            for array in self.made(scene)
            if array is scene.output or scene.readers.get(array, set()) - self.members
        )

    def forward_bytes(self, scene: _Scene) -> int:
        if any(item.name == "embedding" for item in self.kernels):
            return 2 * _bytes(self.leaves(scene))
        made = self.made(scene)
        return _bytes(self.outside(scene)) + _bytes(self.leaves(scene)) if made else 0

    def backward_bytes(self, scene: _Scene) -> int:
        """Gradients in, what derivatives need, gradients out. An input that a sum alone passes its gradient to shares
        that gradient; one that others make gradients of too is summed by the run that reads it first."""
        outside, leaves = self.outside(scene), self.leaves(scene)
        tables = [item for item in self.kernels if item.name == "embedding"]
        if tables:
            return sum(_bytes(item.gradients) + 3 * _bytes(item.writes) for item in tables)
        arriving = sum(array.nbytes * self._arrivals(array, scene) for array in leaves)
        kept = {scene.root(array) for item in self.kernels for array in item.saves if item.gradients}
        needed = {array for array in kept if array in outside or array in leaves}
        if kept - needed:
            needed |= set(outside)
        written = self._written(scene, outside, leaves)
        return arriving + _bytes(needed) + written if written else 0

    def _arrivals(self, array: Array, scene: _Scene) -> int:
        others = sum(maker not in self.members for maker in scene.makers.get(array, ()))
        return others + (array is scene.output)

    def _written(self, scene: _Scene, outside: Iterable[Array], leaves: Iterable[Array]) -> int:
        """Bytes of the gradients that leave the run, and of those that it adds them to."""
        left = set(leaves)
        own = Counter(scene.root(array) for item in self.kernels for array in (*item.gradients, *item.passes))
        classes: dict[Array, int] = {}
        added = 0
        for array in outside:
            if not own[array]:
                continue
            others = sum(maker not in self.members for maker in scene.makers[array])
            if others and not isinstance(array, Weight) and self._is_first(array, scene):
                added += others * array.nbytes
            source = self._passed_from(array, scene)
            if source is None:
                classes[array] = array.nbytes
            elif own[source] or source not in left or self._arrivals(source, scene) > 1:
                classes[source] = array.nbytes
        return sum(classes.values()) + added if classes else 0

    def _is_first(self, array: Array, scene: _Scene) -> bool:
        """Is its first reader in forward order here? Its backward comes last."""
        return scene.makers[array][0] in self.members

    def _passed_from(self, array: Array, scene: _Scene) -> Array | None:
        """The array whose gradient it receives as it is, if one sum is all that it has."""
        givers = [item for item in self.kernels if array in map(scene.root, item.passes)]
        makers = [item for item in self.kernels if array in map(scene.root, item.gradients)]
        return givers[0].writes[0] if len(givers) == 1 and not makers else None


def _bytes(arrays: Iterable[Array]) -> int:
    return sum(array.nbytes for array in arrays)
