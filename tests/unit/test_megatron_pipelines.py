"""Megatron's pipelines as planned: chunks, orders, what waits for a message, what hides one; products and rings."""

from __future__ import annotations

from dataclasses import replace

import pytest

from parallelism.megatron.run import AttentionCore, MegatronRun, PipelineMemory
from parallelism.simulator.megatron.links import Axis
from parallelism.simulator.megatron.orders import chunk_layers, mean_times, pipeline_layout, ranks_wait_for_all
from parallelism.simulator.megatron.plan import Options, Sends, stage_plans, step_plan
from parallelism.simulator.megatron.rates import KernelRates
from parallelism.simulator.megatron.ring_links import RingLinks
from parallelism.simulator.megatron.step import megatron_step_seconds
from parallelism.simulator.megatron.timed import LayerKind, Machine, TensorOverlap, unit_of
from parallelism.simulator.megatron.work import Product
from parallelism.simulator.plan import Part
from suite.collectives import Call, Collective
from suite.models.decoder import Activation, DecoderSpec, Norm, Position

pytestmark = pytest.mark.unit

RATES = KernelRates(1e12, 1e12, 100)
#: 1 GB/s, and a second once round
LINKS = RingLinks(8, 1e9, 1e9, inner_latency_s=1.0, outer_latency_s=1.0)
FREE = RingLinks(8, 1e30, 1e30)


def run_of(layers: int = 8, pp: int = 4, **settings: object) -> MegatronRun:
    """A small GPT on four stages, eight micro-batches."""
    model = DecoderSpec(
        layers=layers, hidden=64, heads=4, ffn=256, vocab=1024, max_positions=32, norm=Norm.LAYERNORM,
        activation=Activation.GELU, position=Position.LEARNED, bias=True,
    )  # fmt: skip
    return MegatronRun(model, 32, 2, 8, pp=pp, attention=AttentionCore.UNFUSED, **settings)  # type: ignore[arg-type]


def test_short_chunks_are_the_models_first_and_last() -> None:
    """Ten blocks and two ends on four ranks of three chunks: one block each but beside the embedding and the head."""
    run = run_of(10, stage_layers=(2, 3, 3, 2), chunks=3, schedule=PipelineMemory.INTERLEAVED)
    layout = pipeline_layout(run)
    assert [chunk_layers(run, layout, stage) for stage in range(12)] == [0, *[1] * 10, 0]


def test_even_chunks_share_a_ranks_blocks() -> None:
    run = run_of(16, chunks=2, schedule=PipelineMemory.INTERLEAVED)
    assert {chunk_layers(run, pipeline_layout(run), stage) for stage in range(8)} == {2}
    v_shaped = replace(run, schedule=PipelineMemory.ZBV, chunks=1)
    assert {chunk_layers(v_shaped, pipeline_layout(v_shaped), stage) for stage in range(8)} == {2}


def test_zero_bubble_is_faster_than_1f1b_and_twice_the_memory_is_faster_still() -> None:
    machine = Machine(RATES, FREE)
    kinds = (PipelineMemory.ONE_F_ONE_B, PipelineMemory.ZB_H1, PipelineMemory.ZB_H2)
    plain, h1, h2 = (megatron_step_seconds(run_of(schedule=kind), machine) for kind in kinds)
    assert h2 < h1 < plain
    searched = [
        megatron_step_seconds(run_of(schedule=kind), machine) for kind in (PipelineMemory.ZB_1P, PipelineMemory.ZB_2P)
    ]
    assert searched[1] < searched[0] < plain


def test_only_zero_bubbles_ranks_update_without_waiting() -> None:
    waits = {kind: ranks_wait_for_all(run_of(schedule=kind)) for kind in PipelineMemory}
    assert {kind for kind, found in waits.items() if not found} == {
        PipelineMemory.ZB_H1, PipelineMemory.ZB_H2, PipelineMemory.ZB_1P, PipelineMemory.ZB_2P,
    }  # fmt: skip
    assert step_plan(run_of(schedule=PipelineMemory.ZB_2P), Machine(RATES, LINKS)).agree == 0


def test_a_stage_that_waits_for_its_sends_pays_for_each() -> None:
    """One second a message: forward on all but the last stage, backward on all but the first."""
    run, machine = run_of(), Machine(RATES, RingLinks(8, 1e30, 1e30, inner_latency_s=1.0, outer_latency_s=1.0))
    beside = stage_plans(run, machine)
    blocking = stage_plans(run, machine, Options(sends=Sends.BLOCKING))
    assert [stage.send for stage in beside] == [1.0] * 4
    assert [stage.send for stage in blocking] == [0.0] * 4

    def sent(kind: str) -> list[float]:
        costs = [[getattr(unit, kind) for unit in stage.units] for stage in blocking]
        return [sum(dict(cost.blocking).get(Part.PIPELINE, 0.0) for cost in stage) for stage in costs]

    assert sent("forward") == [1.0, 1.0, 1.0, 0.0]
    assert sent("inputs") == [0.0, 1.0, 1.0, 1.0]
    assert mean_times(blocking).forward - mean_times(beside).forward == pytest.approx(3 / 4)


@pytest.mark.parametrize(("sequence_parallel", "hidden"), [(False, 2), (True, 4)])
def test_a_backward_products_collective_hides_behind_its_other_half(sequence_parallel: bool, hidden: int) -> None:
    """Two column-divided products a block. Each sums its input's gradient over the ranks beside the weights' product;
    under sequence parallelism each gathers its input again beside the other one. Here products take far longer."""
    run = run_of(4, 1, tp=2, sequence_parallel=sequence_parallel)
    slow = Machine(replace(RATES, peak_flops_per_second=1.0), RingLinks(8, 1e30, 1e30, inner_latency_s=1.0))

    def talk(overlap: TensorOverlap, machine: Machine = slow) -> float:
        return dict(unit_of(LayerKind.BLOCK, run, machine, overlap=overlap).backward.blocking).get(Part.TENSOR, 0.0)

    once = 1.0 if sequence_parallel else 2.0  # an all-reduce goes round twice
    assert talk(TensorOverlap.BLOCKING) - talk(TensorOverlap.BACKWARD) == pytest.approx(hidden * once)
    slowed = Machine(replace(slow.rates, beside_collective=2.0), slow.links)
    assert talk(TensorOverlap.BLOCKING) - talk(TensorOverlap.BACKWARD, slowed) == pytest.approx(hidden * once / 2)


def test_nothing_hides_behind_products_that_take_no_time() -> None:
    run = run_of(4, 1, tp=2)
    quick = Machine(KernelRates(1e30, 1e30, 100), LINKS)
    one, other = (unit_of(LayerKind.BLOCK, run, quick, overlap=overlap).backward.seconds for overlap in TensorOverlap)
    assert one == pytest.approx(other)


def test_widths_that_are_not_aligned_cost_the_share() -> None:
    rates = replace(RATES, unaligned_share=0.5)
    even, odd = Product(128, 128, 192), Product(128, 128, 150)
    assert rates.product_seconds(even) == pytest.approx(even.flops / 1e12)
    assert rates.product_seconds(odd) == pytest.approx(2 * odd.flops / 1e12)
    assert rates.product_seconds(Product(100, 128, 192)) == pytest.approx(100 * 128 * 192 * 2 / 1e12)  # rows: any


def test_an_all_reduce_goes_round_twice() -> None:
    run = run_of(tp=8, pp=1)

    def seconds(collective: Collective, payload: int) -> float:
        return LINKS.seconds(Call(collective, 8, payload), Axis.TENSOR, run)

    gib = 2**30
    assert seconds(Collective.ALL_GATHER, 0) == 1.0
    assert seconds(Collective.ALL_REDUCE, 0) == 2.0
    assert seconds(Collective.ALL_REDUCE, gib) == pytest.approx(2 * seconds(Collective.REDUCE_SCATTER, gib))
