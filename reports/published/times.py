"""Rows about how long a step takes: which predictor answers for a source, and its seconds as the row's quantity."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from reports.published.answers import CannotModel, Prediction
from reports.published.megatron_machines import SOURCES
from reports.published.megatron_steps import megatron_step
from reports.published.models import refuse_what_no_run_models
from reports.published.step_time import Flops, StepTime
from reports.published.time_constants import FittedSet
from reports.published.torch_times import FAMILIES, torch_step
from reports.published.vtrain import vtrain_step
from suite.hardware import device
from suite.hardware.device import TERA
from suite.published import PublishedRow

#: from a row and the fitted sets by name; raises CannotModel, UnreadableCell or SpecError with the reason where it has
#: no answer
Predictor = Callable[[PublishedRow, Mapping[str, FittedSet]], StepTime]

#: by the row's `family`; a source is one file, and its constants a Fitter in fit_times.py
PREDICTORS: dict[str, Predictor] = {
    "vtrain_single": vtrain_step,
    "vtrain_multi": vtrain_step,
    **dict.fromkeys(FAMILIES, torch_step),
    **dict.fromkeys(SOURCES, megatron_step),
}

#: frameworks that count half of attention's FLOPs (published/README.md, note 1); the others count all
_CAUSAL = ("Megatron-Bridge", "AutoModel")


def predict_time(row: PublishedRow, sets: Mapping[str, FittedSet]) -> Prediction:
    """A row's figure in its own unit. CannotModel with the reason where no predictor answers."""
    if row.family not in PREDICTORS:
        raise CannotModel(f"{row.family}: step times of this source are not modelled yet")
    refuse_what_no_run_models(row)
    step = PREDICTORS[row.family](row, sets)
    convert = _CONVERSIONS.get(row.quantity)
    if convert is None and row.quantity not in step.others:
        raise CannotModel(f"{row.quantity}: no part of a step that is predicted")
    value = convert(row, step) if convert else step.others[row.quantity]
    return Prediction(value, step.basis, step.assumed, step.fitted_on)


def _tokens_a_second(row: PublishedRow, step: StepTime) -> float:
    return step.sequences * step.seq_len / step.seconds


def _model_tflops(row: PublishedRow, step: StepTime) -> float:
    """Model FLOPs a second and GPU: nothing recomputed, attention as the source counts it."""
    flops = _flops(row, step)
    counted = flops.model - (flops.masked if row.says("framework", *_CAUSAL) else 0.0)
    return counted / step.seconds / step.gpus / TERA


def _hardware_tflops(row: PublishedRow, step: StepTime) -> float:
    """With what is recomputed, attention in full."""
    flops = _flops(row, step)
    return (flops.model + flops.recomputed) / step.seconds / step.gpus / TERA


def _flops(row: PublishedRow, step: StepTime) -> Flops:
    if step.flops is None:
        raise CannotModel(f"{row.quantity}: this source's FLOPs are not counted here")
    return step.flops


def _peak_tflops(row: PublishedRow) -> float:
    """Of 16-bit matrix products, dense; a row in fp8 is held to that format's, unless it says not."""
    is_narrow = row.says("precision", "fp8") and not row.says("notes", "bf16 peak")
    name = "fp8" if is_narrow else "bf16"
    peak = device(row.text("device")).peak(name).value
    if peak is None:
        raise CannotModel(f"{row.text('device')}: its {name} peak is not known")
    return peak / TERA


_CONVERSIONS: dict[str, Callable[[PublishedRow, StepTime], float]] = {
    "step_seconds": lambda row, step: step.seconds,
    "tokens_per_s": _tokens_a_second,
    "tokens_per_s_per_gpu": lambda row, step: _tokens_a_second(row, step) / step.gpus,
    "samples_per_s": lambda row, step: step.sequences / step.seconds,
    "samples_per_s_per_gpu": lambda row, step: step.sequences / step.seconds / step.gpus,
    "images_per_s": lambda row, step: step.sequences / step.seconds,
    "model_tflops_per_gpu": _model_tflops,
    "hw_tflops_per_gpu": _hardware_tflops,
    "mfu": lambda row, step: 100 * _model_tflops(row, step) / _peak_tflops(row),
    "hfu": lambda row, step: 100 * _hardware_tflops(row, step) / _peak_tflops(row),
    "pct_of_peak": lambda row, step: 100 * _hardware_tflops(row, step) / _peak_tflops(row),
}
