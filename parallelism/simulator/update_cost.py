"""What an update and clipping read, write and multiply, by rule and kernel: over the parameters that a rank updates."""

from __future__ import annotations

from collections.abc import Iterator

from parallelism.simulator.work import Moved, Product, Work
from parallelism.zero.redundancy import is_zero_redundancy
from suite.case import Case
from suite.formats import Formats, formats_of
from suite.operators import DType, Ledger, Weight
from suite.optimizers import kernel_of, rule_of
from suite.spec import OptimizerKernel, OptimizerKind, Precision

#: times that parameters, gradients and each of the moments are read or written for an element; AdamW has two moments.
#: Fused: each once in, parameters and moments once out. An operation at a time: torch/optim/adam.py,
#: _multi_tensor_adam (decay, lerp, mul, addcmul, sqrt, div, add, addcdiv) and sgd.py, _multi_tensor_sgd.
TOUCHES: dict[tuple[OptimizerKind, bool], tuple[int, int, int]] = {
    (OptimizerKind.ADAMW, True): (2, 1, 4),
    (OptimizerKind.ADAMW, False): (4, 2, 14),
    (OptimizerKind.SGD, True): (2, 1, 2),
    (OptimizerKind.SGD, False): (3, 3, 5),
    (OptimizerKind.ADAFACTOR, False): (3, 4, 4),
    (OptimizerKind.MUON, False): (3, 3, 4),
}
#: codes of a byte, each read and written; what is unpacked on the way stays on the chip
QUANTIZED_BYTES = 4
#: Newton-Schulz iterations of Muon (torch/optim/_muon.py, DEFAULT_NS_STEPS)
ORTHOGONAL_STEPS = 5
#: clipping reads gradients for their norm, and reads and writes them to scale them
CLIPPING_TOUCHES = 3


def shard_parts(case: Case) -> int:
    """Ranks among which parameters are divided for their update."""
    layout = case.layout
    if layout.fsdp > 1:
        return layout.shard_ranks
    if is_zero_redundancy(layout):
        return layout.replica_ranks
    return layout.dp if layout.is_deepspeed and layout.zero else 1


def update_work(case: Case, ledger: Ledger) -> list[Work]:
    """The kernels of a rank's clipping and update, one each for all tensors; the ledger is all that the rank holds.

    Counted: bytes of parameters, gradients and moments as the rule touches them; clipping; the scaler's division in
    fp16; DeepSpeed's copies between masters and what is computed with; Muon's products. Not counted: scalars.
    """
    formats, parts = formats_of(case), shard_parts(case)
    elements = ledger.parameters / parts
    works: list[Work] = [Moved(CLIPPING_TOUCHES * formats.gradients.nbytes * elements)]
    if case.workload.precision is Precision.FP16_MIXED:
        works.append(Moved(2 * formats.gradients.nbytes * elements))
    if case.layout.is_deepspeed and formats.parameters is not formats.optimizer:
        works.append(Moved(2 * (formats.parameters.nbytes + formats.optimizer.nbytes) * elements))
    for weight, is_in_block, count in _weights(ledger):
        works += _rule_work(case, formats, weight, is_in_block, count / parts)
    return _joined(works)


def _weights(ledger: Ledger) -> Iterator[tuple[Weight, bool, int]]:
    prefixes = {placed.segment: bool(placed.prefix) for placed in ledger.segments}
    for segment, count in ledger.counts.items():
        for weight in segment.weights:
            if not weight.tied_to:
                yield weight, prefixes[segment], count


def _rule_work(case: Case, formats: Formats, weight: Weight, is_in_block: bool, count: float) -> Iterator[Work]:
    rule = rule_of(case.workload.optimizer, weight.values, is_in_block)
    master = formats.optimizer if case.layout.is_deepspeed else formats.parameters
    if rule is OptimizerKind.ADAM_8BIT:
        touched = 2 * master.nbytes + formats.gradients.nbytes + QUANTIZED_BYTES
    else:
        is_fused = (rule, True) in TOUCHES and kernel_of(case) is OptimizerKernel.FUSED
        parameters, gradients, moments = TOUCHES[rule, is_fused]
        touched = parameters * master.nbytes + gradients * formats.gradients.nbytes + moments * formats.optimizer.nbytes
    yield Moved(touched * weight.elements * count)
    if rule is OptimizerKind.MUON:
        short, long = sorted(weight.values)
        for m, n, k in ((short, short, long), (short, short, short), (short, long, short)):
            yield Product(m, n, k, DType.BF16, ORTHOGONAL_STEPS * count)


def _joined(works: list[Work]) -> list[Work]:
    """All that is moved as one kernel: torch updates the tensors of a group together."""
    moved = sum(work.nbytes for work in works if isinstance(work, Moved))
    return [Moved(moved), *(work for work in works if not isinstance(work, Moved))]
