"""llm-analysis: its training analysis, with everything about the case that it has a parameter for."""

from __future__ import annotations

import logging
from typing import Any

from suite.case import Case
from suite.layout import RecomputeKind
from suite.models.decoder import Activation
from suite.peers import Figure, Peer, PeerAnswer, unanswered
from suite.spec import AttentionKernel, OptimizerKind, Precision

#: bytes of optimizer state for each parameter
OPTIMIZER_BYTES = {OptimizerKind.ADAMW: 8, OptimizerKind.SGD: 4}
RECOMPUTE = {RecomputeKind.NONE: "NONE", RecomputeKind.SELECTIVE: "SELECTIVE", RecomputeKind.FULL: "FULL"}
#: it wants a device, whose speed and size touch no byte that is read here
DEVICE = "a100-sxm-80gb"


def answer(case: Case) -> PeerAnswer:
    """Its weights, gradients and optimizer state of a GPU, and the same with its activations.

    Counted: its own formulas. Not counted by them: an untied head, buckets, gathered parameters, workspace.
    """
    reason = _refusal(case)
    return unanswered(Peer.LLM_ANALYSIS, reason) if reason else _analyse(case)


def _refusal(case: Case) -> str:
    layout, workload = case.layout, case.workload
    if layout.cp > 1 or layout.ep > 1:
        return "knows neither context nor expert parallelism of a dense model"
    if layout.recompute.kind not in RECOMPUTE:
        return "knows no such recomputation"
    if workload.precision not in (Precision.FP32, Precision.BF16_MIXED):
        return f"knows no {workload.precision}"
    if workload.optimizer not in OPTIMIZER_BYTES:
        return f"knows no {workload.optimizer}"
    return ""


def _analyse(case: Case) -> PeerAnswer:
    from llm_analysis import analysis, config

    logging.getLogger("llm_analysis").setLevel(logging.CRITICAL)
    layout, workload = case.layout, case.workload

    class Timeless(analysis.LLMAnalysis):  # type: ignore[misc]
        def get_TFLOPS_per_gpu(self) -> float:
            """Some rate: its own refuses 32-bit numbers, and no time is read here."""
            return float(self.gpu_config.peak_fp16_TFLOPS)

    bits = _bits(case)
    parallel = {
        "dp_size": layout.fsdp if layout.fsdp > 1 else layout.dp,
        "tp_size": layout.tp,
        "pp_size": layout.pp,
        "sp_size": layout.tp if layout.sequence_parallel else 1,
    }
    given: dict[str, Any] = {
        "batch_size_per_gpu": workload.micro_batch,
        "gradient_accumulation_steps": workload.micro_batches,
        "seq_len": workload.seq_len,
        "flash_attn": workload.attention is AttentionKernel.FLASH,
        "other_op_bytes": _other_bytes(case, bits["weight_bits"]),
    }
    stage = 3 if layout.fsdp > 1 else layout.zero
    made = Timeless(
        _model(case), config.get_gpu_config_by_name(DEVICE), config.DtypeConfig(name="as the case", **bits),
        config.ParallelismConfig(**parallel),
    )  # fmt: skip
    recompute = RECOMPUTE[layout.recompute.kind]
    found = made.training(
        **given, ds_zero=analysis.DSZeRO(stage), activation_recomputation=analysis.ActivationRecomputation[recompute]
    )
    said = {**bits, **parallel, **given, "ds_zero": stage, "activation_recomputation": recompute}
    return PeerAnswer(
        Peer.LLM_ANALYSIS,
        Figure(float(found["(weight+op_state+grad)_memory_per_gpu"])),
        Figure(float(found["(weight+op_state+grad+act)_memory_per_gpu"])),
        f"LLMAnalysis.training({', '.join(f'{name}={value}' for name, value in said.items())})",
    )


def _model(case: Case) -> Any:
    """The case's decoder as its ModelConfig. It counts two matrices in an MLP: of a gated one it is given 3/2 of the
    width, as its own configurations of LLaMA have it."""
    from llm_analysis import config

    spec = case.decoder
    width = spec.ffn * 3 // 2 if spec.activation is Activation.SWIGLU else spec.ffn
    return config.ModelConfig(
        name=spec.name, num_layers=spec.layers, n_head=spec.heads, hidden_dim=spec.hidden, vocab_size=spec.vocab,
        max_seq_len=spec.max_positions, num_key_value_heads=spec.kv_heads, ffn_embed_dim=width,
        expansion_ratio=width / spec.hidden,
    )  # fmt: skip


def _bits(case: Case) -> dict[str, int]:
    """Number formats: weights are fp32 but under DeepSpeed's bf16 engine, activations as the precision says."""
    mixed = case.workload.precision is Precision.BF16_MIXED
    weights = 16 if mixed and case.layout.is_deepspeed else 32
    return {"weight_bits": weights, "activation_bits": 16 if mixed else 32, "embedding_bits": weights}


def _other_bytes(case: Case, weight_bits: int) -> int:
    """Its optimizer holds a 4-byte master copy and so many other bytes. Weights that are fp32 have no second copy, so
    the copy's bytes are taken off here."""
    return OPTIMIZER_BYTES[case.workload.optimizer] - (4 if weight_bits == 32 else 0)
