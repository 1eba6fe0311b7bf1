"""What an update allocates in passing, kernel by kernel: over the shapes of one group's tensors, in order. Bytes.

Read off torch 2.13: torch/optim/adam.py, sgd.py, _adafactor.py and _muon.py. A loop over tensors keeps what the names
in its body hold of the tensor before until they are given something new, so neighbours count together. Counted: all
but scalars. A fused kernel allocates nothing and has no row here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from suite.optimizers import CODES, QUANTIZED_BLOCK, UNPACKED
from suite.spec import OptimizerKernel, OptimizerKind

Shape = tuple[int, ...]

FP32, BF16 = 4, 2


@dataclass(frozen=True, slots=True)
class Passing:
    """Temporaries of a kernel: how many bytes, why, and by which file. `is_for_decay`: none without weight decay."""

    nbytes: Callable[[Sequence[Shape]], int]
    name: str
    formula: str
    source: str
    is_for_decay: bool = False


def _after(shapes: Sequence[Shape]) -> Iterator[tuple[int, Shape]]:
    """(elements of the tensor before, shape) of every tensor; 0 before the first."""
    yield 0, shapes[0]
    for before, shape in pairwise(shapes):
        yield math.prod(before), shape


def _all(shapes: Sequence[Shape]) -> int:
    return FP32 * sum(map(math.prod, shapes))


def _largest(shapes: Sequence[Shape]) -> int:
    return FP32 * max(map(math.prod, shapes))


def adamw_loop(shapes: Sequence[Shape]) -> int:
    """The root of the second moment and its quotient, while the last tensor's denominator is still there."""
    return FP32 * max(before + 2 * math.prod(shape) for before, shape in _after(shapes))


def adafactor_loop(shapes: Sequence[Shape]) -> int:
    """A matrix's row and column means and its estimate, while the last one's update is still there; a vector's squares
    and their copy, or its squares while the last one's are still there."""
    sizes = []
    for before, shape in _after(shapes):
        elements = math.prod(shape)
        means = sum(shape) if len(shape) > 1 else elements
        sizes.append(before + means + elements)
        if len(shape) == 1:
            sizes.append(2 * before + elements)
    return FP32 * max(sizes)


def muon_loop(shapes: Sequence[Shape]) -> int:
    """The momentum step in fp32, and of five Newton-Schulz iterations in bf16: the matrix, its successor, the Gram
    matrix of its shorter side and that one's polynomial. Not counted: what bf16 products pack on the CPU, and the 7,200
    bytes in which it turns a tall matrix."""
    sizes = []
    for before, shape in _after(shapes):
        elements, side = math.prod(shape), min(shape)
        sizes.append(FP32 * elements + BF16 * before)
        sizes.append(FP32 * elements + BF16 * 2 * elements + BF16 * 2 * side**2)
    return max(sizes)


def adam_8bit_loop(shapes: Sequence[Shape]) -> int:
    """Both moments of a slice of a tensor in fp32 and the int32 codes of one, and the middles of its codebook."""
    return FP32 * (3 * max(_slice(math.prod(shape)) for shape in shapes) + CODES - 1)


def _slice(elements: int) -> int:
    whole = elements // QUANTIZED_BLOCK * QUANTIZED_BLOCK
    return min(whole, UNPACKED) or elements


ADAM, SGD, ADAFACTOR = "torch/optim/adam.py", "torch/optim/sgd.py", "torch/optim/_adafactor.py"

PASSING: dict[tuple[OptimizerKind, OptimizerKernel], Passing] = {
    (OptimizerKind.ADAMW, OptimizerKernel.FOREACH): Passing(
        _all, "denominators", "parameters of the largest group*4", f"{ADAM}, _multi_tensor_adam",
    ),
    (OptimizerKind.ADAMW, OptimizerKernel.LOOP): Passing(
        adamw_loop, "denominators", "(2*a parameter + the one before)*4", f"{ADAM}, _single_tensor_adam",
    ),
    (OptimizerKind.SGD, OptimizerKernel.FOREACH): Passing(
        _all, "decayed gradients", "parameters of the largest decayed group*4", f"{SGD}, _multi_tensor_sgd", True,
    ),
    (OptimizerKind.SGD, OptimizerKernel.LOOP): Passing(
        _largest, "decayed gradient", "largest decayed parameter*4", f"{SGD}, _single_tensor_sgd", True,
    ),
    (OptimizerKind.ADAFACTOR, OptimizerKernel.FOREACH): Passing(
        _all, "updates", "parameters of the largest group*4", f"{ADAFACTOR}, _multi_tensor_adafactor",
    ),
    (OptimizerKind.ADAFACTOR, OptimizerKernel.LOOP): Passing(
        adafactor_loop, "update", "(a parameter + its rows + its columns + the one before)*4",
        f"{ADAFACTOR}, _single_tensor_adafactor",
    ),
    (OptimizerKind.MUON, OptimizerKernel.LOOP): Passing(
        muon_loop, "Newton-Schulz iteration", "a matrix*(4 + 2*2) + shorter side^2*2*2",
        "torch/optim/_muon.py, _zeropower_via_newtonschulz",
    ),
    (OptimizerKind.ADAM_8BIT, OptimizerKernel.LOOP): Passing(
        adam_8bit_loop, "unpacked moments", f"(3*elements of a slice, at most {UNPACKED}, + {CODES - 1})*4",
        "parallelism/adam_8bit.py",
    ),
}  # fmt: skip
