"""First estimate of a step's time: FLOPs over a matrix rate. Communication is not modelled yet: the basis says so."""

from __future__ import annotations

import math

from suite.case import Case
from suite.layout import Layout
from suite.parse import require
from suite.record import TimeEstimate

TERA = 1e12
NO_COMMUNICATION = "communication, memory traffic and launch overheads are not modelled"
LOWER_BOUND = "datasheet peak, no measured rate: step_seconds is a lower bound"
NO_RATE = "no matrix rate is known for this device: measure it, or name a device with a datasheet peak"


def estimate_time(
    case: Case,
    flops_model: float,
    flops_hardware: float,
    flops_executed: float,
    rate_flops_per_second: float | None,
    peak_flops_per_second: float | None,
    basis: str,
    bubble: float = 0.0,
) -> TimeEstimate:
    """Time of one optimizer step as `flops_executed / rate` and the pipeline's bubble, everything else left out.

    case                    gives the tokens of a step, all ranks together
    flops_model             per rank and step, recomputation not counted (MFU)
    flops_hardware          per rank and step, recomputation counted (HFU)
    flops_executed          per rank and step, what the kernels really do: flash attention skips the masked half
    rate_flops_per_second   achieved, per rank; None: the datasheet peak stands in, and the basis says lower bound
    peak_flops_per_second   dense datasheet peak of the step's format; None: mfu and hfu are None
    basis                   where the rate comes from, in words; more is appended to it
    bubble                  time that a pipeline rank waits, as a share of its compute time (bubble_share)

    With neither rate nor peak every figure is None and no part is named.
    Raises SpecError for FLOPs or rates that are not positive and finite, or flops_hardware < flops_model.
    """
    _check(flops_model, flops_hardware, flops_executed, rate_flops_per_second, peak_flops_per_second)
    rate, notes = rate_flops_per_second, [basis]
    if rate is None and peak_flops_per_second is not None:
        rate = peak_flops_per_second
        notes.append(LOWER_BOUND)
    if rate is None:
        return TimeEstimate(None, None, None, None, None, basis="; ".join(filter(None, [basis, NO_RATE])))
    compute = flops_executed / rate
    step_seconds = compute * (1 + bubble)
    notes.append(NO_COMMUNICATION)
    return TimeEstimate(
        step_seconds=step_seconds,
        tokens_per_second=case.tokens_per_step / step_seconds,
        tflops_per_gpu=flops_model / step_seconds / TERA,
        mfu=_utilization(flops_model, step_seconds, peak_flops_per_second),
        hfu=_utilization(flops_hardware, step_seconds, peak_flops_per_second),
        parts_seconds={"compute": compute, "exposed_communication": 0.0, "bubble": compute * bubble},
        basis="; ".join(filter(None, notes)),
    )


def bubble_share(layout: Layout, micro_batches: int) -> float:
    """Time a pipeline rank waits over the time it computes: (p - 1) / (v m), p ranks of v stages, m micro-batches.

    GPipe, 1F1B and interleaved 1F1B (arXiv:2104.04473, section 2.2), passes of all stages taken to be equally long.
    Schedules that split backward fill their bubbles with weight gradients, but for warm-up: 0 here, a lower bound.
    """
    if layout.schedule.splits_backward:
        return 0.0
    return (layout.pp - 1) / (layout.virtual_stages * micro_batches)


def _utilization(flops: float, step_seconds: float, peak_flops_per_second: float | None) -> float | None:
    """FLOP/s over the peak; None where the peak is not known."""
    return None if peak_flops_per_second is None else flops / step_seconds / peak_flops_per_second


def _check(
    flops_model: float, flops_hardware: float, flops_executed: float, rate: float | None, peak: float | None
) -> None:
    named = {
        "flops_model": flops_model,
        "flops_hardware": flops_hardware,
        "flops_executed": flops_executed,
        "rate_flops_per_second": rate,
        "peak_flops_per_second": peak,
    }
    for name, value in named.items():
        require(
            value is None or (math.isfinite(value) and value > 0), f"{name}: must be positive and finite, got {value}"
        )
    require(
        flops_hardware >= flops_model,
        f"flops_hardware: {flops_hardware} is below flops_model({flops_model}); it counts recomputation on top of it",
    )
