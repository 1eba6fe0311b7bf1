"""Overheads are taken apart from loops that were timed together: made-up rows give back what they were made of."""

import pytest

from parallelism.overheads.asking import (
    checkpoints,
    divided,
    engine_parts,
    exact_families,
    replicas,
    seconds_of,
    sharding,
    summaries,
    units,
)
from parallelism.overheads.pipeline_parts import messages, pipeline
from parallelism.overheads.shapes import (
    ENGINE_FEW,
    ENGINE_MANY,
    FEW,
    FEW_BATCHES,
    HALVES,
    LARGE_MESSAGE,
    LONG,
    LOTS,
    MANY,
    MANY_BATCHES,
    MESSAGES,
    SHORT,
    SMALL_MESSAGE,
    SOME,
    STAGES,
    TALL,
)
from suite.hardware.overheads import ContextCore, Engine, Kept, Overhead, ShardedUnit, TensorHalf, ZeroEngine, name_of

pytestmark = pytest.mark.unit


def test_a_unit_is_what_its_stack_has_over_a_bare_one() -> None:
    row = {"bare": 1.0, "kept": 1.0 + 2 * TALL, "freed": 1.0 + 3 * TALL, "reduced": 1.0 + 7 * TALL}
    assert units(row) == pytest.approx((2.0, 3.0, 7.0))


@pytest.mark.parametrize("beside_tensor", [False, True])
def test_hooks_gathers_and_reductions_of_units_and_parameters(beside_tensor: bool) -> None:
    row: dict[str, float] = {}
    for count in (FEW, MANY):
        hooks, gather, reduce = 5 + 0.5 * count, 3 + 0.3 * count, 2 + 0.2 * count
        row |= {f"gather.{count}": 10.0, f"scatter.{count}": 20.0, f"bare.{count}": 100.0}
        kept = hooks + gather + 10
        freed = kept + gather + 10
        for kind, seconds in (("kept", kept), ("freed", freed), ("reduced", freed + reduce + 20)):
            row[f"{kind}.{count}"] = 100 + TALL * seconds
    found = sharding(row, beside_tensor)
    assert found == pytest.approx(
        {
            name_of(Overhead.FSDP_HOOKS_UNIT, beside_tensor): 5,
            name_of(Overhead.FSDP_HOOKS_PARAMETER, beside_tensor): 0.5,
            name_of(Overhead.FSDP_GATHER_UNIT, beside_tensor): 3,
            name_of(Overhead.FSDP_GATHER_PARAMETER, beside_tensor): 0.3,
            name_of(Overhead.FSDP_REDUCE_UNIT, beside_tensor): 2,
            name_of(Overhead.FSDP_REDUCE_PARAMETER, beside_tensor): 0.2,
        }
    )


def test_a_divided_parameter_over_a_plain_one() -> None:
    row = {}
    for what, plain, wrapped in (("first", 1, 4), ("again", 2, 9), ("clip", 1, 2), ("update", 3, 8)):
        for count in (SOME, LOTS):
            row |= {f"{what}.plain.{count}": 7.0 + plain * count, f"{what}.divided.{count}": 8.0 + wrapped * count}
    assert divided(row) == pytest.approx(
        {
            Overhead.DIVIDED_USE: 3,
            Overhead.DIVIDED_ADD: 4,  # again: 7 more, 3 of which each use has
            Overhead.DIVIDED_CLIP: 1,
            Overhead.DIVIDED_UPDATE: 5,
        }
    )


def test_a_region_is_what_is_left_beside_its_forward_again() -> None:
    row = {}
    for length in (SHORT, LONG):
        for regions in (1, TALL):
            bare, forward = 3.0 * length * regions, 1.0 * length * regions
            row |= {f"bare.{length}.{regions}": bare, f"forward.{length}.{regions}": forward}
            row[f"whole.{length}.{regions}"] = bare + forward + regions * (2 + 0.5 * length)
            row[f"selective.{length}.{regions}"] = bare + forward + regions * (4 + 0.25 * length)
    assert checkpoints(row) == pytest.approx(
        {
            Overhead.REGION: 2,
            Overhead.REGION_OPERATOR: 0.5,
            Overhead.SELECTIVE_REGION: 4,
            Overhead.SELECTIVE_OPERATOR: 0.25,
        }
    )


def test_what_ddp_adds_to_a_micro_batch_and_to_a_reduction() -> None:
    row = {}
    for count in (SOME, LOTS):
        row |= {
            f"bare.{count}": 1.0 * count,
            f"left.{count}": 1.0 * count + 6 + 0.5 * count,
            f"all-reduce.{count}": 9.0,
        }
        row[f"reduced.{count}"] = row[f"left.{count}"] + 9 + 4 + 0.25 * count
    assert replicas(row) == pytest.approx(
        {
            Overhead.DDP_STEP: 6,
            Overhead.DDP_PARAMETER: 0.5,
            Overhead.DDP_REDUCE: 4,
            Overhead.DDP_REDUCE_PARAMETER: 0.25,
        }
    )


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_an_engines_micro_batch_and_step_without_their_collectives(stage: int) -> None:
    row = {"scalar": 1.0}
    for count in (ENGINE_FEW, ENGINE_MANY):
        row |= {f"all-reduce.{count}": 10.0 * count, f"gather.{count}": 20.0 * count, f"scatter.{count}": 30.0 * count}
        each = (0.0, 0.0, 10.0 * count, 30.0 * count)[stage]
        once = (10.0 * count, 30.0 * count + 1, 20.0 * count + 1, 1.0)[stage]
        for batches in (1, 2):
            bare = 100.0 + 2 * count * batches
            engine = bare + batches * (7 + 3 * count + each) + 11 + 5 * count + once
            row |= {f"bare.{count}.{batches}": bare, f"engine.{count}.{batches}": engine}
            row[f"rerun.{count}.{batches}"] = engine + 4 * count * batches
    expected = {
        Engine.MODULE: 3,
        Engine.RERUN: 4 if stage == 3 else 0,
        Engine.MICRO_BATCH: 7,
        Engine.MODULE_STEP: 5,
        Engine.STEP: 11,
    }
    assert engine_parts(row, stage) == pytest.approx(expected)


def test_rounds_are_averaged_over_ranks_before_their_median_is_taken() -> None:
    found = summaries(lambda row: {"twice": 2 * row["probe"]}, {"probe": [[1.0, 2.0, 100.0], [3.0, 4.0, 100.0]]})
    assert found["twice"].median == 6.0  # of 4, 6 and 200
    assert found["twice"].count == 3


def test_a_median_below_nothing_is_nothing() -> None:
    assert seconds_of(summaries(lambda row: dict(row), {"probe": [[-1.0, -2.0, 3.0]]})) == {"probe": 0.0}


def test_a_half_is_what_dividing_adds_to_a_stack_of_halves() -> None:
    half = TensorHalf(2, 4, 1, 64, 32, sequence_parallel=True)
    [family] = exact_families([], [], [], [half, half])
    assert (family.name, family.ranks) == ("tensor", 8)
    row = {"bare.forward": 1.0, "bare.whole": 3.0}
    row |= {"divided.forward": 1.0 + 2 * HALVES, "divided.whole": 3.0 + 5 * HALVES}
    assert family.formula(row) == {half.name(whole=False): 2.0, half.name(whole=True): 5.0}
    assert half.name(whole=True) == "tensor.sequence.2r4g.1x64x32.forward-backward"


def test_what_is_measured_at_a_cases_own_shape_has_its_own_names() -> None:
    core = ContextCore("ring", "flash", True, 2, 1, 4, 32, 8, 4, 8)
    unit = ShardedUnit(2, 2, 9, 4096, True)
    engine = ZeroEngine(3, 4)
    parts = exact_families([core, core], [unit], [engine])
    assert [(part.name, part.ranks) for part in parts] == [("context", 2), ("units", 4), ("engine", 4)]
    names = parts[0].formula({"forward": 1.0, "whole": 2.0})
    assert names == {core.name(whole=False): 1.0, core.name(whole=True): 2.0}
    assert unit.name(Kept.FREED) == "fsdp.2r2g.9p.4096b.beside-tensor.freed"
    assert engine.name(Engine.STEP) == "zero3.4r.step"


def test_a_schedule_is_its_passes_and_what_is_left_of_a_step() -> None:
    row = {}
    for batches in (FEW_BATCHES, MANY_BATCHES):
        row |= {f"stages.{batches}": 11.0 * batches, f"schedule.{batches}": 5 + (11 + 2 * STAGES * 3.0) * batches}
    for parameters, operators in ((FEW, SHORT), (MANY, SHORT), (FEW, LONG)):
        gradient, whole = 10.0 + operators, 20.0 + operators + parameters
        inputs, weights = 7 + 0.5 * parameters + 0.25 * operators, 4 + 0.75 * parameters
        sizes = f"{parameters}.{operators}"
        row |= {f"gradient.{sizes}": gradient, f"inputs.{sizes}": gradient + inputs}
        row |= {f"whole.{sizes}": whole, f"split.{sizes}": whole + inputs + weights}
    assert pipeline(row) == pytest.approx(
        {
            Overhead.PIPELINE_STEP: 5,
            Overhead.PIPELINE_PASS: 3,
            Overhead.INPUTS: 7,
            Overhead.INPUTS_PARAMETER: 0.5,
            Overhead.INPUTS_OPERATOR: 0.25,
            Overhead.WEIGHTS: 4,
            Overhead.WEIGHTS_PARAMETER: 0.75,
        }
    )


def test_a_message_costs_as_much_to_send_as_to_receive() -> None:
    row = {"work": 50.0}
    for size in (SMALL_MESSAGE, LARGE_MESSAGE):
        row[f"message.{size}"] = 50 + MESSAGES * 2 * (3 + size * 1e-3)
    assert messages(row) == pytest.approx({Overhead.PIPELINE_MESSAGE: 3, Overhead.PIPELINE_BYTE: 1e-3})
