"""ZeRO-3 on the walk: parameters are gathered module by module, gradients scattered bucket by bucket.

Not counted: DeepSpeed's own F.linear copies an input that is not contiguous in passing, in forward and backward, where
torch's keeps the copy. Of this model's inputs only a chunked loss's slices of several sequences are such.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from memory.events import Act, Phase
from memory.zero_acts import FP32, RUNTIME, Acts
from parallelism.zero.config import Parameter
from suite.operators import Placed, Weight
from suite.record import Component


@dataclass
class Gathered(Acts):
    """Stage 3: parameters are gathered module by module, gradients scattered bucket by bucket."""

    held: dict[str, int] = field(default_factory=dict)
    rerun: dict[str, int] = field(default_factory=dict)

    accumulates = False
    keeps_whole = False

    @property
    def source(self) -> str:
        """Where the rules come from."""
        return RUNTIME + "zero/stage3.py"

    def act(self, act: Act, weights: tuple[Weight, ...], placed: Placed) -> None:
        """Gather before a module runs, free after; a gradient goes into the bucket at once.

        Checkpointing's rerun keeps tensors detached from their parameters, so that what was gathered for it outlives
        the module's forward, beside what is gathered for its backward.
        """
        if act is Act.NEEDED:
            self._gather(weights, placed.weight_name(weights[0]))
        elif act is Act.LEFT:
            self._release(placed.weight_name(weights[0]))
        elif act is Act.RERUN:
            self.rerun[placed.weight_name(weights[0])] = self.held.pop(placed.weight_name(weights[0]))
        else:
            self._put(self.at.by_name[placed.weight_name(weights[0])])

    def end_backward(self, is_first: bool, is_last: bool) -> Phase:
        """Reduce what waits; free the embeddings, which no input's gradient tells that they are done."""
        self._flush()
        for name in tuple(self.held):
            self._release(name)
        return self.take()

    def update(self) -> Phase:
        """Norms in fp64, part by part; then group by group a flat gradient in fp32. Nothing where it is offloaded."""
        at = self.at
        if at.is_offloaded:
            return self.take()
        largest = max(self._part(item) for item in at.by_name.values())
        self._pass(8 * largest, "a gradient for its norm", "largest part*8")
        for group in at.groups:
            part = sum(map(self._part, group))
            flat = part * at.size if len(group) > 1 else 0
            self._add(flat, "flat gradient of a group", "Q*{size}")
            if at.size != FP32:
                self._add(part * FP32, "flat gradient of a group in fp32", "Q*4")
                self._add(-flat, "flat gradient of a group", "Q*{size}")
                self._add(-part * FP32, "flat gradient of a group in fp32", "Q*4")
            else:
                self._add(-flat, "flat gradient of a group", "Q*{size}")
        return self.take()

    def _part(self, item: Parameter | Weight) -> int:
        return -(-item.elements // self.at.ranks)

    def _padded(self, items: Iterable[Parameter | Weight]) -> int:
        return sum(map(self._part, items)) * self.at.ranks * self.at.size

    def _gather(self, weights: tuple[Weight, ...], name: str) -> None:
        """One flat buffer; of several parameters each is copied out of it, one alone stays in it. An embedding that
        the backward pass meets twice is there the second time."""
        if name in self.held:
            return
        flat = self._padded(weights)
        self._gathered(flat, "gather output")
        if self.at.copies:
            self._gathered(flat, "gloo's copy of the gathered parameters")
            self._gathered(-flat, "gloo's copy of the gathered parameters")
        self.held[name] = sum(item.elements for item in weights) * self.at.size if len(weights) > 1 else flat
        self._gathered(self.held[name], "gathered parameters")
        self._gathered(-flat, "gather output")

    def _release(self, name: str) -> None:
        self._gathered(-self.held.pop(name), "gathered parameters")
        self._gathered(-self.rerun.pop(name, 0), "gathered parameters")

    def _gathered(self, nbytes: int, name: str) -> None:
        self._add(nbytes, name, "sum of ceil(elements/N)*N*{size}", Component.GATHERED)

    def _flush(self) -> None:
        """Lay the gradients out rank by rank, unless one alone needs no padding; reduce-scatter; keep the parts."""
        if not self.bucket:
            return
        flat = self._padded(self.bucket)
        is_laid_out = len(self.bucket) > 1 or self.bucket[0].elements % self.at.ranks > 0
        laid_out = flat if is_laid_out else 0
        self._add(laid_out, "reduce-scatter input", "sum over the bucket of ceil(elements/N)*N*{size}")
        if self.at.copies:
            self._pass(flat, "gloo's copy of the reduce-scatter input", "the same")
        self._add(-laid_out, "reduce-scatter input", "sum over the bucket of ceil(elements/N)*N*{size}")
        for item in self.bucket:
            if item.elements > self.at.limit:
                self._free(item)
        self.bucket.clear()
