"""What a rank does in a pass: kernels (matrix products, bytes moved) and collectives, operator by operator."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from suite.collectives import Call


@dataclass(frozen=True, slots=True)
class Product:
    """`batch` products of an m x k with a k x n matrix."""

    m: int
    n: int
    k: int
    batch: int = 1

    @property
    def flops(self) -> float:
        """2 m n k each."""
        return 2.0 * self.m * self.n * self.k * self.batch

    def moved(self, itemsize: int = 2) -> float:
        """Bytes of both factors and the result, each once."""
        return float(itemsize) * self.batch * (self.m * self.k + self.k * self.n + self.m * self.n)


@dataclass(frozen=True, slots=True)
class Kernel:
    """One launch: the bytes it reads and writes, and its matrix product if it is one.

    `flops` is arithmetic that the product's shape does not tell: a fused attention core's.
    """

    name: str
    moved: float
    product: Product | None = None
    flops: float = 0.0


@dataclass(frozen=True, slots=True)
class Work:
    """Kernels in order, and the collectives that wait for them and that the next wait for."""

    kernels: tuple[Kernel, ...] = ()
    calls: tuple[Call, ...] = ()

    def __add__(self, other: Work) -> Work:
        return Work(self.kernels + other.kernels, self.calls + other.calls)

    @property
    def flops(self) -> float:
        """Of matrix products and fused attention."""
        return sum(kernel.flops + (kernel.product.flops if kernel.product else 0.0) for kernel in self.kernels)

    @property
    def moved(self) -> float:
        """Bytes read and written."""
        return sum(kernel.moved for kernel in self.kernels)


NO_WORK = Work()


@dataclass(frozen=True, slots=True)
class Operator:
    """A step of a model: its forward work, and the two halves of its backward work."""

    name: str
    forward: Work
    inputs: Work = NO_WORK
    weights: Work = NO_WORK


@dataclass(frozen=True)
class Layer:
    """Operators that run together. `core` is what selective recomputation runs again: between the joint projection
    and the output's (arXiv:2205.05198, section 5)."""

    name: str
    operators: tuple[Operator, ...]
    core: tuple[Operator, ...] = ()

    @property
    def forward(self) -> Work:
        """All of it, in order."""
        return total(operator.forward for operator in self.operators)

    @property
    def inputs(self) -> Work:
        """Gradients of what came in."""
        return total(operator.inputs for operator in self.operators)

    @property
    def weights(self) -> Work:
        """Gradients of the weights."""
        return total(operator.weights for operator in self.operators)

    @property
    def core_forward(self) -> Work:
        """What selective recomputation runs again."""
        return total(operator.forward for operator in self.core)


def total(works: Iterable[Work]) -> Work:
    """One after the other."""
    found = list(works)
    return Work(
        tuple(kernel for work in found for kernel in work.kernels), tuple(call for work in found for call in work.calls)
    )


def elementwise(name: str, *accesses: float) -> Kernel:
    """A kernel that does little arithmetic; `accesses` are the bytes of each array it reads or writes."""
    return Kernel(name, sum(accesses))


def matrix(name: str, m: int, n: int, k: int, batch: int = 1) -> Kernel:
    """A 16-bit matrix product."""
    product = Product(m, n, k, batch)
    return Kernel(name, product.moved(), product)
