"""Measuring operators: every kind is built as the models run it, and one short measurement of this machine."""

from __future__ import annotations

import pytest

from parallelism.calibration.asking import Item, measure_operators
from parallelism.calibration.frames import FINISH
from parallelism.calibration.worker import FROZEN_EVERY, WARMUP, taker
from suite.hardware.operator_times import Crowd, Format, Frame, Timed
from suite.models.experts import Balance, Dispatch, Experts, Scoring
from suite.models.experts_sizes import sizes_of

#: every part of a mixture
MIXTURE = Experts(8, 2, 16, 1, Scoring.SIGMOID, True, 2.5, 4, 2, Balance.AUXILIARY, dispatch=Dispatch.CAPACITY)
SHAPES: dict[Timed, tuple[int, ...]] = {
    Timed.LINEAR: (8, 4, 6),
    Timed.LINEAR_BIAS: (8, 4, 6),
    Timed.ROTARY: (2, 4, 2, 4, 8),
    Timed.FLASH: (2, 4, 4, 2, 8),
    Timed.PADDED_FLASH: (2, 4, 4, 4, 8),
    Timed.EAGER: (2, 4, 4, 2, 8),
    Timed.RECURRENCE: (4, 2, 4, 8),
    Timed.MIXTURE: sizes_of(MIXTURE, 2, 4, 16),
    Timed.EMBEDDING: (2, 4, 16, 8),
    Timed.POSITIONS: (2, 4, 16, 8),
}
NORMS = {Timed.RMS_NORM, Timed.LAYER_NORM}
WITH_BOTH = NORMS | {Timed.LINEAR, Timed.LINEAR_BIAS, Timed.RECURRENCE, Timed.MIXTURE, Timed.POSITIONS}


@pytest.mark.distributed
@pytest.mark.parametrize("kind", [Format.FP32, Format.BF16, Format.BF16_AUTOCAST])
@pytest.mark.parametrize("operator", list(Timed))
def test_every_operator_is_run_forward_and_backward(operator: Timed, kind: Format) -> None:
    shape = SHAPES.get(operator, (16,) if operator in FINISH else (8, 4))
    take = taker(operator, shape, kind)
    usual, frozen = take(WARMUP + 1), take(WARMUP + FROZEN_EVERY)
    if operator in FINISH:
        assert set(usual) == {"length", "forward"}
    elif operator in WITH_BOTH:  # the inputs' part is what is left when weights want nothing
        assert (set(usual), set(frozen)) == (
            {"length", "forward", "backward"},
            {"length", "forward", "inputs"},
        )
    else:
        assert set(usual) == {"length", "forward", "weights" if operator is Timed.EMBEDDING else "inputs"}
    if operator not in FINISH | {Timed.MEET}:
        assert min(usual.values()) > 0


@pytest.mark.distributed
def test_a_short_measurement_of_two_ranks_at_once() -> None:
    small, large = (Item(Timed.LINEAR, (tokens, 64, 64), Format.FP32) for tokens in (16, 4096))
    found = measure_operators(Crowd(2, 1), [large, small], seconds=0.2)
    times = {time.shape[0]: time for time in found.operators}
    assert times[16].crowd == Crowd(2, 1)
    assert 0 < times[16].forward < times[4096].forward  # of 256 times the work
    assert set(found.overheads) == {Frame.STEP, Frame.MICRO_BATCH, Frame.MODULE}
    assert found.memory.ranks == 2
