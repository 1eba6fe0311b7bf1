"""What each pipeline rank of a Megatron-LM run computes when, zero-bubble schedules included, and in which chunks."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from statistics import fmean

from parallelism.megatron.run import MegatronRun, PipelineMemory
from parallelism.schedules.orders import Action, order_of
from parallelism.schedules.zero_bubble import HandMade, hand_made_orders
from parallelism.schedules.zero_bubble_search import StageMemory, StageTimes, searched_orders
from parallelism.simulator.plan import StagePlan
from suite.layout import Layout, Schedule

LOOPS = {
    PipelineMemory.ONE_F_ONE_B: Schedule.ONE_F_ONE_B,
    PipelineMemory.INTERLEAVED: Schedule.INTERLEAVED,
    PipelineMemory.ZBV: Schedule.ZBV,
}
HAND_MADE = {PipelineMemory.ZB_H1: HandMade.ZB_H1, PipelineMemory.ZB_H2: HandMade.ZB_H2}
#: micro-batches a rank that the searched schedules may hold
SEARCHED = {PipelineMemory.ZB_1P: 1, PipelineMemory.ZB_2P: 2}


def pipeline_layout(run: MegatronRun) -> Layout:
    """The pipeline's part of a layout: one stage a rank for 1F1B and the zero-bubble schedules, chunks of it otherwise;
    interleaving with one chunk a rank is 1F1B."""
    schedule = LOOPS.get(run.schedule, Schedule.ONE_F_ONE_B)
    virtual = {Schedule.INTERLEAVED: run.chunks, Schedule.ZBV: 2}.get(schedule, 1)
    if run.pp == 1 or virtual == 1:
        return _layout(run.pp, Schedule.ONE_F_ONE_B, 1)
    return _layout(run.pp, schedule, virtual)


@lru_cache(maxsize=256)
def _layout(pp: int, schedule: Schedule, virtual: int) -> Layout:
    """Kept, for a layout is checked anew each time that it is made."""
    return Layout(pp=pp, schedule=schedule, virtual_stages=virtual)


def orders_of(run: MegatronRun, stages: Sequence[StagePlan]) -> tuple[tuple[Action, ...], ...]:
    """Every rank's passes. The searched schedules are made for the mean of the stages' own times."""
    if run.pp > 1 and run.schedule in HAND_MADE:
        return hand_made_orders(HAND_MADE[run.schedule], run.pp, run.micro_batches)
    if run.pp > 1 and run.schedule in SEARCHED:
        memory = stage_memory(run.model.hidden, run.model.heads, run.seq_len, SEARCHED[run.schedule] * run.pp)
        return searched_orders(run.pp, run.micro_batches, mean_times(stages), memory)
    layout = pipeline_layout(run)
    return tuple(order_of(layout, run.micro_batches, place) for place in range(run.pp))


def ranks_wait_for_all(run: MegatronRun) -> bool:
    """Does the update wait for every rank's gradients? Zero-bubble's is checked after the fact (arXiv:2401.10241,
    section 4): there a step costs the longest span of a rank, not the time from the first to the last."""
    return run.pp == 1 or not (run.schedule in HAND_MADE or run.schedule in SEARCHED)


def stage_memory(hidden: int, heads: int, seq_len: int, micro_batches: int) -> StageMemory:
    """A limit of so many micro-batches, in bytes a token and layer: 34 h + 5 a s held by a forward pass
    (arXiv:2205.05198, equation 1), of which 32 h wait for the weight gradient (arXiv:2401.10241, table 2)."""
    held = StageMemory(0.0, 2 * hidden + 5 * heads * seq_len, 32 * hidden)
    return StageMemory(micro_batches * held.forward, held.until_inputs, held.until_weights)


def mean_times(stages: Sequence[StagePlan]) -> StageTimes:
    """Of all stages: what their profiler would tell the search."""

    def mean(kind: str) -> float:
        return fmean(sum(getattr(unit, kind).seconds for unit in stage.units) for stage in stages)

    return StageTimes(mean("forward"), mean("inputs"), mean("weights"), fmean(stage.send for stage in stages[:-1]))


def chunk_layers(run: MegatronRun, layout: Layout, stage: int) -> int:
    """Blocks of a stage. Where a rank's do not divide evenly, the model's first and last chunk are short, for the
    embedding and the head count as a layer there."""
    place = stage if layout.schedule.is_v and stage < run.pp else stage % run.pp
    if layout.schedule.is_v and stage >= run.pp:
        place = layout.stages - 1 - stage
    each, rest = divmod(run.stage_layers[place], layout.virtual_stages)
    chunk = stage // run.pp
    from_front = chunk if place == run.pp - 1 else layout.virtual_stages - 1 - chunk
    return each + (from_front < rest)
