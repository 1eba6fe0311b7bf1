"""What DeepSpeed's ZeRO keeps on a rank between steps, byte by byte, and the gradients at a step's end."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from parallelism.zero.config import bucket_elements, element_bytes, groups_of, padded_group
from suite.case import Case
from suite.layout import Offload
from suite.operators import Ledger
from suite.optimizers import MOMENTS, tensor_state_bytes
from suite.record import Component
from suite.spec import OptimizerKind, Precision

FP32 = 4
STEP_BYTES = {kind: tensor_state_bytes(kind, (0,)) for kind in (OptimizerKind.ADAMW, OptimizerKind.SGD)}
STAGE_0, STAGE_1_2, STAGE_3 = "fp16/unfused_optimizer.py", "zero/stage_1_and_2.py", "zero/stage3.py"


class Place(StrEnum):
    """Where bytes lie."""

    DEVICE = "device"
    HOST = "host"


@dataclass(frozen=True, slots=True)
class Held:
    """So many bytes of a component, where, why, and by which file of DeepSpeed's runtime."""

    component: Component
    nbytes: int
    place: Place
    name: str
    formula: str
    source: str
    is_lazy: bool = False  # made in the first step, and kept


def held(case: Case, ledger: Ledger, rank: int) -> tuple[Held, ...]:
    """What lives between two steps, on this rank.

    Counted: parameters, masters, optimizer state, kept gradients and buckets. Not counted: buffers, inputs, scalars of
    the engine (a few bytes); in stages 1 and 2 the gradient bucket, which lives in the backward pass alone.
    """
    rows = {0: _stage_0, 3: _stage_3}.get(case.layout.zero, _stage_1_or_2)(case, ledger, rank)
    return tuple(row for row in rows if row.nbytes)


def gradient_bytes(case: Case, ledger: Ledger, rank: int) -> int:
    """Bytes of gradients once the last micro-batch is reduced and the update has not begun.

    Stage 0: all of them. Stages 1 and 2: whole gradients of the parameters that the rank owns a part of, and zeros for
    the padding of its part. Stage 3 and offload: what is kept between steps as well.
    """
    size, layout = element_bytes(case.workload.precision), case.layout
    if layout.zero == 0:
        return size * sum(weight.elements for group in groups_of(ledger) for weight in group)
    if layout.zero == 3 or layout.offload is not Offload.NONE:
        return sum(row.nbytes for row in held(case, ledger, rank) if row.component is Component.GRADIENTS)
    return size * (_touched(case, ledger, rank) + _padding(case, ledger, rank))


def backward_bucket_bytes(case: Case) -> int:
    """Bytes of the gradient bucket that stages 1 and 2 allocate for each backward pass and free after it."""
    if case.layout.zero not in (1, 2):
        return 0
    return bucket_elements(case) * element_bytes(case.workload.precision)


def _stage_0(case: Case, ledger: Ledger, rank: int) -> Iterator[Held]:
    """As on one rank; bf16 adds fp32 masters."""
    kind, size = case.workload.optimizer, element_bytes(case.workload.precision)
    groups = groups_of(ledger)
    elements, tensors = sum(item.elements for group in groups for item in group), sum(map(len, groups))
    masters = FP32 if case.workload.precision is Precision.BF16_MIXED else 0
    yield Held(Component.PARAMETERS, elements * size, Place.DEVICE, "parameters", f"parameters*{size}", STAGE_0)
    yield Held(Component.OPTIMIZER, elements * masters, Place.DEVICE, "fp32 masters", "parameters*4", STAGE_0)
    state = elements * FP32 * MOMENTS[kind] + STEP_BYTES[kind] * tensors
    formula = f"parameters*4*{MOMENTS[kind]} + {STEP_BYTES[kind]}*tensors"
    yield Held(Component.OPTIMIZER, state, Place.DEVICE, f"{kind} state", formula, STAGE_0, is_lazy=True)


def _stage_1_or_2(case: Case, ledger: Ledger, rank: int) -> Iterator[Held]:
    """Each group of parameters is one flat buffer, its end padded to 2N elements; the rank has an fp32 copy of its
    N-th of it, in fp32 too."""
    kind, size, ranks = case.workload.optimizer, element_bytes(case.workload.precision), case.layout.dp
    groups = groups_of(ledger)
    flat = sum(padded_group(group, ranks) for group in groups)
    part, is_offloaded = flat // ranks, case.layout.offload is not Offload.NONE
    where = Place.HOST if is_offloaded else Place.DEVICE
    state = part * FP32 * MOMENTS[kind] + STEP_BYTES[kind] * len(groups)
    formula = f"P*{size}, P = parameters, each group to a multiple of 2N"
    yield Held(Component.PARAMETERS, flat * size, Place.DEVICE, "flat parameters", formula, STAGE_1_2)
    yield Held(Component.OPTIMIZER, part * FP32, where, "flat fp32 master", "P/N*4", STAGE_1_2)
    formula = f"P/N*4*{MOMENTS[kind]} + {STEP_BYTES[kind]}*groups"
    yield Held(Component.OPTIMIZER, state, where, f"{kind} state", formula, STAGE_1_2, is_lazy=True)
    if not is_offloaded:
        return
    largest = max(weight.elements for group in groups for weight in group)
    yield Held(Component.GRADIENTS, part * FP32, Place.HOST, "gradients of the master", "P/N*4", STAGE_1_2)
    if case.layout.zero == 2 and case.workload.micro_batches > 1:
        kept = _touched(case, ledger, rank) * size
        formula = f"elements of the parameters that the rank owns a part of*{size}"
        name = "gradients of earlier micro-batches"
        yield Held(Component.GRADIENTS, kept, Place.HOST, name, formula, STAGE_1_2, is_lazy=True)
    copies = part * size
    yield Held(Component.COMMUNICATION, copies, Place.HOST, "new parameters on their way", f"P/N*{size}", STAGE_1_2)
    for place in Place:
        formula = f"largest parameter*{size}"
        yield Held(Component.COMMUNICATION, largest * size, place, "a gradient on its way", formula, STAGE_1_2)


def _stage_3(case: Case, ledger: Ledger, rank: int) -> Iterator[Held]:
    """Each parameter is cut into N equal parts, its last one padded; the rank's parts are one flat buffer. In
    fp32 it would do as the master too, and DeepSpeed means it to, but compares a device with its name and copies."""
    kind, size, ranks = case.workload.optimizer, element_bytes(case.workload.precision), case.layout.dp
    groups, offload = groups_of(ledger), case.layout.offload
    part = sum(math.ceil(weight.elements / ranks) for group in groups for weight in group)
    is_offloaded = offload is not Offload.NONE
    home = Place.HOST if offload is Offload.PARAMETERS else Place.DEVICE
    where = Place.HOST if is_offloaded else Place.DEVICE
    yield Held(Component.PARAMETERS, part * size, home, "parts of the parameters", f"Q*{size}", STAGE_3)
    formula = "Q*4, Q = sum of ceil(elements/N)"
    yield Held(Component.OPTIMIZER, part * FP32, where, "flat fp32 master", formula, STAGE_3)
    state = part * FP32 * MOMENTS[kind] + STEP_BYTES[kind] * len(groups)
    formula = f"Q*4*{MOMENTS[kind]} + {STEP_BYTES[kind]}*groups"
    yield Held(Component.OPTIMIZER, state, where, f"{kind} state", formula, STAGE_3, is_lazy=True)
    yield Held(Component.GRADIENTS, part * size, where, "parts of the gradients", f"Q*{size}", STAGE_3)
    if is_offloaded:
        yield Held(Component.GRADIENTS, part * FP32, Place.HOST, "gradients of the master", "Q*4", STAGE_3)
    bucket = bucket_elements(case) * size
    yield Held(Component.COMMUNICATION, bucket, Place.DEVICE, "gradient bucket", f"bucket elements*{size}", STAGE_3)


def _touched(case: Case, ledger: Ledger, rank: int) -> int:
    """Elements of the whole parameters of which stages 1 and 2 give the rank at least one element."""
    ranks, total = case.layout.dp, 0
    for group in groups_of(ledger):
        part, start = padded_group(group, ranks) // ranks, 0
        for weight in group:
            if start < (rank + 1) * part and start + weight.elements > rank * part:
                total += weight.elements
            start += weight.elements
    return total


def _padding(case: Case, ledger: Ledger, rank: int) -> int:
    """Elements of the rank's part that no parameter fills."""
    ranks, total = case.layout.dp, 0
    for group in groups_of(ledger):
        part, filled = padded_group(group, ranks) // ranks, sum(weight.elements for weight in group)
        total += part - min(part, max(0, filled - rank * part))
    return total
