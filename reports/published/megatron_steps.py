"""Step times of published Megatron-LM runs: the row's run, planned and simulated on its source's machine."""

from __future__ import annotations

from dataclasses import replace

from parallelism.megatron.run import MegatronRun
from parallelism.simulator.engine import run as run_graph
from parallelism.simulator.equal_stages import longest_span
from parallelism.simulator.megatron.orders import mean_times, ranks_wait_for_all
from parallelism.simulator.megatron.plan import Sends, step_plan
from parallelism.simulator.megatron.timed import LayerKind, unit_of
from parallelism.simulator.plan import StepPlan
from parallelism.simulator.program import program_of
from reports.published.fitted import Constants
from reports.published.megatron_machines import Source, source_of
from reports.published.megatron_runs import megatron_run
from reports.published.models import refuse_what_no_run_models
from reports.published.step_time import Flops, StepTime
from suite.layout import RecomputeKind
from suite.published import PublishedRow


def megatron_step(row: PublishedRow, constants: Constants) -> StepTime:
    """What a step of the row's run takes. CannotModel, UnreadableCell or SpecError with the reason where it cannot be
    planned."""
    refuse_what_no_run_models(row)
    source = source_of(row.family)
    described = megatron_run(row)
    run = described.run
    options = source.options
    if not ranks_wait_for_all(run):  # its runtime sends beside what it computes
        options = replace(options, sends=Sends.BESIDE)
    plan = step_plan(run, source.machine, options)
    return StepTime(
        seconds=step_seconds(run, plan),
        sequences=run.micro_batch * run.micro_batches * run.dp,
        seq_len=run.seq_len,
        gpus=run.tp * run.cp * run.pp * run.dp,
        basis="Megatron's kernels and messages, simulated",
        flops=published_flops(row, run),
        assumed=described.assumed + source.assumed,
        fitted_on=source.rows,
        others=_layer_seconds(run, source) | _stage_seconds(plan),
    )


def step_seconds(run: MegatronRun, plan: StepPlan) -> float:
    """From the first pass to the last update, or what a step costs where ranks do not wait for each other."""
    program = program_of(plan)
    times = run_graph(program.graph, program.sharing)
    return times.total if ranks_wait_for_all(run) else longest_span(program, times)


def published_flops(row: PublishedRow, run: MegatronRun) -> Flops:
    """FLOPs of a step as these sources count them: 72 B s l h^2 (1 + s / 6 h + V / 12 l h) and what is recomputed, the
    blocks' or the attention core's forward products (arXiv:2104.04473, section 5.1; arXiv:2205.05198, appendix A).

    bigscience's first calculator leaves attention and logits out, as its rows' notes say. Counted for an MLP of two
    matrices, 4 h wide.
    """
    m, s = run.model, run.seq_len
    blocks = 24.0 * run.micro_batch * run.micro_batches * run.dp * s * m.layers * m.hidden**2
    square, logits = s / (6 * m.hidden), run.model.vocab / (12 * m.layers * m.hidden)
    if row.says("notes", "old calculator"):
        square = logits = 0.0
    again = {RecomputeKind.FULL: 1 + square, RecomputeKind.SELECTIVE: square}.get(run.recompute, 0.0)
    return Flops(model=3 * blocks * (1 + square + logits), recomputed=blocks * again)


def _layer_seconds(run: MegatronRun, source: Source) -> dict[str, float]:
    """A block's passes of one micro-batch, what is recomputed with the backward one."""
    unit = unit_of(LayerKind.BLOCK, run, source.machine, run.recompute, source.options.tensor)
    forward, backward = unit.forward.seconds, (unit.rerun + unit.backward).seconds
    return {
        "per_layer_fwd_time_seconds": forward,
        "per_layer_bwd_time_seconds": backward,
        "per_layer_fwd_plus_bwd_time_seconds": forward + backward,
    }


def _stage_seconds(plan: StepPlan) -> dict[str, float]:
    """Means over the stages of what zero-bubble profiles: TF, TB (inputs), TW and a message."""
    if len(plan.stages) == 1:
        return {}
    times = mean_times(plan.stages)
    return {
        "stage_time_TF_seconds": times.forward,
        "stage_time_TB_seconds": times.inputs,
        "stage_time_TW_seconds": times.weights,
        "stage_time_Tcomm_seconds": times.send,
    }
