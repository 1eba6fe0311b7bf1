"""ZeRO-1 and 2 on the walk: a gradient bucket lives in backward, and an N-th of the gradients outlives it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from memory.events import Act, Phase
from memory.zero_acts import FP32, RUNTIME, WHOLE, Acts
from parallelism.zero.config import Parameter, padded_group
from suite.operators import Placed, Weight
from suite.record import Component


@dataclass
class Bucketed(Acts):
    """Stages 1 and 2: a bucket lives in backward, and the rank keeps whole gradients of what it owns a part of."""

    has_bucket: bool = False
    has_kept: bool = False
    left_over: int = 0
    is_first: bool = True

    keeps_whole = False

    @property
    def accumulates(self) -> bool:  # type: ignore[override]
        """Stage 1 leaves gradients where they are until the last micro-batch."""
        return self.at.case.layout.zero == 1

    @property
    def source(self) -> str:
        """Where the rules come from."""
        return RUNTIME + "zero/stage_1_and_2.py"

    def act(self, act: Act, weights: tuple[Weight, ...], placed: Placed) -> None:
        """The first gradient brings the bucket into being; stage 2 moves each into it at once."""
        if act is not Act.REDUCIBLE:
            return
        if not self.has_bucket:
            self.has_bucket = True
            self._bucket(1)
        if self.at.case.layout.zero == 2:
            self._put(self.at.by_name[placed.weight_name(weights[0])])

    def end_backward(self, is_first: bool, is_last: bool) -> Phase:
        """Reduce what waits; stage 1 reduces only now, after the last micro-batch."""
        if self.at.case.layout.zero == 1:
            if not is_last:
                return self.take()
            for group in self.at.groups:
                for item in group:
                    self._put(item)
        self._flush()
        if is_last and not self.at.is_offloaded:
            padding = sum(map(self.at.padding, self.at.groups))
            self._add(padding * self.at.size, "zeros for the padding", "padding*{size}", Component.GRADIENTS)
        self._add(-self.left_over, WHOLE, "parameters reached*{size}")
        self._bucket(-1)
        if self.has_kept and self.at.case.layout.zero == 2 and not is_first:
            self._keep(-1)
        self.has_bucket = self.has_kept = False
        self.left_over = 0
        self.is_first = False
        return self.take()

    def update(self) -> Phase:
        """Norms in fp64, gradient by gradient; group by group a flat gradient in fp32; then the new parameters.
        Offloaded, norms and fp32 gradients were made in the backward pass."""
        at = self.at
        if not at.is_offloaded:
            self._pass(8 * max(map(at.owned, at.by_name.values())), "a gradient for its norm", "largest part*8")
            for group in at.groups:
                self._step(group)
            self._add(-self._kept_bytes, "gradients", "owned parameters*{size}", Component.GRADIENTS)
            padding = sum(map(at.padding, at.groups))
            self._add(-padding * at.size, "zeros for the padding", "padding*{size}", Component.GRADIENTS)
        if at.copies:
            largest = max(padded_group(group, at.ranks) for group in at.groups)
            self._pass(largest * at.size, "gloo's copy of the gathered parameters", "largest group*{size}")
        return self.take()

    def _step(self, group: Sequence[Parameter]) -> None:
        at, part = self.at, self.at.part(group)
        parts = sum(1 for item in group if at.owned(item)) + bool(at.padding(group))
        flat = part * at.size if parts > 1 else 0
        self._add(flat, "flat gradient of a group", "P/N*{size}")
        if at.size != FP32:
            self._add(part * FP32, "flat gradient of a group in fp32", "P/N*4")
            self._add(-flat, "flat gradient of a group", "P/N*{size}")
            self._add(-part * FP32, "flat gradient of a group in fp32", "P/N*4")
        else:
            self._add(-flat, "flat gradient of a group", "P/N*{size}")

    # --- gradients --------------------------------------------------------------------------------------

    def _flush(self) -> None:
        """All-reduce the bucket: its slices, one for each run of the same owner, are joined if they are several."""
        if not self.bucket:
            return
        runs: list[list[int]] = []
        for owner, elements in (piece for item in self.bucket for piece in self.at.pieces[item]):
            if runs and runs[-1][0] == owner:
                runs[-1][1] += elements
            else:
                runs.append([owner, elements])
        elements = max(joined([elements for _, elements in runs], self.at.limit), default=0)
        self._pass(elements * self.at.size, "gradients joined to be all-reduced", "bucket*{size}")
        for item in self.bucket:
            self._keep_or_drop(item)
        self.bucket.clear()

    def _keep_or_drop(self, item: Parameter) -> None:
        is_large, is_owned = item.elements > self.at.limit, self.at.owned(item) > 0
        if is_owned and self.at.is_offloaded:
            self._pass(8 * self.at.owned(item), "a gradient for its norm", "part*8")
        elif is_owned and not self.has_kept:
            self.has_kept = True
            self._keep(1)
        if is_large and (is_owned or self.at.case.layout.zero == 2):
            self._free(item)
        elif is_large:
            self.left_over += item.elements * self.at.size

    @property
    def _kept_bytes(self) -> int:
        return sum(item.elements for item in self.at.by_name.values() if self.at.owned(item)) * self.at.size

    def _keep(self, sign: int) -> None:
        """Whole gradients of the parameters that the rank owns a part of; stage 2 adds later ones to the first."""
        if self.is_first or self.at.case.layout.zero == 1:
            name, component = "gradients", Component.GRADIENTS
        else:
            name, component = "new gradients, added to the old", Component.TRANSIENTS
        self._add(sign * self._kept_bytes, name, "owned parameters*{size}", component)

    def _bucket(self, sign: int) -> None:
        elements = "bucket_mib" if self.at.case.layout.bucket_mib else "5e8 elements, DeepSpeed's default,"
        self._add(sign * self.at.limit * self.at.size, "gradient bucket, allocated whole", f"{elements} *{{size}}")


def joined(sizes: Iterable[int], limit: int) -> Iterable[int]:
    """Elements of each all-reduce that joins several slices: they are taken until they are beyond the limit."""
    total = count = 0
    for size in sizes:
        total, count = total + size, count + 1
        if total > limit:
            yield total if count > 1 else 0
            total = count = 0
    yield total if count > 1 else 0
