"""Attention of some queries to a block of keys, kernel by kernel: what parallelism/context/block.py runs."""

from __future__ import annotations

from dataclasses import dataclass

from suite.operators import Array, DType, Kernel, Size
from suite.tape import Backend, Tape
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
        # queries that share a key head are stacked, which copies them
        self.stacks = heads.count.value > heads.kv_count.value and block.rows.value > 1
        # [b, k, ...] of [b, s, k, d] is no view of [b k, ...]; of one sequence it is, but oneDNN wants it contiguous
        several = heads.batch.value > 1 or (block.tape.backend is Backend.CPU and block.kind is DType.BF16)
        must_fold = several and heads.kv_count.value > 1
        #: bytes that a product copies of keys or values, and of queries that were not stacked
        self.key_copy = block.keys("keys", block.kind).nbytes if must_fold else 0
        self.query_copy = block.queries("queries", block.kind).nbytes if must_fold and not self.stacks else 0

    def forward(self) -> tuple[Array, ...]:
        """Output and log-sum-exp."""
        block = self.block
        scores = self._scores()
        lse, out = block.row_sums("log-sum-exp of a block"), block.queries("output of a block", block.kind)
        self._run("logsumexp", (), lse, scratch=scores.nbytes + lse.nbytes)
        probabilities = self._in(block.kind, self._exponentials(scores))
        self._product((probabilities,), out, self.key_copy, (block.columns, block.heads.width))
        self._run("release", (scores, out, lse))
        return out, lse

    def backward(self) -> tuple[Array, ...]:
        """Gradients of queries, keys and values."""
        block, width = self.block, self.block.heads.width
        dq, dk, dv = _gradients(block)
        probabilities = self._exponentials(self._scores())
        rows = self._stacked()
        self._product((self._in(block.kind, probabilities),), dv, self.query_copy, (block.rows, width))
        inner = self._row_sums()
        product = block.scores("gradient of probabilities", block.kind)
        self._product(rows, product, self.key_copy + self.query_copy, (width, block.columns))
        centred = block.scores("gradient of probabilities, centred", DType.FP32)
        self._run("sub", (self._in(DType.FP32, product), inner), centred)
        wide = block.scores("gradient of scores", DType.FP32)
        self._run("mul", (), wide)
        scores = self._in(block.kind, wide)
        unscaled = block.queries("gradient of a block's queries, unscaled", block.kind)
        self._product((), unscaled, self.key_copy, (block.columns, width))
        self._run("mul", (unscaled,), dq)
        self._product((self._scaled(),), dk, self.query_copy, (block.rows, width))
        self._run("release", (probabilities, inner, centred, scores, dq, dk, dv, *rows))
        return dq, dk, dv

    def _run(self, name: str, reads: tuple[Array, ...], *writes: Array, scratch: int = 0) -> None:
        self.kernels.append(Kernel(name, reads, writes, forward_scratch=scratch))

    def _in(self, kind: DType, x: Array) -> Array:
        """x in that type: itself, or a cast."""
        if x.dtype is kind:
            return x
        cast = Array(f"{x.name} in {kind.label}", x.shape, kind)
        self._run("cast", (x,), cast)
        return cast

    def _product(self, reads: tuple[Array, ...], y: Array, copied: int, inner: tuple[Size, Size]) -> None:
        """A product a key head; `copied` bytes of its operands live as long as it runs. inner: what is summed over, and
        columns."""
        tape = self.block.tape
        packed = tape.workspace.batched_product(inner[0].value, inner[1].value) if tape.packs_products else 0
        self._run("bmm", reads, y, scratch=copied + packed)

    def _stacked(self, *reads: Array) -> tuple[Array, ...]:
        """Queries stacked by key head: a copy where several share one, else what was read."""
        if not self.stacks:
            return reads
        copy = self.block.queries("stacked queries", self.block.kind)
        self._run("clone", reads, copy)
        return (copy,)

    def _scaled(self) -> Array:
        """q / sqrt(d), stacked."""
        scaled = self.block.queries("queries / sqrt(d)", self.block.kind)
        self._run("mul", (), scaled)
        return self._stacked(scaled)[0]

    def _scores(self) -> Array:
        """In fp32, masked."""
        block = self.block
        product = block.scores("scores", block.kind)
        self._product((self._scaled(),), product, self.key_copy + self.query_copy, (block.heads.width, block.columns))
        scores = self._in(DType.FP32, product)
        if not block.is_masked:
            self._run("release", (product,))
            return scores
        mask = Array("ring: mask", (block.rows, block.columns), DType.BOOL)
        masked = block.scores("masked scores", DType.FP32)
        self._run("mask", (), mask)
        self._run("masked_fill", (), masked)
        self._run("release", (product, scores, mask))
        return masked

    def _exponentials(self, scores: Array) -> Array:
        """exp(scores - log-sum-exp)."""
        less, y = (self.block.scores(name, DType.FP32) for name in ("scores - log-sum-exp", "probabilities"))
        self._run("sub", (scores,), less)
        self._run("exp", (less,), y)
        return y

    def _row_sums(self) -> Array:
        """Sums over a head's width of the output times its gradient."""
        block = self.block
        names = ("gradient", "output") if block.kind is not DType.FP32 else ()
        wide = [block.queries(f"{name} in fp32", DType.FP32) for name in names]
        self._run("cast", (), *wide)
        product, inner = block.queries("output * gradient", DType.FP32), block.row_sums("output * gradient, summed")
        self._run("mul", tuple(wide), product)
        self._run("sum", (product,), inner)
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
