"""Attention of some queries to a block of keys, kernel by kernel: what parallelism/block_attention.py runs."""

from __future__ import annotations

from dataclasses import dataclass

from suite.operators import Array, DType, Kernel, Size
from suite.tape import ONE, Backend, Tape
from suite.tape_attention import Heads


@dataclass(frozen=True)
class Block:
    """So many rows of queries by so many columns of keys; `heads` are the rank's own, of all its rows."""

    tape: Tape
    heads: Heads
    rows: Size
    columns: Size
    is_masked: bool

    def array(self, name: str, kind: DType, *shape: Size) -> Array:
        """A tensor of that shape, [b, ...]."""
        return Array(f"ring: {name}", (self.heads.batch, *shape), kind)

    def queries(self, name: str, kind: DType) -> Array:
        """As large as the block's queries."""
        return self.array(name, kind, self.rows, self.heads.q.shape[2])

    def keys(self, name: str, kind: DType) -> Array:
        """As large as the block's keys, or values."""
        return self.array(name, kind, self.columns, self.heads.k.shape[2])

    def row_sums(self, name: str) -> Array:
        """A number a query and head."""
        return self.array(name, DType.FP32, self.heads.count, self.rows)

    def scores(self, name: str, kind: DType) -> Array:
        """A number a query, key and head."""
        return self.array(name, kind, self.heads.count, self.rows, self.columns)

    @property
    def kind(self) -> DType:
        """What the products run in."""
        return self.heads.q.dtype

    @property
    def is_part_of_rows(self) -> bool:
        """Are the rows strided: some of several sequences' queries?"""
        return self.rows.value < self.heads.seq.value and self.heads.batch.value > 1


Made = tuple[list[Kernel], tuple[Array, ...]]


def flash_forward(block: Block) -> Made:
    """The fused kernel: output and log-sum-exp."""
    out, lse = block.queries("output of a block", block.kind), block.row_sums("log-sum-exp of a block")
    return [Kernel("ring attention", writes=(out, lse), forward_scratch=_flash_scratch(block)[0])], (out, lse)


def flash_backward(block: Block) -> Made:
    """The fused kernel: gradients of queries, keys and values. Some rows of several sequences it copies."""
    gradients = _gradients(block)
    copied = gradients[0].nbytes if block.is_part_of_rows else 0
    kernel = Kernel("ring attention", writes=gradients, forward_scratch=_flash_scratch(block)[1] + copied)
    return [kernel], gradients


def _gradients(block: Block) -> tuple[Array, Array, Array]:
    kind = block.kind
    return (
        block.queries("gradient of a block's queries", kind),
        block.keys("gradient of a block's keys or values", kind),
        block.keys("gradient of a block's keys or values", kind),
    )


def _flash_scratch(block: Block) -> tuple[int, int]:
    if block.tape.backend is not Backend.CPU:
        return 0, 0
    heads = block.heads
    return block.tape.workspace.attention(
        heads.batch.value, heads.count.value, heads.kv_count.value, block.rows.value, heads.width.value,
        block.kind.nbytes, block.columns.value,
    )  # fmt: skip


class _Open:
    """Attention in the open (OpenKernel), written down operation by operation."""

    def __init__(self, block: Block) -> None:
        self.block = block
        self.kernels: list[Kernel] = []
        heads = block.heads
        #: queries that share a key head are stacked, which copies them
        self.stacks = heads.count.value > heads.kv_count.value and block.rows.value > 1
        #: [b, k, ...] of [b, s, k, d] is no view of [b k, ...]; of one sequence it is, but oneDNN wants it contiguous
        several = heads.batch.value > 1 or (block.tape.backend is Backend.CPU and block.kind is DType.BF16)
        self.must_fold = several and heads.kv_count.value > 1

    def run(self, name: str, reads: tuple[Array, ...], *writes: Array, scratch: int = 0) -> None:
        self.kernels.append(Kernel(name, reads, writes, forward_scratch=scratch))

    def widen(self, x: Array) -> Array:
        """x in fp32, in passing beside x."""
        if x.dtype is DType.FP32:
            return x
        wide = Array(f"{x.name} in fp32", x.shape, DType.FP32)
        self.run("cast", (x,), wide)
        return wide

    def narrow(self, x: Array) -> Array:
        """x in the type of the products."""
        if x.dtype is self.block.kind:
            return x
        small = Array(f"{x.name}, cast", x.shape, self.block.kind)
        self.run("cast", (x,), small)
        return small

    def product(self, reads: tuple[Array, ...], y: Array, copies: int, inner: tuple[Size, Size]) -> None:
        """A product a key head; `copies` of its operands' bytes live as long as it runs."""
        tape = self.block.tape
        packed = tape.workspace.batched_product(inner[0].value, inner[1].value) if tape.packs_products else 0
        self.run("bmm", reads, y, scratch=copies + packed)

    def key_copy(self) -> int:
        return self.block.keys("keys", self.block.kind).nbytes if self.must_fold else 0

    def stacked(self, x: Array | None) -> Array | None:
        """Queries stacked by key head: a copy where several share one. None: kept tensors, as they are."""
        if not self.stacks:
            return x
        copy = self.block.queries("stacked queries", self.block.kind)
        self.run("clone", () if x is None else (x,), copy)
        return copy

    def query_copy(self) -> int:
        """What a product copies of queries that were not stacked."""
        return self.block.queries("q", self.block.kind).nbytes if self.must_fold and not self.stacks else 0

    def scaled(self) -> Array | None:
        scaled = self.block.queries("q / sqrt(d)", self.block.kind)
        self.run("mul", (), scaled)
        return self.stacked(scaled)

    def scores(self) -> Array:
        block = self.block
        scaled = self.scaled()
        assert scaled is not None
        rows = block.scores("scores", block.kind)
        inner = (block.heads.width, block.columns)
        self.product((scaled,), rows, self.key_copy() + self.query_copy(), inner)
        scores = self.widen(rows)
        if block.is_masked:
            mask = Array("ring: mask", (block.rows, block.columns), DType.BOOL)
            self.run("mask", (), mask)
            masked = block.scores("masked scores", DType.FP32)
            self.run("masked_fill", (scores,), masked)
            self.run("release", (rows, scores, mask))
            return masked
        self.run("release", (rows,))
        return scores

    def exponentials(self, scores: Array) -> Array:
        """exp(scores - log-sum-exp)."""
        less, y = (self.block.scores(name, DType.FP32) for name in ("scores - log-sum-exp", "probabilities"))
        self.run("sub", (scores,), less)
        self.run("exp", (less,), y)
        return y

    def forward(self) -> tuple[Array, ...]:
        block = self.block
        scores = self.scores()
        lse, out = block.row_sums("log-sum-exp of a block"), block.queries("output of a block", block.kind)
        self.run("logsumexp", (), lse, scratch=scores.nbytes + lse.nbytes)
        probabilities = self.narrow(self.exponentials(scores))
        self.product((probabilities,), out, self.key_copy(), (block.columns, block.heads.width))
        self.run("release", (scores, out, lse))
        return out, lse

    def backward(self) -> tuple[Array, ...]:
        block, width = self.block, self.block.heads.width
        dq, dk, dv = _gradients(block)
        probabilities = self.exponentials(self.scores())
        rows = self.stacked(None)
        stacked = () if rows is None else (rows,)
        self.product((self._cast_of(probabilities),), dv, self.query_copy(), (block.rows, width))
        inner = self._row_sums()
        steps = block.scores("gradient of probabilities", block.kind)
        self.product(stacked, steps, self.key_copy() + self.query_copy(), (width, block.columns))
        steps = self.widen(steps)
        less = block.scores("gradient of probabilities, centred", DType.FP32)
        self.run("sub", (steps, inner), less)
        scores = block.scores("gradient of scores", DType.FP32)
        self.run("mul", (), scores)
        scores = self.narrow(scores)
        unscaled = block.queries("gradient of a block's queries, unscaled", block.kind)
        self.product((), unscaled, self.key_copy(), (block.columns, width))
        self.run("mul", (unscaled,), dq)
        scaled = self.scaled()
        assert scaled is not None
        self.product((scaled,), dk, self.query_copy(), (block.rows, width))
        self.run("release", (probabilities, inner, less, scores, dq, dk, dv, *stacked))
        return dq, dk, dv

    def _cast_of(self, probabilities: Array) -> Array:
        return self.narrow(probabilities)

    def _row_sums(self) -> Array:
        """Sums over a head's width of output times its gradient."""
        block = self.block
        wide = []
        if block.kind is not DType.FP32:
            wide = [block.queries(f"{name} in fp32", DType.FP32) for name in ("gradient", "output")]
            self.run("cast", (), *wide)
        product = block.queries("output * gradient", DType.FP32)
        inner = Array("ring: output * gradient, summed", (*block.row_sums("").shape, ONE), DType.FP32)
        self.run("mul", tuple(wide), product)
        self.run("sum", (product,), inner)
        return inner


def open_forward(block: Block) -> Made:
    """Products, softmax and sums: output and log-sum-exp."""
    steps = _Open(block)
    made = steps.forward()
    return steps.kernels, made


def open_backward(block: Block) -> Made:
    """Scores once more, then gradients of queries, keys and values."""
    steps = _Open(block)
    made = steps.backward()
    return steps.kernels, made
