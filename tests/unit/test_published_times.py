"""A step's seconds in a row's own quantity, under both conventions of FLOPs."""

from __future__ import annotations

import pytest

import reports.published.times as times
from reports.published.answers import CannotModel
from reports.published.step_time import Flops, StepTime
from reports.published.times import predict_time
from suite.published import PublishedRow, TableKind

pytestmark = pytest.mark.unit

#: 16 sequences of 1000 tokens in 2 s on 8 GPUs; 800 TFLOP on all of them, 80 of which a causal mask leaves out
STEP = StepTime(2.0, 16, 1000, 8, "told", Flops(8e14, 8e13, 2e14), others={"stage_time_TF_seconds": 0.25})


@pytest.mark.parametrize(
    ("quantity", "framework", "expected"),
    [
        ("step_seconds", "", 2.0),
        ("tokens_per_s", "", 8000),
        ("tokens_per_s_per_gpu", "", 1000),
        ("samples_per_s", "", 8),
        ("samples_per_s_per_gpu", "", 1),
        ("model_tflops_per_gpu", "Megatron-LM", 50),
        ("model_tflops_per_gpu", "Megatron-Bridge 26.04", 45),
        ("hw_tflops_per_gpu", "Megatron-LM", 62.5),
        ("mfu", "Megatron-LM", 100 * 50 / 312),
        ("mfu", "Megatron-Bridge 26.04", 100 * 45 / 312),
        ("hfu", "Megatron-LM", 100 * 62.5 / 312),
        ("pct_of_peak", "Megatron-LM", 100 * 62.5 / 312),
        ("stage_time_TF_seconds", "", 0.25),
    ],
)
def test_a_step_answers_in_the_rows_quantity(
    monkeypatch: pytest.MonkeyPatch, quantity: str, framework: str, expected: float
) -> None:
    monkeypatch.setitem(times.PREDICTORS, "told", lambda row, sets: STEP)
    cells = {"family": "told", "quantity": quantity, "framework": framework, "device": "a100-sxm-80gb"}
    assert predict_time(PublishedRow(TableKind.RUNS, "r", cells), {}).value == pytest.approx(expected)


def test_what_no_predictor_answers_is_refused_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(times.PREDICTORS, "told", lambda row, sets: STEP)

    def reason(**cells: str) -> str:
        with pytest.raises(CannotModel) as found:
            predict_time(PublishedRow(TableKind.RUNS, "r", cells), {})
        return str(found.value)

    assert reason(family="else", quantity="step_seconds") == "else: step times of this source are not modelled yet"
    assert reason(family="told", quantity="watts") == "watts: no part of a step that is predicted"
    assert "experts" in reason(family="told", quantity="step_seconds", moe="8 experts")
