"""A Megatron step's kernels, messages and seconds: the papers' counts, the engine beside the closed form, bounds."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parallelism.megatron.parameters import stage_parameters
from parallelism.megatron.run import AttentionCore, MegatronOptimizer, MegatronRun, PipelineMemory
from parallelism.schedules.orders import order_of
from parallelism.simulator.engine import run as run_graph
from parallelism.simulator.megatron.block import block_layer
from parallelism.simulator.megatron.ends import head_layer
from parallelism.simulator.megatron.links import Axis, NodeLinks
from parallelism.simulator.megatron.plan import Options, Reduction, step_plan
from parallelism.simulator.megatron.rates import KernelRates
from parallelism.simulator.megatron.shape import Shape
from parallelism.simulator.megatron.state import reduce_calls, update_work
from parallelism.simulator.megatron.step import StagePass, megatron_step_seconds, one_f_one_b_seconds
from parallelism.simulator.megatron.timed import Machine
from parallelism.simulator.megatron.work import Product
from parallelism.simulator.plan import Cost, StagePlan, StepPlan, Unit
from parallelism.simulator.program import program_of
from suite.collectives import Call, Collective
from suite.layout import Layout, RecomputeKind
from suite.models.presets import PRESETS
from suite.parse import SpecError

pytestmark = pytest.mark.unit

GPT = PRESETS["megatron-22b"]
S, B, H, T = 2048, 4, GPT.hidden, 8
RUN = MegatronRun(
    GPT, S, B, micro_batches=8, tp=T, dropout=True, attention=AttentionCore.UNFUSED, optimizer=MegatronOptimizer.MIXED
)
RATES = KernelRates(312e12, 2e12, 108, matrix_share=0.75, memory_share=0.85, launch_s=5e-6, host_s=1e-5)
LINKS = NodeLinks(8, 230e9, 90e9, inner_latency_s=2e-5, outer_latency_s=5e-5)
MACHINE = Machine(RATES, LINKS)
CORES = (AttentionCore.UNFUSED, AttentionCore.FUSED)


def engine_seconds(run: MegatronRun, machine: Machine, options: Options) -> float:
    program = program_of(step_plan(run, machine, options))
    return run_graph(program.graph, program.sharing).total


# --- work --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tp", [1, 2, 8])
@pytest.mark.parametrize("sequence_parallel", [False, True])
def test_a_block_has_the_papers_flops(tp: int, sequence_parallel: bool) -> None:
    """24 b s h^2 + 4 b s^2 h forward and twice that backward, over t (arXiv:2104.04473, section 5.1)."""
    layer = block_layer(Shape.of(replace(RUN, tp=tp, sequence_parallel=sequence_parallel)))
    forward = (24 * B * S * H**2 + 4 * B * S**2 * H) / tp
    assert layer.forward.flops == forward
    assert layer.inputs.flops + layer.weights.flops == 2 * forward


def test_fused_attention_skips_the_masked_half() -> None:
    unfused, fused = (block_layer(Shape.of(replace(RUN, attention=core))) for core in CORES)
    assert unfused.forward.flops - fused.forward.flops == 2 * B * S**2 * H / T
    assert len(fused.forward.kernels) < len(unfused.forward.kernels)


def test_the_head_has_the_papers_flops() -> None:
    """2 b s h V forward, 4 backward, over t; V padded to 51200 as in the paper."""
    layer = head_layer(Shape.of(RUN))
    assert RUN.vocab_rows * T == 51200
    assert layer.forward.flops == 2 * B * S * H * 51200 / T
    assert layer.inputs.flops + layer.weights.flops == 2 * layer.forward.flops


def test_a_block_sums_twice_each_way_over_tensor_parallel_ranks() -> None:
    """arXiv:1909.08053, figure 4; gathered and scattered instead under sequence parallelism, and gathered twice more
    for the weights (arXiv:2205.05198, section 4.2.2)."""
    whole = 2 * S * B * H
    layer = block_layer(Shape.of(RUN))
    both = [layer.forward.calls, layer.inputs.calls]
    assert both == [(Call(Collective.ALL_REDUCE, T, whole),) * 2] * 2
    assert layer.weights.calls == ()
    spread = block_layer(Shape.of(replace(RUN, sequence_parallel=True)))
    kinds = [[call.collective for call in work.calls] for work in (spread.forward, spread.inputs, spread.weights)]
    assert [sorted(each) for each in kinds] == [
        ["all_gather"] * 2 + ["reduce_scatter"] * 2,
        ["all_gather"] * 2 + ["reduce_scatter"] * 2,
        ["all_gather"] * 2,
    ]
    assert block_layer(Shape.of(replace(RUN, tp=1))).forward.calls == ()


def test_the_fused_softmax_needs_heads_times_sequences_in_fours() -> None:
    """64 heads on 64 ranks: one head a rank. megatron/model/fused_softmax.py, is_kernel_available."""
    few = block_layer(Shape.of(replace(RUN, tp=64, micro_batch=2)))
    enough = block_layer(Shape.of(replace(RUN, tp=64, micro_batch=4)))
    assert len(few.forward.kernels) == len(enough.forward.kernels) + 4


def test_selective_recomputation_runs_the_core_again() -> None:
    """Two batched products of 2 b s^2 h / t each, nothing of the projections."""
    assert block_layer(Shape.of(RUN)).core_forward.flops == 4 * B * S**2 * H / T


def test_a_sharded_update_touches_its_own_part() -> None:
    whole = update_work(replace(RUN, dp=4), 0).moved
    parts = update_work(replace(RUN, dp=4, optimizer=MegatronOptimizer.DISTRIBUTED), 0).moved
    count = sum(stage_parameters(RUN, 0).values())
    assert whole == pytest.approx((8 + 4 + 28 + 6 + 4) * count)
    assert parts == pytest.approx((46 / 4 + 4) * count, rel=1e-6)


@pytest.mark.parametrize(
    ("optimizer", "collective", "size"),
    [
        (MegatronOptimizer.MIXED, Collective.ALL_REDUCE, 4),
        (MegatronOptimizer.DEEPSPEED_WHOLE, Collective.ALL_REDUCE, 2),
        (MegatronOptimizer.DISTRIBUTED, Collective.REDUCE_SCATTER, 4),
    ],
)
def test_gradients_are_reduced_in_their_format(optimizer: MegatronOptimizer, collective: Collective, size: int) -> None:
    assert reduce_calls(replace(RUN, dp=16, optimizer=optimizer), 1000) == (Call(collective, 16, size * 1000),)
    assert reduce_calls(replace(RUN, optimizer=optimizer), 1000) == ()


# --- rates and links -----------------------------------------------------------------------------------------------


def test_a_products_rate_is_half_at_the_half_sizes() -> None:
    """One wave of tiles where one wave is the half, a sum of 64 where 64 is."""
    rates = replace(RATES, half_waves=1.0, half_depth=64.0)
    product = Product(128 * 108, 128, 64)
    assert rates.product_seconds(product) == pytest.approx(4 * product.flops / (312e12 * 0.75))


def test_links_by_hand() -> None:
    """A ring over nodes shares the node's network with the groups beside it: tp 2 leaves four ranks of each of the two
    data-parallel groups in a node, so each ring has half of it."""
    run = replace(RUN, tp=2, dp=8)
    inside = LINKS.seconds(Call(Collective.ALL_REDUCE, 2, 10**9), Axis.TENSOR, run)
    assert inside == pytest.approx(2e-5 + 1e9 / 230e9)
    across = LINKS.seconds(Call(Collective.ALL_REDUCE, 8, 10**9), Axis.DATA, run)
    assert across == pytest.approx(5e-5 + 2 * 7 / 8 * 1e9 / 45e9)
    pipeline = replace(RUN, tp=4, pp=4, stage_layers=())
    sends = [LINKS.seconds(Call(Collective.SEND, 2, 10**9), Axis.PIPELINE, pipeline, place) for place in range(3)]
    assert sends == pytest.approx([2e-5 + 1 / 230, 5e-5 + 8 / 90, 2e-5 + 1 / 230])
    assert LINKS.seconds(Call(Collective.ALL_REDUCE, 1, 10**9), Axis.TENSOR, run) == 0


def test_rates_refuse_what_no_device_has() -> None:
    with pytest.raises(SpecError, match=r"rates.matrix_share: must be positive and finite, got 0"):
        replace(RATES, matrix_share=0)
    with pytest.raises(SpecError, match=r"rates.host_s: must not be negative, got -1"):
        replace(RATES, host_s=-1)


# --- the step ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("pp", "micro_batches"), [(2, 1), (4, 3), (4, 16), (8, 8)])
def test_equal_stages_have_the_papers_bubble(pp: int, micro_batches: int) -> None:
    """(m + p - 1)(f + b): arXiv:2104.04473, section 2.2.1."""
    stages = [StagePass(1.0, 2.5)] * pp
    assert one_f_one_b_seconds(stages, micro_batches) == pytest.approx((micro_batches + pp - 1) * 3.5)


@given(
    st.lists(st.tuples(st.floats(0.5, 2), st.floats(0.5, 4)), min_size=2, max_size=6),
    st.floats(0, 1.5),
    st.integers(1, 12),
)
@settings(max_examples=40, deadline=None)
def test_unequal_stages_take_what_the_engine_finds(
    passes: list[tuple[float, float]], send: float, micro_batches: int
) -> None:
    pp = len(passes)
    plan = StepPlan(
        tuple(order_of(Layout(pp=pp), micro_batches, place) for place in range(pp)),
        tuple(StagePlan((Unit("u", Cost(f), Cost(b), Cost()),), send) for f, b in passes),
        (Cost(),) * pp,
    )
    exact = run_graph(program_of(plan).graph).total
    found = one_f_one_b_seconds([StagePass(f, b, send) for f, b in passes], micro_batches)
    assert found == pytest.approx(exact, rel=1e-9)


@pytest.mark.parametrize("pp", [1, 2, 4, 8])
@pytest.mark.parametrize("dp", [1, 4])
@pytest.mark.parametrize("host_s", [1e-6, 1e-4])
def test_a_step_is_what_the_engine_finds(pp: int, dp: int, host_s: float) -> None:
    """First and last stage hold more than the others. Without a pipeline the host's head start on the first
    micro-batch is left out."""
    run = replace(RUN, tp=2, pp=pp, dp=dp, micro_batches=12, stage_layers=(), recompute=RecomputeKind.FULL)
    machine = Machine(replace(RATES, host_s=host_s), LINKS)
    found, exact = megatron_step_seconds(run, machine), engine_seconds(run, machine, Options())
    assert found == pytest.approx(exact, rel=0.003 if pp == 1 else 1e-9)


def test_interleaving_fills_the_bubble() -> None:
    """Chunks divide it: (p - 1) / (v m), arXiv:2104.04473, section 2.2.2; embedding and head make it inexact."""
    plain = replace(RUN, pp=4, stage_layers=(), micro_batches=8)
    chunks = replace(plain, schedule=PipelineMemory.INTERLEAVED, chunks=6)
    fast = Machine(replace(RATES, host_s=0.0, launch_s=0.0), NodeLinks(64, 1e15, 1e15))
    saved = 1 - megatron_step_seconds(chunks, fast) / megatron_step_seconds(plain, fast)
    assert saved == pytest.approx(1 - (1 + 3 / 48) / (1 + 3 / 8), rel=0.2)


def test_overlapped_reductions_hide_behind_the_backward_pass() -> None:
    run = replace(RUN, tp=1, dp=16, micro_batches=1)
    later, beside = (megatron_step_seconds(run, MACHINE, Options(reduction=kind)) for kind in Reduction)
    assert beside < later


@pytest.mark.parametrize("pp", [1, 4])
def test_a_device_is_never_faster_than_its_host_issues(pp: int) -> None:
    run = replace(RUN, pp=pp, stage_layers=())
    slow = Machine(replace(RATES, host_s=1e-3), LINKS)
    layer = block_layer(Shape.of(run))
    works = (layer.forward, layer.inputs, layer.weights)
    issued = sum(len(work.kernels) + len(work.calls) for work in works) * run.stage_layers[0] * run.micro_batches
    assert megatron_step_seconds(run, slow) > issued * 1e-3
    halved = replace(run, micro_batch=B // 2)
    assert megatron_step_seconds(halved, slow) == pytest.approx(megatron_step_seconds(run, slow), rel=0.02)


@pytest.mark.parametrize("name", ["matrix_share", "memory_share", "launch_s", "host_s", "inner", "outer"])
@pytest.mark.parametrize("pp", [1, 4])
def test_nothing_gets_faster_on_slower_parts(name: str, pp: int) -> None:
    run = replace(RUN, pp=pp, dp=4, stage_layers=(), recompute=RecomputeKind.SELECTIVE)
    slower = {
        "matrix_share": lambda: Machine(replace(RATES, matrix_share=0.5), LINKS),
        "memory_share": lambda: Machine(replace(RATES, memory_share=0.5), LINKS),
        "launch_s": lambda: Machine(replace(RATES, launch_s=1e-4), LINKS),
        "host_s": lambda: Machine(replace(RATES, host_s=1e-3), LINKS),
        "inner": lambda: Machine(RATES, replace(LINKS, inner_bytes_per_second=50e9)),
        "outer": lambda: Machine(RATES, replace(LINKS, outer_bytes_per_second=10e9)),
    }[name]()
    assert megatron_step_seconds(run, slower) > megatron_step_seconds(run, MACHINE)
