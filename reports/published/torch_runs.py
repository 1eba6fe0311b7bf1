"""Rows of PyTorch runs (torchtitan, torchtune, FSDP, Hugging Face, litgpt) -> a Case of our own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from memory.estimate import MemoryModel, representative_ranks
from reports.published.answers import CannotModel
from reports.published.models import model_of
from suite.case import Case
from suite.hardware import device
from suite.layout import Layout, Recompute
from suite.parse import SpecError
from suite.published import PublishedRow
from suite.spec import Cluster, LossKernel, OptimizerKind, Precision, Workload

#: whose kernels are walked where a row names no device, or one without a file: all CUDA devices' are
ANY_CUDA = "h100-sxm"


@dataclass(frozen=True)
class DescribedCase:
    """A case, and what the row left open or has differently."""

    case: Case
    assumed: tuple[str, ...]


def peak_bytes(case: Case) -> int:
    """Peak of allocated bytes, of the rank that needs most."""
    model = MemoryModel(case)
    return max(map(model.peak_bytes, representative_ranks(case.layout)))


def torch_case(row: PublishedRow) -> DescribedCase:
    """The Case that a row describes. CannotModel, UnreadableCell or SpecError with the reason where there is none."""
    described = model_of(row)
    assumed = list(described.assumed)
    dp, fsdp, tp, cp, pp, ep = (row.count(name) or 1 for name in ("dp", "fsdp", "tp", "cp", "pp", "ep"))
    layout = Layout(
        dp=dp,
        fsdp=fsdp,
        tp=tp,
        cp=cp,
        pp=pp,
        ep=ep,
        zero=0 if fsdp > 1 else (row.count("zero") or 0),
        recompute=_recompute(row),
        sequence_parallel=row.flag("sp") is not False,
    )
    if row.flag("compile"):
        assumed.append("compiled; predicted as eager")
    if row.says("framework", "FSDP1") or row.says("zero_stage", "wrap per decoder layer"):
        assumed.append("FSDP1; predicted as FSDP2")
    if layout.fsdp > 1 and row.says("precision", "autocast"):
        assumed.append("autocast inside FSDP; predicted under FSDP's own bf16 policy")
    workload = Workload(
        seq_len=row.need("seq_len"),
        micro_batch=row.need("micro_batch"),
        micro_batches=row.count("grad_accum") or 1,
        precision=_precision(row),
        optimizer=_optimizer(row),
        loss=LossKernel.CHUNKED if row.says("extra", "chunked") else LossKernel.PLAIN,
    )
    return DescribedCase(Case(described.spec, layout, workload, Cluster(_device(row, assumed))), tuple(assumed))


def _device(row: PublishedRow, assumed: list[str]) -> str:
    try:
        return device(row.text("device")).name
    except SpecError:
        assumed.append(f"CUDA's kernels: device {row.text('device') or row.text('gpu_type')!r} has no file")
        return ANY_CUDA


def _recompute(row: PublishedRow) -> Recompute:
    kind = row.text("recompute_kind")
    if not kind:
        raise CannotModel("recomputation is not stated")
    known = {"selective-attention": "selective", "every-2nd-layer": "every-2"}.get(kind, kind)
    try:
        return Recompute.parse(known)
    except SpecError:
        raise CannotModel(f"recompute_kind {kind!r}: not modelled yet") from None


def _precision(row: PublishedRow) -> Precision:
    kind = row.text("precision_kind")
    found: Any = _member(Precision, "bf16" if kind == "bf16-pure" else kind)
    if found is None:
        raise CannotModel(f"precision {kind or row.text('precision')!r}: not modelled yet")
    return Precision(found)


def _optimizer(row: PublishedRow) -> OptimizerKind:
    """AdamW whatever implements it; the memory-saving ones where they are modelled."""
    text = row.text("optimizer").lower()
    saving = {"8-bit": "adam-8bit", "adafactor": "adafactor", "muon": "muon", "sgd": "sgd"}
    name = next((name for word, name in saving.items() if word in text), "")
    if not name and any(word in text for word in ("4-bit", "fp8", "stochastic", "galore", "lomo")):
        name = text
    found: Any = _member(OptimizerKind, name or "adamw")
    if found is None:
        raise CannotModel(f"optimizer {row.text('optimizer')!r}: not modelled yet")
    return OptimizerKind(found)


def _member(kind: type[Any], value: str) -> Any:
    """The member of an enumeration with this value, if there is one yet."""
    return next((member for member in kind if member.value == value), None)
