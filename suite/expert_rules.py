"""Cases with experts that are refused, and why."""

from __future__ import annotations

from typing import TYPE_CHECKING

from suite.layout_rules import Rule
from suite.models.experts import Balance, Dispatch
from suite.spec import LossKernel, Precision

if TYPE_CHECKING:
    from suite.case import Case

#: torch's grouped product wants rows of so many bytes, or multiples
ROW_BYTES = 16
#: bytes an element of the type that the experts' products run in
PRODUCT_BYTES = {Precision.FP32: 4}


def _balances(case: Case, balance: Balance) -> bool:
    return case.model.experts is not None and case.model.experts.balance is balance and not case.serves


def _row_bytes(case: Case) -> tuple[int, ...]:
    """Of the experts' matrices on a rank: h, and its part of f."""
    if case.model.experts is None:
        return ()
    nbytes = PRODUCT_BYTES.get(case.workload.precision, 2)
    return case.model.hidden * nbytes, case.model.experts.ffn // case.layout.tp * nbytes


def _mtp(case: Case) -> int:
    return 0 if case.serves else getattr(case.model, "mtp", 0)


EXPERT_RULES: tuple[Rule[Case], ...] = (
    Rule(
        "model.experts.ffn that tp does not divide",
        "each rank takes as many channels of every expert",
        lambda case: case.model.experts is not None and case.model.experts.ffn % case.layout.tp != 0,
        lambda case: f"model.experts.ffn({case.model.experts.ffn if case.model.experts else 0})"
        f" % layout.tp({case.layout.tp}) != 0",
    ),
    Rule(
        "experts whose rows are not multiples of 16 bytes",
        "torch's grouped product takes rows of whole 16 bytes; take a hidden and an experts.ffn / tp that 8 divides",
        lambda case: any(nbytes % ROW_BYTES for nbytes in _row_bytes(case)),
        lambda case: f"model.experts: rows of {' and '.join(map(str, _row_bytes(case)))} bytes"
        f" in {case.workload.precision}",
    ),
    Rule(
        "experts that are trained with tp and no sequence_parallel",
        "each rank's channels give a part of the router's gradient, and only sequence_parallel sums the gradients of"
        " what is whole on every rank; use it",
        lambda case: case.model.experts is not None and case.layout.tp > 1 and not case.layout.sequence_parallel
        and not case.serves,
        lambda case: f"model.experts with layout.tp({case.layout.tp}),"
        f" layout.sequence_parallel({case.layout.sequence_parallel})",
    ),
    Rule(
        "a balance loss with cp",
        "it is each sequence's own, and a rank has a part of every sequence; use balance bias or none, or fsdp",
        lambda case: _balances(case, Balance.AUXILIARY) and case.layout.cp > 1,
        lambda case: f"model.experts.balance(auxiliary) with layout.cp({case.layout.cp})",
    ),
    Rule(
        "capacity with cp",
        "an expert takes so many of each sequence's tokens, and a rank has a part of every sequence; use dropless",
        lambda case: case.model.experts is not None and case.model.experts.dispatch is Dispatch.CAPACITY
        and case.layout.cp > 1,
        lambda case: f"model.experts.dispatch(capacity) with layout.cp({case.layout.cp})",
    ),
    Rule(
        "a balance loss in fp16",
        "the scaler scales the loss alone, and the balance loss is none of its terms; use bf16-mixed, or balance bias",
        lambda case: _balances(case, Balance.AUXILIARY) and case.workload.precision is Precision.FP16_MIXED,
        lambda case: f"model.experts.balance(auxiliary) with workload.precision({case.workload.precision})",
    ),
    Rule(
        "biases of routers in DeepSpeed's bf16",
        "the engine rounds buffers to bf16, in which a bias does not move by so small a step; use fp32, fsdp or dp",
        lambda case: _balances(case, Balance.BIAS) and case.layout.is_deepspeed
        and case.workload.precision is not Precision.FP32,
        lambda case: f"model.experts.balance(bias) with workload.precision({case.workload.precision})"
        f" on DeepSpeed's engine",
    ),
    Rule(
        "experts in fp8",
        "torchao's products are of one matrix, not of experts' stacked ones; use bf16-mixed",
        lambda case: case.model.experts is not None
        and case.workload.precision in (Precision.FP8, Precision.FP8_ROWWISE),
        lambda case: f"model.experts with workload.precision({case.workload.precision})",
    ),
    Rule(
        "experts with schedules that split the backward pass",
        "a mixture counts what it routed once a backward pass, which there comes in two parts; use 1f1b or interleaved",
        lambda case: case.model.experts is not None and case.layout.pp > 1 and case.layout.schedule.splits_backward,
        lambda case: f"model.experts with layout.schedule({case.layout.schedule})",
    ),
    Rule(
        "multi-token prediction with pp, tp or cp",
        "its tokens are one on from the others', across stages and ranks' parts of a sequence; use fsdp, zero or dp,"
        " or model.mtp 0",
        lambda case: _mtp(case) > 0 and max(case.layout.pp, case.layout.tp, case.layout.cp) > 1,
        lambda case: f"model.mtp({_mtp(case)}) with layout.pp({case.layout.pp}), tp({case.layout.tp}),"
        f" cp({case.layout.cp})",
    ),
    Rule(
        "multi-token prediction with a chunked loss",
        "its losses are of fewer tokens, which do not divide into the same slices; use the plain loss",
        lambda case: _mtp(case) > 0 and case.workload.loss is LossKernel.CHUNKED,
        lambda case: f"model.mtp({_mtp(case)}) with workload.loss({case.workload.loss})",
    ),
    Rule(
        "sequences too short for multi-token prediction",
        "the furthest of its tokens must be in the sequence",
        lambda case: _mtp(case) >= case.workload.seq_len,
        lambda case: f"model.mtp({_mtp(case)}) with workload.seq_len({case.workload.seq_len})",
    ),
)  # fmt: skip
