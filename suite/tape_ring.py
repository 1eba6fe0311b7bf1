"""Ring attention on a Tape, kernel by kernel: what parallelism/context/ring.py runs, and what lives when."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from suite.operators import Array, Derivative, DType, Flops, Kernel, OperatorKind, Size
from suite.sequence_shards import Part, Product, ring_products
from suite.spec import AttentionKernel
from suite.tape import Backend, Tape
from suite.tape_attention import Heads
from suite.tape_block import Block, Made, flash_backward, flash_forward, open_backward, open_forward

FORWARD: dict[AttentionKernel, Callable[[Block], Made]] = {
    AttentionKernel.FLASH: flash_forward,
    AttentionKernel.EAGER: open_forward,
}
BACKWARD: dict[AttentionKernel, Callable[[Block], Made]] = {
    AttentionKernel.FLASH: flash_backward,
    AttentionKernel.EAGER: open_backward,
}
Pair = tuple[Array, Array]  # keys and values, or sums of their gradients


def ring(tape: Tape, name: str, heads: Heads, kernel: AttentionKernel) -> Array:
    """Causal attention of this rank's queries while keys and values visit. Keeps q, k, v, the output and a log-sum-exp
    a row.

    FLOPs: the rank's queries by the whole sequence, less what the mask leaves out for this rank.
    """
    steps = _Ring(tape, heads, kernel)
    kernels, out, lse, visitors = steps.forward()
    output = Array(f"{name} output", heads.q.shape, heads.q.dtype)
    q, k, v = heads.q, heads.k, heads.v
    last = Kernel(
        "ring", (out, lse, q, k, v, *visitors), (output,), (q, k, v, output, lse), (q, k, v),
        derivative=steps.backward(), is_view=not steps.is_narrow,
    )  # fmt: skip
    kernels += [last, Kernel("release", (q, k, v))]
    tape.operator(name, OperatorKind.ATTENTION, kernels, flops=_flops(tape, heads))
    return output


def _flops(tape: Tape, heads: Heads) -> Flops:
    share = tape.share
    forward = 4 * heads.batch.value * heads.count.value * heads.seq.value**2 * share.cp * heads.width.value
    # halves of blocks: one masked, the others whole, or half each where balanced, or left out
    halves = share.cp if share.is_balanced else 2 * share.cp_rank + 1
    return Flops(forward, 2 * forward, causal_saving=1 - halves / (2 * share.cp))


@dataclass(frozen=True)
class _Ring:
    """Writes the kernels of one ring down, forward and backward, step by step."""

    tape: Tape
    heads: Heads
    kernel: AttentionKernel

    @property
    def products(self) -> list[Product | None]:
        share = self.tape.share
        return list(ring_products(share.cp, share.cp_rank, True, share.is_balanced))

    @property
    def is_narrow(self) -> bool:
        """Are sums over blocks wider than what is multiplied?"""
        return self.heads.q.dtype is not DType.FP32

    def pair(self, name: str, kind: DType) -> Pair:
        shape = self.heads.k.shape
        return Array(f"ring: {name}", shape, kind), Array(f"ring: {name}", shape, kind)

    def visitors(self) -> list[Pair | tuple[()]]:
        """The blocks of steps 0, 1, ...; the first is the rank's own."""
        kind = self.heads.k.dtype
        return [(), *(self.pair("visiting keys and values", kind) for _ in self.products[1:])]

    def block(self, product: Product) -> Block:
        def part(size: Size, which: Part) -> Size:
            return size if which is Part.ALL else Size(f"{size.symbol}/2", size.value // 2)

        seq = self.heads.seq
        return Block(self.tape, self.heads, part(seq, product.queries), part(seq, product.keys), product.is_masked)

    def forward(self) -> tuple[list[Kernel], Array, Array, Pair | tuple[()]]:
        """Kernels, then output and log-sum-exp in the type of sums, and the last visitors, who are still there."""
        kernels: list[Kernel] = []
        visitors = self.visitors()
        out = lse = self.heads.q  # replaced in step 0, which every rank computes
        for step, product in enumerate(self.products):
            if step + 1 < len(visitors):
                kernels.append(Kernel("receive", writes=visitors[step + 1]))
            if product is not None:
                made, (part, part_lse) = FORWARD[self.kernel](self.block(product))
                kernels += made
                if step == 0:
                    out, lse = self._widened("output, merged", part, kernels), part_lse
                else:
                    kernels += self._merge(part, part_lse)
            if step + 1 < len(visitors):
                kernels.append(Kernel("wait", visitors[step]))
        return kernels, out, lse, visitors[-1]

    def _merge(self, part: Array, part_lse: Array) -> list[Kernel]:
        """Fold a block into its rows, in place."""
        kernels: list[Kernel] = []
        wide = self._widened("output of a block in fp32", part, kernels)
        names = ("difference of log-sum-exps", "share of a block")
        less, share = (Array(f"ring: {name}", part_lse.shape, DType.FP32) for name in names)
        return [
            *kernels,
            Kernel("sub", (), (less,)),
            Kernel("sigmoid", (less,), (share,)),
            Kernel("lerp", (share, *((wide,) if wide is not part else ()))),
            Kernel("release", (part, part_lse)),
        ]

    def _widened(self, name: str, x: Array, kernels: list[Kernel]) -> Array:
        """x in fp32: itself where it is. The caller drops x."""
        if not self.is_narrow:
            return x
        wide = Array(f"ring: {name}", x.shape, DType.FP32)
        kernels.append(Kernel("cast", (x,), (wide,)))
        return wide

    def backward(self) -> Derivative:
        """Keys and values go round once more, the sums of their gradients a step behind them."""
        kernels: list[Kernel] = []
        visitors, products = self.visitors(), self.products
        sums: list[Pair] = [self.pair("sums of gradients of keys and values", DType.FP32) for _ in (0, *products)]
        dq = self.heads.q  # replaced in step 0, which every rank computes
        for step, product in enumerate(products):
            if step + 1 < len(visitors):
                kernels.append(Kernel("receive", writes=visitors[step + 1]))
            parts: tuple[Array, ...] = ()
            if product is not None:
                made, parts = BACKWARD[self.kernel](self.block(product))
                kernels += made
                if step == 0:
                    dq, sums[0] = self._begin(parts, sums[0], kernels)
            if step:
                kernels += self._add(parts)
                kernels.append(Kernel("sums have left", (*parts, *sums[step - 1])))
            kernels.append(Kernel("pass on sums", (), sums[step + 1]))
            if step + 1 < len(visitors):
                kernels.append(Kernel("wait", visitors[step]))
        kernels.append(Kernel("sums are home", (*visitors[-1], *sums[-2])))
        wide = (dq, *sums[-1])
        if not self.is_narrow:
            return Derivative(tuple(kernels), wide)
        gradients = tuple(Array(f"{x.name}, cast", x.shape, self.heads.q.dtype) for x in wide)
        kernels += [Kernel("cast", (), gradients), Kernel("release", wide)]
        return Derivative(tuple(kernels), gradients)

    def _begin(self, parts: tuple[Array, ...], sums: Pair, kernels: list[Kernel]) -> tuple[Array, Pair]:
        """The first block's gradients become the sums: as they are, or laid out like keys and widened."""
        dq = self._widened("gradient of queries", parts[0], kernels)
        is_open = self.kernel is AttentionKernel.EAGER
        copies = is_open and min(self.heads.kv_count.value, self.heads.seq.value) > 1  # [b, k, s, d] -> [b, s, k, d]
        if not copies and not self.is_narrow:
            return dq, (parts[1], parts[2])
        for part, total in zip(parts[1:], sums, strict=True):
            passing = part.nbytes if copies and self.is_narrow else 0
            kernels.append(Kernel("lay out", (), (total,), forward_scratch=passing))
        kernels.append(Kernel("release", parts[0 if self.is_narrow else 1 :]))
        return dq, sums

    def _add(self, parts: tuple[Array, ...]) -> list[Kernel]:
        """Adding to wider sums in place casts the addend, on the CPU."""
        if not self.is_narrow or self.tape.backend is not Backend.CPU:
            return []
        return [Kernel("add", forward_scratch=part.elements * DType.FP32.nbytes) for part in parts]
