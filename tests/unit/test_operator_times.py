"""Operator times: lookup by hand-made points, a calibration's file, and what a ledger comes to."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from parallelism.simulator.cpu_operators import Use, format_of, untimed, uses_of
from suite.case import Case, case_from
from suite.hardware.calibration import Calibration, Machine, read_calibration, write_calibration
from suite.hardware.operator_times import Crowd, Format, OperatorTime, OperatorTimes, Timed
from suite.models.experts import Balance, Dispatch, Experts, Scoring
from suite.models.experts_sizes import experts_of, sizes_of
from suite.models.ledgers import ledger_of
from suite.parse import SpecError
from suite.tape import BF16_AUTOCAST, FP32, Backend

ALONE = Crowd(1, 2)


def time_of(operator: Timed, shape: tuple[int, ...], seconds: float) -> OperatorTime:
    """Forward that long, inputs' gradient as long, weights' twice as long."""
    return OperatorTime(operator, shape, Format.FP32, 1, 2, seconds, seconds, 2 * seconds, 0.0, 9)


LADDER = OperatorTimes(
    (
        time_of(Timed.LINEAR, (100, 10, 10), 1e-4),
        time_of(Timed.LINEAR, (100, 40, 10), 4e-4),
        time_of(Timed.ADD, (10, 10), 1e-6),
    )
)


@pytest.mark.unit
def test_a_measured_shape_is_looked_up_as_it_is() -> None:
    found = LADDER.seconds(Timed.LINEAR, (100, 40, 10), Format.FP32, ALONE)
    assert (found.forward, found.inputs, found.weights, found.basis) == (4e-4, 4e-4, 8e-4, "")


@pytest.mark.unit
def test_between_sizes_the_line_is_straight_in_logs_and_the_basis_says_so() -> None:
    found = LADDER.seconds(Timed.LINEAR, (200, 10, 10), Format.FP32, ALONE)  # twice the work of the first
    assert found.forward == pytest.approx(2e-4)
    assert found.weights == pytest.approx(4e-4)
    assert found.basis == "linear 200x10x10 interpolated"


@pytest.mark.unit
def test_above_the_largest_its_rate_holds_and_below_the_smallest_its_time() -> None:
    large = LADDER.seconds(Timed.LINEAR, (1000, 40, 10), Format.FP32, ALONE)
    assert large.forward == pytest.approx(4e-3)
    assert "beyond" in large.basis
    assert LADDER.seconds(Timed.LINEAR, (1, 1, 1), Format.FP32, ALONE).forward == pytest.approx(1e-4)


@pytest.mark.unit
@pytest.mark.parametrize(
    ("operator", "kind", "crowd"),
    [
        (Timed.GELU, Format.FP32, ALONE),
        (Timed.ADD, Format.BF16, ALONE),
        (Timed.ADD, Format.FP32, Crowd(2, 1)),
    ],
)
def test_what_was_not_measured_is_refused(operator: Timed, kind: Format, crowd: Crowd) -> None:
    with pytest.raises(SpecError, match=f"{operator} in {kind} for .* was not measured"):
        LADDER.seconds(operator, (10, 10), kind, crowd)


@pytest.mark.unit
def test_ranks_share_the_cores() -> None:
    assert [Crowd.of(ranks, 2) for ranks in (1, 2, 8)] == [Crowd(1, 2), Crowd(2, 1), Crowd(2, 1)]
    assert Crowd.of(4, 16) == Crowd(4, 4)


def a_calibration() -> Calibration:
    return Calibration(Machine("a CPU", 2, "2.13", "passive"), LADDER.times, overheads={"module.call": 1e-6})


@pytest.mark.unit
def test_a_file_is_read_back_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "calibration.json"
    write_calibration(a_calibration(), path)
    assert read_calibration(str(path)) == a_calibration()
    assert len(path.read_text().splitlines()) < 25  # a line a measurement


@pytest.mark.unit
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"schema": 99}, "calibration.schema: 99 is foreign"),
        ({"overheads": {"x": -1.0}}, "calibration.overheads.x: must not be negative"),
        ({"colour": "red"}, "calibration.colour: unknown key"),
        ({"matrix": [{"dtype": "fp32"}]}, "calibration.matrix[0].flops_per_second: missing"),
    ],
)
def test_a_bad_file_is_refused_in_one_line_with_its_name(tmp_path: Path, change: dict[str, object], words: str) -> None:
    path = tmp_path / "bad.json"
    path.write_text(json.dumps(a_calibration().to_mapping() | change))
    with pytest.raises(SpecError) as refusal:
        read_calibration(str(path))
    assert str(path) in str(refusal.value)
    assert words in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.unit
def test_an_overhead_that_was_not_measured_is_refused() -> None:
    with pytest.raises(SpecError, match=r"fsdp\.unit: was not measured; known: module.call"):
        a_calibration().overhead("fsdp.unit")


def llama(precision: str) -> Case:
    """llama-1m: h 128, 4 heads of 32, 2 key-value heads, f 256, V 1024."""
    return case_from(
        {"model": "llama-1m", "workload": {"seq_len": 64, "micro_batch": 2, "precision": precision}},
    )


@pytest.mark.unit
@pytest.mark.parametrize("precision", ["fp32", "bf16-mixed"])
def test_a_block_comes_to_the_calls_that_its_module_makes(precision: str) -> None:
    # suite/models/blocks.py, by hand, 128 tokens. The norms' outputs are read by three and by two linears, the stream
    # by a norm and a sum twice over: 2 + 1 + 2 places where gradients meet.
    case = llama(precision)
    numerics = FP32 if precision == "fp32" else BF16_AUTOCAST
    ledger = ledger_of(case.model, case.workload, case.layout.recompute, numerics, Backend.CPU)
    block = next(segment for segment in ledger.counts if segment.name == "block")
    expected = {
        Use(Timed.RMS_NORM, (128, 128)): 2,
        Use(Timed.LINEAR, (128, 128, 128)): 2,  # queries, output
        Use(Timed.LINEAR, (128, 128, 64)): 2,
        Use(Timed.LINEAR, (128, 128, 256)): 2,
        Use(Timed.LINEAR, (128, 256, 128)): 1,
        Use(Timed.ROTARY, (2, 64, 4, 32, 32)): 1,
        Use(Timed.ROTARY, (2, 64, 2, 32, 32)): 1,
        Use(Timed.FLASH, (2, 64, 4, 2, 32)): 1,
        Use(Timed.SWIGLU, (128, 256)): 1,
        Use(Timed.ADD, (128, 128)): 2,
        Use(Timed.MEET, (128, 128)): 5,
    }
    if precision != "fp32":
        expected[Use(Timed.CAST, (128, 128))] = 5  # autocast keeps no copy of an activation
    assert dict(Counter(uses_of(case, block.operators()))) == expected
    assert format_of(case) is (Format.FP32 if precision == "fp32" else Format.BF16_AUTOCAST)


@pytest.mark.unit
@pytest.mark.parametrize("precision", ["fp32", "bf16-mixed"])
def test_a_mixture_is_one_call_in_its_block(precision: str) -> None:
    # mixtral-1m: h 128, 4 heads of 32, 2 key-value heads, 8 experts of 48, 2 a token: scores of a softmax (0),
    # normalized (1), not scaled (0), one group, an auxiliary loss (1), no capacity (0). Beside llama's block: no MLP,
    # no SwiGLU, and its norm's output has one reader: 4 places where gradients meet.
    case = replace(llama(precision), model=case_from({"model": "mixtral-1m"}).model)
    numerics = FP32 if precision == "fp32" else BF16_AUTOCAST
    ledger = ledger_of(case.model, case.workload, case.layout.recompute, numerics, Backend.CPU)
    block = next(segment for segment in ledger.counts if segment.name == "block")
    expected = {
        Use(Timed.RMS_NORM, (128, 128)): 2,
        Use(Timed.LINEAR, (128, 128, 128)): 2,
        Use(Timed.LINEAR, (128, 128, 64)): 2,
        Use(Timed.ROTARY, (2, 64, 4, 32, 32)): 1,
        Use(Timed.ROTARY, (2, 64, 2, 32, 32)): 1,
        Use(Timed.FLASH, (2, 64, 4, 2, 32)): 1,
        Use(Timed.MIXTURE, (2, 64, 128, 48, 8, 2, 0, 0, 1, 0, 1, 1, 1, 0)): 1,
        Use(Timed.ADD, (128, 128)): 2,
        Use(Timed.MEET, (128, 128)): 4,
    }
    if precision != "fp32":
        expected[Use(Timed.CAST, (128, 128))] = 3  # for queries, keys and values; the mixture's own is in it
    assert dict(Counter(uses_of(case, block.operators()))) == expected


@pytest.mark.unit
@pytest.mark.parametrize("tokens", [7, 64, 4096])
def test_a_mixture_that_is_rebuilt_from_its_sizes_has_them(tokens: int) -> None:
    for factor in (0.3, 1.0, 1.25, 9.0):
        spec = Experts(6, 2, 16, 1, Scoring.SIGMOID, False, 2.5, 3, 2, Balance.BIAS, 0.1, Dispatch.CAPACITY, factor)
        again = experts_of(sizes_of(spec, 2, tokens, 32))
        assert again.capacity(tokens) == spec.capacity(tokens)
        assert replace(again, scale=2.5, rate=0.1, capacity_factor=factor) == spec
    dropless = Experts(8, 2, 48, balance=Balance.AUXILIARY)
    assert experts_of(sizes_of(dropless, 2, tokens, 32)) == dropless


@pytest.mark.unit
@pytest.mark.parametrize(
    ("layout", "words"),
    [
        ({"ep": 2}, "layout.ep: 2: exchanging experts' rows"),
        ({"tp": 2, "sequence_parallel": True}, "layout.tp: 2: experts divided"),
        ({"recompute": "selective-op"}, "layout.recompute: selective-op: a part of a mixture"),
    ],
)
def test_a_mixture_is_timed_whole_on_its_rank(layout: dict[str, object], words: str) -> None:
    assert words in untimed(case_from({"model": "mixtral-1m", "layout": layout}))
    for other in ({"dp": 2}, {"fsdp": 2}, {"dp": 2, "zero": 1}, {"pp": 2, "schedule": "gpipe"}, {"recompute": "full"}):
        assert untimed(case_from({"model": "mixtral-1m", "layout": other})) == ""
