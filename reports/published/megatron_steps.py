"""Step times of published Megatron-LM runs: the row's run, planned and simulated on its source's machine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from parallelism.megatron.run import MegatronRun
from parallelism.simulator.megatron.orders import mean_times, ranks_wait_for_all
from parallelism.simulator.megatron.plan import Options, Sends, stage_plans
from parallelism.simulator.megatron.step import megatron_step_seconds
from parallelism.simulator.megatron.timed import LayerKind, Machine, unit_of
from parallelism.simulator.plan import StagePlan
from reports.published.answers import CannotModel
from reports.published.megatron_machines import SOURCES, Source, machine_of
from reports.published.megatron_runs import megatron_run
from reports.published.models import refuse_what_no_run_models
from reports.published.step_time import Flops, StepTime
from reports.published.time_constants import FittedSet
from suite.layout import RecomputeKind
from suite.published import PublishedRow


def megatron_step(row: PublishedRow, sets: Mapping[str, FittedSet]) -> StepTime:
    """What a step of the row's run takes. CannotModel, UnreadableCell or SpecError with the reason where it cannot be
    planned."""
    if row.family not in SOURCES:
        raise CannotModel(f"{row.family}: its machine is not described")
    return step_on(row, SOURCES[row.family], sets)


def selene_step(row: PublishedRow, sets: Mapping[str, FittedSet]) -> StepTime:
    """A row of another source on Selene's machine: what its constant is fitted with."""
    return step_on(row, SOURCES["sc21"], sets)


def step_on(row: PublishedRow, source: Source, sets: Mapping[str, FittedSet]) -> StepTime:
    """The row's run on a source's machine."""
    refuse_what_no_run_models(row)
    described, machine = megatron_run(row), machine_of(source, sets)
    run, options = described.run, source.options
    if not ranks_wait_for_all(run):  # its runtime sends beside what it computes
        options = replace(options, sends=Sends.BESIDE)
    return StepTime(
        seconds=megatron_step_seconds(run, machine, options),
        sequences=run.micro_batch * run.micro_batches * run.dp,
        seq_len=run.seq_len,
        gpus=run.tp * run.cp * run.pp * run.dp,
        basis="Megatron step, kernel by kernel",
        flops=published_flops(row, run),
        assumed=described.assumed + source.assumed,
        fitted_on=sets[source.fitted].rows,
        others=_layer_seconds(run, machine, options) | _stage_seconds(stage_plans(run, machine, options)),
    )


def published_flops(row: PublishedRow, run: MegatronRun) -> Flops:
    """FLOPs of a step as these sources count them: 72 B s l h^2 (1 + s / 6 h + V / 12 l h) and what is recomputed, the
    blocks' forward products (arXiv:2104.04473, section 5.1) or s / 6 h once more of all three passes, as the paper on
    selective recomputation has it (arXiv:2205.05198, appendix A).

    bigscience's first calculator leaves attention and logits out, as its rows' notes say. Counted for an MLP of two
    matrices, 4 h wide.
    """
    m, s = run.model, run.seq_len
    blocks = 24.0 * run.micro_batch * run.micro_batches * run.dp * s * m.layers * m.hidden**2
    square, logits = s / (6 * m.hidden), run.model.vocab / (12 * m.layers * m.hidden)
    if row.says("notes", "old calculator"):
        square = logits = 0.0
    again = {RecomputeKind.FULL: 1 + square, RecomputeKind.SELECTIVE: 3 * square}.get(run.recompute, 0.0)
    return Flops(model=3 * blocks * (1 + square + logits), recomputed=blocks * again)


def _layer_seconds(run: MegatronRun, machine: Machine, options: Options) -> dict[str, float]:
    """A block's passes of one micro-batch, what is recomputed with the backward one."""
    unit = unit_of(LayerKind.BLOCK, run, machine, run.recompute, options.tensor)
    forward, backward = unit.forward.seconds, (unit.rerun + unit.backward).seconds
    return {
        "per_layer_fwd_time_seconds": forward,
        "per_layer_bwd_time_seconds": backward,
        "per_layer_fwd_plus_bwd_time_seconds": forward + backward,
    }


def _stage_seconds(stages: tuple[StagePlan, ...]) -> dict[str, float]:
    """Means over the stages of what zero-bubble profiles: TF, TB (inputs), TW and a message."""
    if len(stages) == 1:
        return {}
    times = mean_times(stages)
    return {
        "stage_time_TF_seconds": times.forward,
        "stage_time_TB_seconds": times.inputs,
        "stage_time_TW_seconds": times.weights,
        "stage_time_Tcomm_seconds": times.send,
    }
