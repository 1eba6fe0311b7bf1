"""Layouts that do not fit the model or the workload, and why."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from suite.layout import ContextMethod, Layout, Offload, ReduceType, Schedule
from suite.layout_rules import Rule
from suite.optimizer_rules import OPTIMIZER_RULES
from suite.parse import require
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


CASE_RULES: tuple[Rule[Case], ...] = (
    _divides("model.heads", lambda case: case.model.heads, "tp", "each rank takes whole heads"),
    _divides("model.kv_heads", lambda case: case.model.kv_heads, "tp", "each rank takes whole key-value heads"),
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
        lambda case: case.workload.seq_len % sequence_parts(case.layout) != 0,
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
        "reduce_type bf16 in fp32",
        "it is the type of gradients that are computed in bf16; use bf16-mixed",
        lambda case: case.layout.reduce_type is ReduceType.BF16 and case.workload.precision is Precision.FP32,
        lambda case: f"layout.reduce_type({case.layout.reduce_type})"
        f" with workload.precision({case.workload.precision})",
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
        lambda case: case.layout.pp > 1 and case.layout.schedule in (Schedule.ONE_F_ONE_B, Schedule.DUAL_PIPE_V)
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
    *OPTIMIZER_RULES,
)  # fmt: skip


def sequence_parts(layout: Layout) -> int:
    """Equal parts that a sequence is cut into."""
    parts = layout.cp * (2 if layout.is_balanced else 1)
    return parts * (layout.tp if layout.sequence_parallel else 1)


def check_case(case: Case) -> None:
    """Refuse a layout that does not fit the case's model or workload."""
    for rule in CASE_RULES:
        require(not rule.is_broken(case), f"{rule.values(case)}: {rule.why}")
