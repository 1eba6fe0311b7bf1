"""What DeepSpeed's ZeRO sends in a step, collective by collective, exact."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, pairwise

from parallelism.zero.config import (
    DEFAULT_BUCKET_ELEMENTS,
    Parameter,
    bucket_elements,
    element_bytes,
    groups_of,
    padded_group,
    parameters_of,
)
from suite.case import Case
from suite.collectives import Collective, Message
from suite.layout import Offload
from suite.operators import Ledger, Segment, Weight
from suite.spec import LOSS_CHUNKS, LossKernel, Precision

STAGE_0, STAGE_1_2, STAGE_3 = "deepspeed/runtime/engine.py", "zero/stage_1_and_2.py", "zero/stage3.py"


def messages(case: Case, ledger: Ledger, rank: int) -> tuple[Message, ...]:
    """The collectives of one steady optimizer step, the same on every rank.

    Counted: gradients, parameters, the norm of each group of parameters, bf16's overflow flag in stages 1 and 2. Not
    counted: the broadcast of the weights when the engine is made; stage 3's check, in its first steps and after a
    validation, that all ranks run modules in the same order. Buckets fill in the order of the backward pass (stage 1:
    of the optimizer's groups); where a kernel makes two gradients in the other order an edge may lie elsewhere.
    Sources: DeepSpeed 0.19, engine.py (buffered_allreduce_fallback), zero/stage_1_and_2.py (average_tensor,
    get_grad_norm_direct, all_gather_dp_groups), zero/stage3.py, zero/partitioned_param_coordinator.py.
    """
    stage = case.layout.zero
    if stage == 0:
        sizes = (item.elements for item in parameters_of(ledger))
        return _all_reduces(case, _joined(sizes, DEFAULT_BUCKET_ELEMENTS), 1, STAGE_0)
    if stage == 3:
        return (*_gathers(case, ledger), *_scatters(case, ledger), *_norms(case, ledger))
    groups = groups_of(ledger)
    order = reversed(parameters_of(ledger)) if stage == 2 else chain.from_iterable(groups)
    passes = case.workload.micro_batches if stage == 2 else 1
    return (
        *_all_reduces(case, _full(order, groups, case), passes, STAGE_1_2),
        *_overflow(case),
        *_norms(case, ledger),
        *_new_parameters(case, ledger),
    )


def _message(case: Case, collective: Collective, payload: int, count: int, *words: str) -> Message:
    return Message(collective, "dp", case.layout.dp, payload, count, *words)


def _all_reduces(case: Case, buckets: Iterable[int], passes: int, source: str) -> tuple[Message, ...]:
    """Stages 0 to 2 all-reduce: DeepSpeed's stage 2 too, since use_multi_rank_bucket_allreduce is its default; each
    rank then keeps its part. It does so in every micro-batch, stages 0 and 1 on the last one alone."""
    size = element_bytes(case.workload.precision)
    formula = f"elements of the bucket*{size}" + (", in each of m micro-batches" if case.layout.zero == 2 else "")
    return tuple(
        _message(case, Collective.ALL_REDUCE, elements * size, count * passes, "average the gradients", formula, source)
        for elements, count in Counter(buckets).items()
    )


def _overflow(case: Case) -> tuple[Message, ...]:
    """A byte that says whether some rank has met infinity."""
    if case.workload.precision is not Precision.BF16_MIXED:
        return ()
    return (_message(case, Collective.ALL_REDUCE, 1, 1, "has a gradient overflowed", "1", STAGE_1_2),)


def _norms(case: Case, ledger: Ledger) -> tuple[Message, ...]:
    """The square of the norm, a scalar a group: stage 3 has it in fp64, unless gradients are offloaded."""
    is_wide = case.layout.zero == 3 and case.layout.offload is Offload.NONE
    size, source = 8 if is_wide else 4, STAGE_3 if case.layout.zero == 3 else STAGE_1_2
    count = len(groups_of(ledger))
    return (_message(case, Collective.ALL_REDUCE, size, count, "norm of the gradients", str(size), source),)


def _new_parameters(case: Case, ledger: Ledger) -> tuple[Message, ...]:
    size = element_bytes(case.workload.precision)
    return tuple(
        _message(
            case, Collective.ALL_GATHER, padded_group(group, case.layout.dp) * size, 1,
            "spread the new parameters", f"group's elements, to a multiple of 2N, *{size}", STAGE_1_2,
        )
        for group in groups_of(ledger)
    )  # fmt: skip


def _gathers(case: Case, ledger: Ledger) -> tuple[Message, ...]:
    """Stage 3: each module's own parameters, padded to the ranks, in forward and in backward of every micro-batch.

    A block that is rerun gathers its modules once more, except its last: backward already holds it when it finds that
    it must rerun. A chunked loss calls the head once a slice and reruns each call.
    """
    size, ranks = element_bytes(case.workload.precision), case.layout.dp
    counts: Counter[int] = Counter()
    for index, placed in enumerate(ledger.segments):
        covered = placed.prefix.startswith("blocks.") and case.layout.recompute.covers_block(index - 1)
        modules = list(modules_of(placed.segment).values())
        for place, weights in enumerate(modules):
            payload = sum(padded(weight.elements, ranks) for weight in weights) * size
            again = covered and place < len(modules) - 1
            counts[payload] += case.workload.micro_batches * _uses(case, placed.segment, ledger, again)
    return tuple(
        _message(
            case, Collective.ALL_GATHER, payload, count,
            "gather a module's parameters, forward, backward, and when it is rerun",
            f"sum of ceil(elements/N)*N*{size}", STAGE_3,
        )
        for payload, count in counts.items()
    )  # fmt: skip


def _uses(case: Case, segment: Segment, ledger: Ledger, again: bool) -> int:
    """How often a micro-batch gathers a module of the segment."""
    if segment.name in ledger.loss and case.workload.loss is LossKernel.CHUNKED:
        return 3 * min(LOSS_CHUNKS, case.workload.seq_len)
    return 3 if again else 2


def _scatters(case: Case, ledger: Ledger) -> tuple[Message, ...]:
    """Stage 3: a bucket's gradients, each padded to the ranks, in every micro-batch."""
    size, ranks, limit = element_bytes(case.workload.precision), case.layout.dp, bucket_elements(case)
    counts: Counter[int] = Counter()
    for bucket in _fill(reversed(parameters_of(ledger)), limit):
        counts[sum(padded(item.elements, ranks) for item in bucket) * size] += case.workload.micro_batches
    return tuple(
        _message(
            case, Collective.REDUCE_SCATTER, payload, count, "average the gradients and keep a part of each",
            f"sum over the bucket of ceil(elements/N)*N*{size}", STAGE_3,
        )
        for payload, count in counts.items()
    )  # fmt: skip


def padded(elements: int, ranks: int) -> int:
    """Elements of a parameter whose flat form is cut into equal parts."""
    return math.ceil(elements / ranks) * ranks


def modules_of(segment: Segment) -> dict[str, list[Weight]]:
    """The weights of each module that has some, in forward order."""
    modules: dict[str, list[Weight]] = {}
    for weight in segment.weights:
        modules.setdefault(weight.name.rpartition(".")[0], []).append(weight)
    return modules


def _fill(order: Iterable[Parameter], limit: int) -> Iterator[list[Parameter]]:
    """Buckets as stages 1 to 3 fill them: one is sent when the next gradient would not fit, a larger one alone."""
    bucket: list[Parameter] = []
    for item in order:
        if bucket and sum(other.elements for other in bucket) + item.elements > limit:
            yield bucket
            bucket = []
        bucket.append(item)
    if bucket:
        yield bucket


def _full(order: Iterable[Parameter], groups: Sequence[Sequence[Parameter]], case: Case) -> Iterator[int]:
    """Elements of stage 1's and 2's all-reduces. A gradient beyond the bucket goes as slices, one a rank that owns a
    part of it, joined until they pass the bucket's size."""
    limit = bucket_elements(case)
    for bucket in _fill(order, limit):
        elements = sum(item.elements for item in bucket)
        if elements <= limit:
            yield elements
        else:
            yield from _joined(_slices(bucket[0], groups, case.layout.dp), limit)


def _slices(wanted: Parameter, groups: Sequence[Sequence[Parameter]], ranks: int) -> Iterator[int]:
    """A parameter cut where its group's flat buffer passes from one rank to the next."""
    (group,) = (group for group in groups if wanted in group)
    start = sum(item.elements for item in group[: group.index(wanted)])
    end, part = start + wanted.elements, padded_group(group, ranks) // ranks
    for low, high in pairwise((start, *range((start // part + 1) * part, end, part), end)):
        yield high - low


def _joined(sizes: Iterable[int], limit: int) -> Iterator[int]:
    """Sizes summed until they are beyond a limit, over and over."""
    total = 0
    for size in sizes:
        total += size
        if total > limit:
            yield total
            total = 0
    if total:
        yield total
