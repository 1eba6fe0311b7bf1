"""What is known of an optimizer without torch: the kernels that run it, and what it keeps for a tensor."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

from suite.spec import OptimizerKernel, OptimizerKind

if TYPE_CHECKING:
    from suite.case import Case
    from suite.layout import Layout

BETAS = (0.9, 0.95)  # of AdamW and 8-bit Adam
MOMENTUM = 0.9  # of SGD
STATE_BYTES = 4  # an element's moment in fp32
STEP_BYTES = 4  # the step counter of AdamW and Adafactor, an fp32 scalar a tensor
#: fp32 values an element, of the rules that keep as many for each
MOMENTS = {OptimizerKind.ADAMW: 2, OptimizerKind.SGD: 1, OptimizerKind.MUON: 1}
HAS_STEP = frozenset({OptimizerKind.ADAMW, OptimizerKind.ADAFACTOR})

#: 8-bit Adam: elements that share a scale, and the least elements of a tensor that is worth it (bitsandbytes)
QUANTIZED_BLOCK = 256
LEAST_QUANTIZED = 4096
#: elements of a tensor that it unpacks at a time, whole blocks
UNPACKED = 2**20
#: the values of its codes, of either moment in fp32, once for all tensors
CODES = 256
CODEBOOK_BYTES = 2 * CODES * STATE_BYTES

#: what `optimizer_kernel` can ask for. Muon and 8-bit Adam take a tensor at a time, and AdamW updates the others.
KERNELS: dict[OptimizerKind, tuple[OptimizerKernel, ...]] = {
    OptimizerKind.ADAMW: (OptimizerKernel.FUSED, OptimizerKernel.FOREACH, OptimizerKernel.LOOP),
    OptimizerKind.SGD: (OptimizerKernel.FUSED, OptimizerKernel.FOREACH, OptimizerKernel.LOOP),
    OptimizerKind.ADAFACTOR: (OptimizerKernel.FOREACH, OptimizerKernel.LOOP),
    OptimizerKind.MUON: (OptimizerKernel.LOOP,),
    OptimizerKind.ADAM_8BIT: (OptimizerKernel.LOOP,),
}


def has_dtensors(layout: Layout) -> bool:
    """Are parameters DTensors: sharded by FSDP2, or divided by tensor parallelism?"""
    return layout.fsdp > 1 or layout.tp > 1


def kernel_of(case: Case) -> OptimizerKernel:
    """The kernel of AdamW, SGD or Adafactor in this case; of Muon and 8-bit Adam, that of the AdamW beside them.

    `auto` is the fused kernel, but for Adafactor, which torch has not fused, and for SGD on DTensors, which have no
    rule for its fused kernel (torch 2.13).
    """
    asked, kind = case.workload.optimizer_kernel, case.workload.optimizer
    if asked is not OptimizerKernel.AUTO:
        return asked
    has_fused = OptimizerKernel.FUSED in KERNELS[beside(kind)]
    has_rule = kind is not OptimizerKind.SGD or not has_dtensors(case.layout)
    return OptimizerKernel.FUSED if has_fused and has_rule else OptimizerKernel.LOOP


def beside(kind: OptimizerKind) -> OptimizerKind:
    """The torch.optim rule that `optimizer_kernel` is about."""
    return OptimizerKind.ADAMW if kind in (OptimizerKind.MUON, OptimizerKind.ADAM_8BIT) else kind


def rule_of(kind: OptimizerKind, shape: tuple[int, ...], is_in_block: bool) -> OptimizerKind:
    """The rule that updates a tensor: AdamW what Muon leaves (embeddings, head, vectors), and tensors that are too
    small to be worth 8 bits."""
    if kind is OptimizerKind.MUON and not (is_in_block and len(shape) == 2):
        return OptimizerKind.ADAMW
    if kind is OptimizerKind.ADAM_8BIT and math.prod(shape) < LEAST_QUANTIZED:
        return OptimizerKind.ADAMW
    return kind


def tensor_state_bytes(
    rule: OptimizerKind, shape: tuple[int, ...], step_bytes: int = STEP_BYTES, moment_bytes: int = STATE_BYTES
) -> int:
    """Bytes that a rule keeps for a tensor between steps. Not counted: 8-bit Adam's codebooks, which tensors share.

    AdamW: two moments and a step. SGD: its momentum. Adafactor: a mean of squares for each row and each column, of a
    vector for each element, and a step. Muon: its momentum. 8-bit Adam: two codes an element, two fp32 scales a block.
    A moment has `moment_bytes` an element; codes and scales have their own.
    """
    elements = math.prod(shape)
    if rule is OptimizerKind.ADAM_8BIT:
        return 2 * (elements + STATE_BYTES * math.ceil(elements / QUANTIZED_BLOCK))
    if rule is OptimizerKind.ADAFACTOR:
        values = shape[0] + shape[1] if len(shape) == 2 else elements
    else:
        values = MOMENTS[rule] * elements
    return moment_bytes * values + (step_bytes if rule in HAS_STEP else 0)


def step_bytes_of(case: Case) -> int:
    """Bytes of a tensor's step counter in the device's memory: only the fused kernel keeps it there and not in the
    host's (torch/optim/adam.py, _init_group)."""
    is_here = case.cluster.device == "cpu" or kernel_of(case) is OptimizerKernel.FUSED
    return STEP_BYTES if is_here else 0


def state_bytes(
    rules: Iterable[tuple[int, OptimizerKind, tuple[int, ...]]],
    step_bytes: int = STEP_BYTES,
    moment_bytes: int = STATE_BYTES,
) -> int:
    """Bytes of an optimizer's state, of so many tensors each of a rule and a shape."""
    total, is_quantized = 0, False
    for count, rule, shape in rules:
        total += count * tensor_state_bytes(rule, shape, step_bytes, moment_bytes)
        is_quantized = is_quantized or rule is OptimizerKind.ADAM_8BIT
    return total + (CODEBOOK_BYTES if is_quantized else 0)
