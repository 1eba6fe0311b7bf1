"""Pipeline stages: which blocks each holds, even, balanced by cost or given, and which stages a rank holds."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate, pairwise
from math import gcd

from suite.case import Case
from suite.layout import Layout
from suite.models.ledgers import ledger_of
from suite.spec import AttentionKernel
from suite.tape import FP32, Backend


@dataclass(frozen=True)
class Stage:
    """A run of blocks, and what comes before the first block and after the last."""

    index: int
    blocks: range
    has_embedding: bool
    has_head: bool


def stages_of(case: Case) -> tuple[Stage, ...]:
    """Every stage of the case's pipeline in forward order; one stage of everything without a pipeline.

    The first has the embedding and the learned positions, the last the final norm, the head and the loss.
    """
    counts = block_counts(case)
    ends = list(accumulate(counts, initial=0))
    last = len(counts) - 1
    return tuple(
        Stage(index, range(start, end), index == 0, index == last) for index, (start, end) in enumerate(pairwise(ends))
    )


def block_counts(case: Case) -> tuple[int, ...]:
    """Blocks of stage 0, 1, ...: as given, even, or so that the dearest stage is as cheap as can be."""
    layout = case.layout
    if layout.stage_split.layers:
        return layout.stage_split.layers
    if layout.stages == 1:
        return (case.model.layers,)
    if layout.stage_split.is_balanced:
        costs = block_costs(case)
        unit = gcd(*costs)  # splits of costs that are multiples of others' are the same, and are worked out once
        return balanced_split(tuple(cost // unit for cost in costs), layout.stages)
    return even_split(case.model.layers, layout.stages)


def even_split(blocks: int, stages: int) -> tuple[int, ...]:
    """As many blocks a stage, within one; the earlier stages have one more, for the last has the head."""
    return tuple(blocks // stages + (stage < blocks % stages) for stage in range(stages))


def block_costs(case: Case) -> tuple[int, ...]:
    """FLOPs of each block's forward and backward for one micro-batch, what comes before and after in the end blocks'.

    Counted: matrix products and attention, half of it where the kernel skips what is masked, and what checkpointing
    reruns. Not counted: norms, activations, softmax, the loss, the embedding's look-up, which is no arithmetic.
    """
    causal = case.workload.attention is AttentionKernel.FLASH
    ledger = ledger_of(case.model, case.workload, case.layout.recompute, FP32, Backend.CUDA)
    by_segment = {
        segment: sum(item.flops.total(causal) for item in segment.operators() if item.is_matrix_work)
        + sum(item.flops.forward_only(causal) for item in segment.recomputed if item.is_matrix_work)
        for segment in ledger.counts
    }
    costs = [by_segment[placed.segment] for placed in ledger.segments]
    is_block = [placed.prefix.startswith("blocks.") for placed in ledger.segments]
    first, end = is_block.index(True), len(is_block) - is_block[::-1].index(True)
    blocks = costs[first:end]
    blocks[0] += sum(costs[:first])
    blocks[-1] += sum(costs[end:])
    return tuple(int(cost) for cost in blocks)


@lru_cache(maxsize=1024)
def balanced_split(costs: tuple[int, ...], stages: int) -> tuple[int, ...]:
    """Items a stage, contiguous and at least one each, whose dearest stage is as cheap as can be.

    Of the splits that reach that, the one with the least sum of squared costs, so that the other stages are even too;
    of those still equal, the one that gives the earlier stages more. Exact, by dynamic programming over the stages and
    the first item of each.
    """
    sums = list(accumulate(costs, initial=0))
    bound = _smallest_bound(sums, stages)
    count = len(costs)
    #: best[start]: (sum of squares, items of each stage) of the items from `start` on, in so many stages
    best: dict[int, tuple[int, tuple[int, ...]]] = {count: (0, ())}
    for later in range(stages):
        found: dict[int, tuple[int, tuple[int, ...]]] = {}
        for start in range(stages - later - 1, count - later):
            for end in range(start + 1, count + 1):
                cost = sums[end] - sums[start]
                if cost > bound:
                    break
                if end in best:
                    squares, rest = best[end]
                    option = (squares + cost * cost, (end - start, *rest))
                    if start not in found or (option[0], [-n for n in option[1]]) < (
                        found[start][0], [-n for n in found[start][1]]
                    ):  # fmt: skip
                        found[start] = option
        best = found
    return best[0][1]


def _smallest_bound(sums: list[int], stages: int) -> int:
    """The least cost under which every stage can stay: one of the runs' own costs, found by bisection."""
    runs = sorted({end - start for place, start in enumerate(sums) for end in sums[place + 1 :]})
    low, high = 0, len(runs) - 1
    while low < high:
        middle = (low + high) // 2
        if _stages_needed(sums, runs[middle]) <= stages:
            high = middle
        else:
            low = middle + 1
    return runs[low]


def _stages_needed(sums: list[int], bound: int) -> int:
    """Stages of at most `bound` each that hold all items, filled in order; more than there are items if none do."""
    needed, start = 1, 0
    for end in range(1, len(sums)):
        if sums[end] - sums[end - 1] > bound:
            return len(sums)
        if sums[end] - sums[start] > bound:
            needed, start = needed + 1, end - 1
    return needed


def rank_of_stage(layout: Layout, stage: int) -> int:
    """The pipeline rank that holds a stage: round and round (loop), or down the ranks and up again (V)."""
    if layout.schedule.is_v:
        return stage if stage < layout.pp else 2 * layout.pp - 1 - stage
    return stage % layout.pp


def stages_of_rank(layout: Layout, pp_rank: int) -> tuple[int, ...]:
    """The stages that a pipeline rank holds, in forward order."""
    if layout.schedule.is_v:
        return pp_rank, 2 * layout.pp - 1 - pp_rank
    return tuple(range(pp_rank, layout.stages, layout.pp))


def head_is_copied(case: Case) -> bool:
    """Is a tied head a parameter of its own, whose gradient is summed with the embedding's?

    Where the first and the last stage are on different ranks it has to be. Where one rank holds both, it is the
    embedding's own tensor, unless FSDP2 or tensor parallelism shards the stages, each by itself.
    """
    layout = case.layout
    is_apart = not layout.schedule.is_v or layout.fsdp > 1 or layout.tp > 1
    return case.model.tied and layout.pp > 1 and is_apart
