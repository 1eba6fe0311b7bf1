"""The pass by which a serving engine finds out what it may give the cache: its tensors, as they come and go.

vLLM runs one forward pass without a cache at start-up (vllm/worker/model_runner.py, profile_run): as many tokens as a
step may have, spread over as many sequences as it may have, then the sampler with top-k and top-p on. What is left of
the device's share is the cache's (vllm/worker/worker.py, profile_num_available_blocks). Its kernels: queries, keys and
values from one product, rotation in place, flash attention, gate and up from one product, residual and norm in one
kernel that writes in place. A tensor lives until its last name is bound anew, so a block's input outlives the block.

Counted, in 16 bits: the tensors of every block, the logits and the sampler's. Not counted: the rows that are picked
before the head, sequence lengths, softmax statistics, what the kernel libraries hold for themselves.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from itertools import accumulate

from memory.allocator import Block, CachingAllocator
from suite.models.decoder import Activation, DecoderSpec, Norm

#: sequences of a step, and the fewest tokens that a step may have, by default (vllm/config.py, SchedulerConfig)
SEQUENCES, FEWEST_TOKENS = 256, 2048

HALF, SINGLE, INDEX, MASK = 2, 4, 8, 1  # bytes
#: token, position and place in the cache, an int64 each
INPUT_BYTES = 3 * INDEX

EMBEDDED, ATTENTION, BLOCK = "embedded", "attention", "block"  # tensors that ranks sum


class Sampler(StrEnum):
    """How top-k and top-p put the logits back in order (vllm/model_executor/layers/sampler.py)."""

    ARGSORT = "argsort"  # 16-bit logits; the order is sorted back (to 0.2.6)
    INVERSE = "inverse"  # 16-bit logits; the inverse order is scattered
    FLOAT = "float"  # fp32 logits, scattered by the order itself (from 0.5.5)


class Reduced(StrEnum):
    """When a tensor that ranks summed can be used again."""

    FREED = "freed"  # with its last name
    HELD = "held"  # torch.distributed records its stream: after the pass has been waited for


@dataclass(frozen=True)
class Projection:
    """A matrix of a block on one rank, and the scratch of one that is stored in 4 bits: it is multiplied in 16."""

    inputs: int
    outputs: int
    is_packed: bool = False

    @property
    def elements(self) -> int:
        """Elements of the matrix."""
        return self.inputs * self.outputs

    @property
    def scratch(self) -> int:
        """Bytes of its 16-bit copy, if it is packed."""
        return HALF * self.elements if self.is_packed else 0


def projections(spec: DecoderSpec, tp: int = 1, is_packed: bool = False) -> tuple[Projection, ...]:
    """A block's matrices as an engine fuses them: queries, keys and values; output; gate and up, or up; down. Where
    there are more ranks than key-value heads each holds one."""
    heads, kv = spec.heads // tp, max(1, spec.kv_heads // tp)
    ffn, width = spec.ffn // tp, spec.head_dim
    up = 2 * ffn if spec.activation is Activation.SWIGLU else ffn
    sizes = (
        (spec.hidden, (heads + 2 * kv) * width), (heads * width, spec.hidden), (spec.hidden, up), (ffn, spec.hidden),
    )  # fmt: skip
    return tuple(Projection(*size, is_packed) for size in sizes)


@dataclass(frozen=True)
class EnginePass:
    """A pass of `tokens` tokens as `sequences` sequences through a model on one of `tp` ranks."""

    spec: DecoderSpec
    tokens: int
    sampler: Sampler
    tp: int = 1
    sequences: int = SEQUENCES
    is_packed: bool = False
    reduced: Reduced = Reduced.FREED
    workspace: int = 0  # bytes that the matrix library's handle keeps (torch allocates them)

    def changes(self) -> Iterator[tuple[str, int]]:
        """A tensor's name and bytes as it is made; its name and 0 as it goes."""
        if self.workspace:
            yield "workspace", self.workspace
        yield "inputs", self.tokens * INPUT_BYTES
        yield EMBEDDED, self._hidden
        block = self._fused_block if self.spec.norm is Norm.RMSNORM else self._plain_block
        for place in range(self.spec.layers):
            yield from block(place)
        if self.spec.norm is Norm.RMSNORM:
            yield EMBEDDED, 0
        yield from _sampling(self.sampler, min(self.sequences, self.tokens) * self.spec.vocab)

    def allocated_peak(self) -> int:
        """torch's max_memory_allocated above what was there before. A held tensor is not allocated any more."""
        alive: dict[str, int] = {}
        steps = []
        for name, nbytes in self.changes():
            steps.append(nbytes or -alive.pop(name))
            if nbytes:
                alive[name] = nbytes
        return max(accumulate(steps))

    def reserved_peak(self) -> int:
        """torch's max_memory_reserved above what was there before: the same, replayed through its allocator."""
        allocator = CachingAllocator()
        alive: dict[str, Block] = {}
        for name, nbytes in self.changes():
            if nbytes:
                alive[name] = allocator.allocate(nbytes)
            elif not self._is_held(name):
                allocator.free(alive.pop(name))
        return allocator.peak_reserved

    def held_bytes(self) -> int:
        """Bytes of the tensors that the allocator cannot give out again before the pass has been waited for."""
        return sum(nbytes for name, nbytes in self.changes() if self._is_held(name))

    @property
    def _hidden(self) -> int:
        return HALF * self.tokens * self.spec.hidden

    def _is_held(self, name: str) -> bool:
        """Was it summed over the ranks, and does that keep it?"""
        return self.reduced is Reduced.HELD and self.tp > 1 and name.startswith((EMBEDDED, ATTENTION, BLOCK))

    def _fused_block(self, place: int) -> Iterator[tuple[str, int]]:
        """A block whose norms add and write in place: the embedding becomes the residual stream, the first normed copy
        is the only one, and the block's input lives until the next block has it."""
        _, _, up, down = projections(self.spec, self.tp, self.is_packed)
        if place == 0:
            yield "normed", self._hidden
        yield from self._attention()
        if place == 0:
            yield "normed", 0
        yield from self._product("up", up)
        yield "active", HALF * self.tokens * down.inputs
        yield from self._product(f"{BLOCK} {place}", down)
        yield from _gone("up", "active", ATTENTION)
        if place:
            yield f"{BLOCK} {place - 1}", 0

    def _plain_block(self, place: int) -> Iterator[tuple[str, int]]:
        """A block whose norms and residual sums make new tensors, and whose MLP drops each tensor with the next."""
        _, _, up, down = projections(self.spec, self.tp, self.is_packed)
        yield "normed", self._hidden
        yield from self._attention()
        yield "normed", 0
        yield "middle", self._hidden
        yield ATTENTION, 0
        yield "normed", self._hidden
        yield from self._product("up", up)
        yield "normed", 0
        yield "active", HALF * self.tokens * down.inputs
        yield "up", 0
        yield from self._product("down", down)
        yield "active", 0
        yield f"{BLOCK} {place}", self._hidden
        yield from _gone("down", "middle", f"{BLOCK} {place - 1}" if place else EMBEDDED)

    def _attention(self) -> Iterator[tuple[str, int]]:
        """Queries, keys and values (views of one tensor), what the heads give, what leaves the sub-block."""
        fused, out, _, _ = projections(self.spec, self.tp, self.is_packed)
        yield from self._product("qkv", fused)
        yield "heads", HALF * self.tokens * out.inputs
        yield from self._product(ATTENTION, out)
        yield from _gone("qkv", "heads")

    def _product(self, name: str, matrix: Projection) -> Iterator[tuple[str, int]]:
        """A product's output; a packed matrix is unpacked before it and forgotten after it."""
        if matrix.scratch:
            yield "unpacked", matrix.scratch
        yield name, HALF * self.tokens * matrix.outputs
        if matrix.scratch:
            yield "unpacked", 0


def _sampling(sampler: Sampler, logits: int) -> Iterator[tuple[str, int]]:
    """The sampler's tensors over so many logits, up to its highest instant and beyond."""
    yield "logits", HALF * logits
    size = SINGLE if sampler is Sampler.FLOAT else HALF
    if size != HALF:
        yield "single", size * logits
    yield from _sorted("ranked", logits, size)
    if sampler is not Sampler.ARGSORT:
        yield "beyond k", MASK * logits
    yield "probable", size * logits
    yield "summed", size * logits
    if sampler is Sampler.ARGSORT:
        yield "before", size * logits
        yield "beyond p", MASK * logits
        yield "before", 0
        yield "beyond k", MASK * logits
        yield from _sorted("order", logits, INDEX)
        yield "order", 0
    else:
        yield "beyond p", MASK * logits
        if sampler is Sampler.INVERSE:
            yield "inverse", INDEX * logits
    yield "back", size * logits


def _sorted(name: str, numbers: int, size: int) -> Iterator[tuple[str, int]]:
    """torch.sort of 128 rows and more: sorted numbers, their order, and while it runs the order that it starts from and
    a third copy of both (ATen/native/cuda/SortStable.cu; cub DeviceSegmentedRadixSort, whose inputs stay)."""
    yield name, size * numbers
    yield f"order of {name}", INDEX * numbers
    yield "first order", INDEX * numbers
    yield "third copy", (size + INDEX) * numbers
    yield from _gone("first order", "third copy")


def _gone(*names: str) -> Iterator[tuple[str, int]]:
    """The last names of tensors are bound anew."""
    yield from ((name, 0) for name in names)
