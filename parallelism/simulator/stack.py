"""Stack: what a framework's version runs for the same operators. The default is our own model on today's torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import partial

from parallelism.simulator.float8_work import in_float8
from suite.float8 import Scaling
from suite.operators import Array, DType, Kernel, Operator, OperatorKind, Region, Segment
from suite.tape import composite_rms_norm


class Execution(StrEnum):
    """How a framework runs a model's operators."""

    EAGER = "eager"  # a kernel an operation, issued one by one
    COMPILED = "compiled"  # torch.compile, or fused kernels by hand: one between products, issued without Python


class Norms(StrEnum):
    """How eager torch runs RMSNorm on a GPU; compiled it is one kernel in either case."""

    FUSED = "fused"  # one kernel: torch from 2.9 on, or a model's own
    COMPOSITE = "composite"  # its parts one by one: torch before


class Rotary(StrEnum):
    """How positions are rotated."""

    HALVES = "halves"  # products with cosines and sines, in the type that is computed in
    COMPLEX = "complex"  # in fp32 as complex numbers, which torch's compiler leaves alone: LLaMA's own code, torchtitan


class Losses(StrEnum):
    """How eager torch runs the cross-entropy."""

    SEPARATE = "separate"  # a cast, log-softmax, the selection
    FUSED = "fused"  # one kernel, as flash-attn has it


class Reruns(StrEnum):
    """How far checkpointing runs a region again."""

    EARLY_STOP = "early-stop"  # up to what backward needs first: torch from 2.1 on, without reentrance
    WHOLE = "whole"  # all of it


class Flash(StrEnum):
    """The generation of the fused attention kernel."""

    ONE = "flash-1"  # arXiv:2205.14135
    TWO = "flash-2"  # arXiv:2307.08691; in torch from 2.2 on


@dataclass(frozen=True)
class Stack:
    """How operators become kernels."""

    execution: Execution = Execution.EAGER
    norms: Norms = Norms.FUSED
    rotary: Rotary = Rotary.HALVES
    losses: Losses = Losses.SEPARATE
    reruns: Reruns = Reruns.EARLY_STOP
    flash: Flash = Flash.TWO
    casts_blocks: Scaling | None = None
    """fp8 products in the blocks of a case that is said in bf16: where a case's own rules know no fp8"""

    def fuses(self, segment: Segment) -> bool:
        """Is all of the segment's work between products fused?"""
        if self.execution is Execution.COMPILED:
            return True
        return self.losses is Losses.FUSED and any(item.kind is OperatorKind.LOSS for item in segment.operators())

    def applied(self, segment: Segment) -> Segment:
        """The segment with the kernels that this stack runs."""
        rules: dict[str, Callable[[Operator], Iterable[Kernel]]] = {}
        if self.norms is Norms.COMPOSITE and self.execution is Execution.EAGER:
            rules["rms_norm"] = _composite_norms
        if self.rotary is Rotary.COMPLEX:
            rules["addcmul"] = _complex_rotation
        if self.casts_blocks is not None and segment.name == "block":
            rules["linear"] = partial(_in_float8, scaling=self.casts_blocks)
        return replace(segment, body=_with(segment.body, rules)) if rules else segment


def _with(
    body: Iterable[Operator | Region], rules: dict[str, Callable[[Operator], Iterable[Kernel]]]
) -> tuple[Operator | Region, ...]:
    """Operators that run a kernel of such a name, by the rule of that name."""
    found: list[Operator | Region] = []
    for item in body:
        if isinstance(item, Region):
            found.append(replace(item, body=_with(item.body, rules)))
            continue
        rule = next((rules[kernel.name] for kernel in item.kernels if kernel.name in rules), None)
        found.append(item if rule is None else replace(item, kernels=tuple(rule(item))))
    return tuple(found)


def _in_float8(operator: Operator, scaling: Scaling) -> Iterable[Kernel]:
    return in_float8(operator.kernels, scaling)


def _composite_norms(operator: Operator) -> Iterator[Kernel]:
    for kernel in operator.kernels:
        if kernel.name == "rms_norm":
            (x, weight), (y, scale) = kernel.reads, kernel.writes
            yield from composite_rms_norm(operator.name, x, weight, scale, y)
        else:
            yield kernel


#: a kernel that torch's compiler does not fuse: it generates no code for complex numbers
COMPLEX_PRODUCT = "complex product"


def _complex_rotation(operator: Operator) -> Iterator[Kernel]:
    """The projection in fp32, times unit numbers, and back."""
    x, y = operator.kernels[0].reads[0], operator.kernels[-1].writes[0]
    wide, turned = (Array(f"{operator.name} {what}", x.shape, DType.FP32) for what in ("in fp32", "turned"))
    yield Kernel("cast", (x,), (wide,), gradients=(x,))
    yield Kernel(COMPLEX_PRODUCT, (wide,), (turned,), gradients=(wide,))
    yield Kernel("cast", (turned,), (y,), gradients=(turned,))
