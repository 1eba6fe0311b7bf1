"""Rows of runs: which formula answers for a row, and which of its bytes the row's tool has seen."""

from __future__ import annotations

import re
from dataclasses import replace
from enum import StrEnum

from memory.assessment import Assessment
from memory.estimate import MemoryModel
from memory.kv_cache import kv_bytes_per_token
from reports.counts import parameters_of
from reports.published.answers import CannotModel, Prediction
from reports.published.fitted import UNFUSED_GRADIENTS, Constants
from reports.published.megatron_runs import is_megatron, megatron_estimate, megatron_run
from reports.published.models import model_of, refuse_what_no_run_models
from reports.published.times import predict_time
from reports.published.torch_runs import peak_bytes, torch_case
from suite.case import Case
from suite.hardware import device
from suite.published import PublishedRow
from suite.record import Moment
from suite.units import GIB, bytes_text


class Seen(StrEnum):
    """What a tool that measures memory sees: they do not mix."""

    ALLOCATED = "allocated"  # torch's max_memory_allocated, or what its source prints like it
    STEADY = "steady"  # allocated between two steps
    RESERVED = "reserved"  # what the caching allocator holds
    DEVICE = "device"  # nvidia-smi's, NVML's: reserved, the CUDA context, communicators


#: quantities that have a formula, and what their tool has seen
SEEN: dict[str, Seen] = {
    "peak_allocated_bytes": Seen.ALLOCATED,
    "peak_allocated_max_rank_bytes": Seen.ALLOCATED,
    "peak_allocated_first_stage_bytes": Seen.ALLOCATED,
    "peak_allocated_last_stage_bytes": Seen.ALLOCATED,
    "peak_active_bytes": Seen.ALLOCATED,
    "peak_memory_bytes": Seen.ALLOCATED,
    "peak_memory_max_stage_bytes": Seen.ALLOCATED,
    "peak_gpu_memory_bytes": Seen.ALLOCATED,
    "allocated_steady_bytes": Seen.STEADY,
    "peak_reserved_bytes": Seen.RESERVED,
    "peak_active_pct": Seen.ALLOCATED,
    "peak_reserved_pct": Seen.RESERVED,
    "nvidia_smi_max_bytes": Seen.DEVICE,
    "nvml_used_bytes": Seen.DEVICE,
    "gpu_memory_total_over_gpus_bytes": Seen.DEVICE,
    "fits": Seen.DEVICE,
}


def predict_run(row: PublishedRow, constants: Constants) -> Prediction:
    """A run's figure. CannotModel with the reason where no formula here answers."""
    quantity = row.quantity
    if not quantity.endswith("_bytes") and quantity not in SEEN:
        return predict_time(row, constants.times)
    refuse_what_no_run_models(row)
    if quantity == "inference_memory_bytes" or row.says("extra", "inference"):
        return _inference(row)
    if quantity not in SEEN:
        raise CannotModel(f"{quantity}: not a moment or a maximum that a formula here gives")
    seen = SEEN[quantity]
    allocated, case = _allocated(row, seen)
    found = _as_seen(row, seen, allocated, case, constants)
    return _as_percentage(row, found) if quantity.endswith("_pct") else found


def _as_percentage(row: PublishedRow, found: Prediction) -> Prediction:
    """A figure printed as a share of the device's memory, whose size stands in its unit: '% of 95.0396 GiB'."""
    printed = re.search(r"% of (\d+(?:\.\d+)?) GiB", row.text("unit"), flags=re.ASCII)
    if printed is None:
        raise CannotModel(f"unit {row.text('unit')!r}: the device's memory is not stated in it")
    share = 100 * found.value / (float(printed[1]) * GIB)
    return replace(found, value=share, basis=f"{found.basis}, in % of {printed[1]} GiB")


def allocated_bytes(row: PublishedRow) -> float:
    """What a run's tensors take at most, by formula, whatever the row's tool has seen."""
    return _allocated(row, Seen.ALLOCATED)[0].value


def reserved_bytes(case: Case | None, allocated: float, constants: Constants) -> tuple[float, str, tuple[str, ...]]:
    """(what a caching allocator reserves, in words, the rows that a constant of it was fitted on): the one place where
    allocated becomes reserved. A Case is replayed through torch's allocator; a run that is none of ours (None) is
    scaled by a fitted ratio."""
    if case is not None and case.cluster.device != "cpu":
        assessment = Assessment(MemoryModel(case), device(case.cluster.device))
        return assessment.unlimited_reserved_bytes, "and replayed through torch's caching allocator", ()
    ratio = constants.reserved_over_allocated
    return allocated * ratio.value, f"x {ratio.value:.4f}", ratio.rows


def _allocated(row: PublishedRow, seen: Seen) -> tuple[Prediction, Case | None]:
    """What a run's tensors take by formula, and the Case that it was taken from where there is one."""
    if is_megatron(row):
        described = megatron_run(row)
        estimate = megatron_estimate(row, described.run)
        level = estimate.total_bytes(Moment.STEADY) if seen is Seen.STEADY else estimate.peak_bytes
        rows = () if described.run.is_gradient_fused else UNFUSED_GRADIENTS
        return Prediction(level, "Megatron ledger, allocated", described.assumed, rows), None
    if seen is Seen.STEADY:
        raise CannotModel(f"{row.quantity}: modelled for Megatron alone")
    found = torch_case(row)
    return Prediction(peak_bytes(found.case), f"case {found.case.label}, allocated", found.assumed), found.case


def _as_seen(
    row: PublishedRow, seen: Seen, allocated: Prediction, case: Case | None, constants: Constants
) -> Prediction:
    """Allocated bytes as the row's tool sees them."""
    if seen in (Seen.ALLOCATED, Seen.STEADY):
        return allocated
    limit = device(row.text("device")).memory_bytes.value if row.is_oom else None
    if seen is Seen.DEVICE and row.says("framework", "Megatron-DeepSpeed"):
        beside = constants.deepspeed_device_bytes
        return Prediction(
            allocated.value + beside.value, f"{allocated.basis} + {bytes_text(beside.value)} beside", allocated.assumed,
            allocated.fitted_on + beside.rows, limit,
        )  # fmt: skip
    reserved, words, rows = reserved_bytes(case, allocated.value, constants)
    basis, rows = f"{allocated.basis} {words}", allocated.fitted_on + rows
    if seen is Seen.RESERVED:
        return Prediction(reserved, basis, allocated.assumed, rows)
    context = device(row.text("device")).context_bytes.value
    unknown = () if context is not None else ("the context's size is not known: left out",)
    assumed = (*allocated.assumed, *unknown, "communicators left out")
    return Prediction(reserved + (context or 0), f"{basis} + context", assumed, rows, limit)


def _inference(row: PublishedRow) -> Prediction:
    """16-bit weights, and the cache of what is generated where a batch is stated."""
    if not row.says("precision", "bf16", "fp16", "bfloat16"):
        raise CannotModel(f"precision {row.text('precision')!r}: inference is modelled with 16-bit weights")
    described = model_of(row)
    spec, batch = described.spec, row.count("micro_batch")
    weights = 2 * parameters_of(spec)
    said = "16-bit weights"
    if row.is_oom:
        return Prediction(weights, said, described.assumed, limit=device(row.text("device")).memory_bytes.value)
    if batch is None:
        return Prediction(weights, said, (*described.assumed, "cache left out: no batch is stated"))
    size = 1 if row.says("extra", "kv int8") else 2
    cache = batch * spec.max_positions * kv_bytes_per_token(spec.layers, spec.kv_heads, spec.head_dim, size)
    return Prediction(weights + cache, f"{said} + cache of the tokens", (*described.assumed, "the prompt is left out"))
