"""Layouts that do not fit the model or the workload, and why."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from suite.expert_rules import EXPERT_RULES
from suite.family_rules import FAMILY_RULES
from suite.form_rules import FORM_RULES
from suite.layout import ContextMethod, Layout, Offload, ReduceType, Schedule
from suite.layout_rules import Rule
from suite.models.base import TaskKind
from suite.models.experts import Dispatch
from suite.optimizer_rules import OPTIMIZER_RULES
from suite.parse import SpecError
from suite.spec import Precision

if TYPE_CHECKING:
    from suite.case import Case


INTERLEAVED = (Schedule.INTERLEAVED, Schedule.INTERLEAVED_ZERO_BUBBLE)


def _divides(name: str, size: Callable[[Case], int], axis: str, why: str) -> Rule[Case]:
    """`size` must be a multiple of the axis's degree."""
    return Rule(
        f"{name} that {axis} does not divide",
        why,
        lambda case: size(case) % getattr(case.layout, axis) != 0,
        lambda case: f"{name}({size(case)}) % layout.{axis}({getattr(case.layout, axis)}) != 0",
    )


def _is_fp8(case: Case) -> bool:
    return case.workload.precision in (Precision.FP8, Precision.FP8_ROWWISE)


def _precision_on_engine(case: Case) -> str:
    return f"workload.precision({case.workload.precision}) with layout.zero({case.layout.zero}) on DeepSpeed's engine"


CASE_RULES: tuple[Rule[Case], ...] = (
    *FAMILY_RULES,
    Rule(
        "pipelines of what is no decoder",
        "stages are cut between a decoder's blocks, which pass one stream on; use fsdp, zero or dp",
        lambda case: case.layout.pp > 1 and not case.model.is_causal_decoder,
        lambda case: f"layout.pp({case.layout.pp}) with model.family({case.model.family})",
    ),
    Rule(
        "context parallelism of what is no decoder",
        "its ring and its all-to-all are built for causal attention; use fsdp, zero or dp",
        lambda case: case.layout.cp > 1 and not case.model.is_causal_decoder,
        lambda case: f"layout.cp({case.layout.cp}) with model.family({case.model.family})",
    ),
    Rule(
        "ep without experts",
        "expert parallelism spreads a mixture's experts, and this model has none; use 1, or a model with experts",
        lambda case: case.layout.ep > 1 and case.model.experts is None,
        lambda case: f"layout.ep({case.layout.ep}) with {case.model.name}",
    ),
    _divides(
        "model.experts.count",
        lambda case: case.model.experts.count if case.model.experts else 0,
        "ep",
        "each expert-parallel rank takes as many whole experts",
    ),
    Rule(
        "imbalance that no routing has",
        "a token goes to an expert once, so the busiest of ep ranks gets at most"
        " ep * min(top_k, count / ep) / top_k times the mean, and as much as the others without ep or with capacity,"
        " whose places are computed even if empty; use 1.0",
        lambda case: case.workload.imbalance > most_imbalance(case),
        lambda case: f"workload.imbalance({case.workload.imbalance}) > {most_imbalance(case):g}"
        f" with layout.ep({case.layout.ep})",
    ),
    Rule(
        "serving with ep",
        "a decode step's all-to-alls are not built; use tp or dp to serve",
        lambda case: case.serves and case.layout.ep > 1,
        lambda case: f"layout.ep({case.layout.ep}) with serving.new_tokens({case.serving.new_tokens})",
    ),
    Rule(
        "precision fp16-mixed with ep",
        "torch's gradient scaler unscales plain tensors or DTensors of one mesh, and ep has both; use bf16-mixed",
        lambda case: case.layout.ep > 1 and case.workload.precision is Precision.FP16_MIXED,
        lambda case: f"workload.precision({case.workload.precision}) with layout.ep({case.layout.ep})",
    ),
    Rule(
        "tensor parallelism of encoder-decoders",
        "its plans divide one stream's blocks: cross-attention and a bias by heads are not built; use fsdp, zero or dp",
        lambda case: case.layout.tp > 1 and case.model.is_encoder_decoder,
        lambda case: f"layout.tp({case.layout.tp}) with model.family({case.model.family})",
    ),
    Rule(
        "sequence parallelism of what reads its first token",
        "the pair is told from the first token, which one rank's part of the sequence has alone; use"
        " layout.sequence_parallel false",
        lambda case: case.layout.tp > 1 and case.layout.sequence_parallel and case.model.task is TaskKind.MASKED,
        lambda case: f"layout.tp({case.layout.tp}), layout.sequence_parallel({case.layout.sequence_parallel})"
        f" with model.family({case.model.family})",
    ),
    _divides("model.heads", lambda case: case.model.heads, "tp", "each rank takes whole heads"),
    Rule(
        "model.kv_heads that tp does not divide",
        "each rank takes whole key-value heads; serving also takes a tp that they divide, and copies them",
        lambda case: case.model.kv_heads % case.layout.tp != 0
        and not (case.serves and case.layout.tp % case.model.kv_heads == 0),
        lambda case: f"model.kv_heads({case.model.kv_heads}) % layout.tp({case.layout.tp}) != 0",
    ),
    _divides("model.ffn", lambda case: case.model.ffn, "tp", "each rank takes as many columns of the MLP"),
    Rule(
        "a vocabulary that leaves a tp rank none of it",
        "each rank takes ceil(vocab / tp) rows of embedding and head, the last one what is left",
        lambda case: case.model.vocab <= (case.layout.tp - 1) * -(-case.model.vocab // case.layout.tp),
        lambda case: f"model.vocab({case.model.vocab}) over layout.tp({case.layout.tp})",
    ),
    Rule(
        "workload.seq_len that cp and tp do not divide",
        "each rank takes equal parts: cp of them (2 cp where balanced), and tp of each under sequence parallelism",
        lambda case: case.workload.seq_len % sequence_parts(case.layout) != 0 and not case.serves,
        lambda case: f"workload.seq_len({case.workload.seq_len}) % {sequence_parts(case.layout)} parts != 0",
    ),
    Rule(
        "fewer key-value heads than Ulysses has ranks",
        "its all-to-all gives each rank whole heads; use ring",
        lambda case: case.layout.cp > 1 and case.layout.context is ContextMethod.ULYSSES
        and case.model.kv_heads % (case.layout.cp * case.layout.tp) != 0,
        lambda case: f"model.kv_heads({case.model.kv_heads}) % (cp({case.layout.cp}) * tp({case.layout.tp})) != 0",
    ),
    Rule(
        "more pipeline stages than blocks",
        "every stage holds at least one block",
        lambda case: case.layout.pp > 1 and case.model.layers < case.layout.stages,
        lambda case: f"model.layers({case.model.layers}) < stages({case.layout.stages})",
    ),
    Rule(
        "a split that is not all blocks",
        "its stages must sum to the model's layers, none of them empty",
        lambda case: bool(case.layout.stage_split.layers)
        and (sum(case.layout.stage_split.layers) != case.model.layers or 0 in case.layout.stage_split.layers),
        lambda case: f"layout.stage_split({case.layout.stage_split}) with model.layers({case.model.layers})",
    ),
    Rule(
        "reduce_type bf16 in fp32 or fp16-mixed",
        "it is the type of gradients that are computed in bf16; use bf16-mixed or bf16",
        lambda case: case.layout.reduce_type is ReduceType.BF16
        and case.workload.precision in (Precision.FP32, Precision.FP16_MIXED),
        lambda case: f"layout.reduce_type({case.layout.reduce_type})"
        f" with workload.precision({case.workload.precision})",
    ),
    Rule(
        "fp8 on DeepSpeed's engine",
        "torchao's layers under it are not modelled; use fsdp",
        lambda case: case.layout.is_deepspeed and _is_fp8(case),
        _precision_on_engine,
    ),
    Rule(
        "fp8 with tp, or with a backward pass in two",
        "torchao gathers in fp8 under tp, and makes both gradients at once: neither is modelled; use bf16-mixed",
        lambda case: _is_fp8(case)
        and (case.layout.tp > 1 or (case.layout.pp > 1 and case.layout.schedule.splits_backward)),
        lambda case: f"workload.precision({case.workload.precision}) with layout.tp({case.layout.tp}),"
        f" layout.schedule({case.layout.schedule})",
    ),
    Rule(
        "precision bf16 on DeepSpeed's engine",
        "it keeps masters apart from the parameters, whatever their type; use bf16-mixed, or fsdp",
        lambda case: case.layout.is_deepspeed and case.workload.precision is Precision.BF16,
        _precision_on_engine,
    ),
    Rule(
        "precision fp16-mixed on DeepSpeed's engine",
        "the engine scales losses itself, and what its overflow checks need is not modelled; use bf16-mixed, or fsdp",
        lambda case: case.layout.is_deepspeed and case.workload.precision is Precision.FP16_MIXED,
        _precision_on_engine,
    ),
    Rule(
        "precision fp16-mixed with tp",
        "torch's gradient scaler unscales plain tensors or DTensors of one mesh, and tp has both; use bf16-mixed",
        lambda case: case.layout.tp > 1 and case.workload.precision is Precision.FP16_MIXED and not case.serves,
        lambda case: f"workload.precision({case.workload.precision}) with layout.tp({case.layout.tp})",
    ),
    Rule(
        "precision fp16-mixed with pp",
        "torch's schedules run each stage's backward pass themselves, and the gradient scaler would find infinities a"
        " stage at a time; use bf16-mixed",
        lambda case: case.layout.pp > 1 and case.workload.precision is Precision.FP16_MIXED and not case.serves,
        lambda case: f"workload.precision({case.workload.precision}) with layout.pp({case.layout.pp})",
    ),
    Rule(
        "FSDP2's offload on the CPU",
        "a CPU rank's own memory is the host's, so that nothing would move; use none, or a GPU",
        lambda case: case.layout.fsdp > 1 and case.layout.offload is Offload.PARAMETERS
        and case.cluster.device == "cpu",
        lambda case: f"layout.offload({case.layout.offload}) with cluster.device({case.cluster.device})",
    ),
    Rule(
        "fewer micro-batches than stages",
        "1f1b and dualpipev fill the pipeline first; take at least as many, or gpipe",
        lambda case: not case.serves
        and case.layout.pp > 1 and case.layout.schedule in (Schedule.ONE_F_ONE_B, Schedule.DUAL_PIPE_V)
        and case.workload.micro_batches < case.layout.stages,
        lambda case: f"workload.micro_batches({case.workload.micro_batches}) < stages({case.layout.stages})",
    ),
    Rule(
        "micro-batches that do not fill interleaved rounds",
        "the interleaved schedules run rounds of equal size, about pp micro-batches each",
        lambda case: case.layout.pp > 1 and case.layout.schedule in INTERLEAVED
        and case.workload.micro_batches % max(1, case.workload.micro_batches // case.layout.pp) != 0,
        lambda case: f"workload.micro_batches({case.workload.micro_batches}) with layout.pp({case.layout.pp});"
        " take a multiple of pp",
    ),
    Rule(
        "latent attention with cp",
        "what a ring or an all-to-all would send of it is not built: its keys are made from latents; use tp with"
        " sequence_parallel, fsdp or pp",
        lambda case: case.model.latent is not None and case.layout.cp > 1,
        lambda case: f"model.latent with layout.cp({case.layout.cp})",
    ),
    Rule(
        "latent attention that is trained with tp and no sequence_parallel",
        "each rank's heads give a part of the down-projections' gradients, and only sequence_parallel sums the"
        " gradients of what is whole on every rank; use it",
        lambda case: case.model.latent is not None and case.layout.tp > 1 and not case.layout.sequence_parallel
        and not case.serves,
        lambda case: f"model.latent with layout.tp({case.layout.tp}),"
        f" layout.sequence_parallel({case.layout.sequence_parallel})",
    ),
    Rule(
        "latent attention in fp8",
        "which of its projections torchao would run in fp8 is not modelled; use bf16-mixed",
        lambda case: case.model.latent is not None and _is_fp8(case),
        lambda case: f"model.latent with workload.precision({case.workload.precision})",
    ),
    *EXPERT_RULES,
    *FORM_RULES,
    *OPTIMIZER_RULES,
)  # fmt: skip


def most_imbalance(case: Case) -> float:
    """The largest imbalance that a routing of the case's model over its ranks can have."""
    experts, ep = case.model.experts, case.layout.ep
    if experts is None or ep == 1 or experts.dispatch is Dispatch.CAPACITY:
        return 1.0
    return ep * min(experts.top_k, experts.count // ep) / experts.top_k


def sequence_parts(layout: Layout) -> int:
    """Equal parts that a sequence is cut into."""
    parts = layout.cp * (2 if layout.is_balanced else 1)
    return parts * (layout.tp if layout.sequence_parallel else 1)


def check_case(case: Case) -> None:
    """Refuse a layout that does not fit the case's model or workload."""
    case.model.target_len(case.workload.seq_len)
    for rule in CASE_RULES:
        if rule.is_broken(case):
            raise SpecError(f"{rule.values(case)}: {rule.why}")
