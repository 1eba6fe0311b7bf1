"""What cannot be combined, and why: each rule refuses a layout before anything is launched."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

from suite.parse import SpecError

if TYPE_CHECKING:
    from suite.layout import Layout


T = TypeVar("T")


@dataclass(frozen=True)
class Rule(Generic[T]):
    """A combination that is refused. `what` names it in a table, `why` is the reason and what would do instead,
    `values` the numbers met."""

    what: str
    why: str
    is_broken: Callable[[T], bool]
    values: Callable[[T], str]


def _fields(*names: str) -> Callable[[Layout], str]:
    def text(layout: Layout) -> str:
        return " with ".join(f"{name}({getattr(layout, name)})" for name in names)

    return text


def _stage_count(layout: Layout) -> str:
    low, high = layout.schedule.stages_a_rank
    wanted = f"{low}" if high == low else f"{low} or more"
    return f"schedule({layout.schedule}) with virtual_stages({layout.virtual_stages}); it takes {wanted}"


def _has_stage_count(layout: Layout) -> bool:
    low, high = layout.schedule.stages_a_rank
    return low <= layout.virtual_stages and (high is None or layout.virtual_stages <= high)


RULES: tuple[Rule[Layout], ...] = (
    Rule(
        "ep with cp",
        "a router that balances sees whole sequences, and FSDP2 would shard experts over ranks on both sides of ep's;"
        " use fsdp, tp or pp with ep",
        lambda layout: layout.ep > 1 and layout.cp > 1,
        _fields("ep", "cp"),
    ),
    Rule(
        "ep with zero",
        "both engines of ZeRO take every parameter to be alike on all data-parallel ranks, and experts are not; use"
        " fsdp, which shards experts over fsdp and the rest over fsdp * ep",
        lambda layout: layout.ep > 1 and (layout.zero > 0 or layout.is_deepspeed),
        _fields("ep", "zero", "engine"),
    ),
    Rule(
        "reshard_after_forward to a number with ep",
        "experts and the rest would go back to groups of their own, which is not modelled; use true or false",
        lambda layout: layout.ep > 1 and not isinstance(layout.reshard_after_forward, bool),
        _fields("reshard_after_forward", "ep"),
    ),
    Rule(
        "fsdp with zero",
        "both shard the same state; set one of them to its default",
        lambda layout: layout.fsdp > 1 and (layout.zero > 0 or layout.is_deepspeed),
        _fields("fsdp", "zero", "engine"),
    ),
    Rule(
        "DeepSpeed's engine with pp, cp or tp",
        "the engine makes its own data-parallel group of all ranks and splits no model; use fsdp for sharded state",
        lambda layout: layout.is_deepspeed and layout.pp * layout.cp * layout.tp > 1,
        _fields("zero", "engine", "pp", "cp", "tp"),
    ),
    Rule(
        "DeepSpeed's engine on one rank",
        "it shards over data-parallel ranks, and one rank has no process group for it; raise dp, or use engine torch",
        lambda layout: layout.is_deepspeed and layout.dp == 1,
        _fields("zero", "engine", "dp"),
    ),
    Rule(
        "reduction each micro-batch on DeepSpeed's engine",
        "its stage decides: 2 and 3 reduce every micro-batch, 0 and 1 once a step; use step",
        lambda layout: layout.is_deepspeed and layout.reduction.value == "micro-batch",
        _fields("reduction", "zero", "engine"),
    ),
    Rule(
        "bucket_mib with stage 0 on DeepSpeed's engine",
        "its all-reduce has a bucket of 5e8 elements that no setting reaches; use 0, zero >= 1, or engine torch",
        lambda layout: layout.is_deepspeed and layout.zero == 0 and layout.bucket_mib > 0,
        _fields("bucket_mib", "zero", "engine"),
    ),
    Rule(
        "zero >= 2 on torch's engine",
        "ZeroRedundancyOptimizer shards optimizer state alone, which is stage 1; use deepspeed without pp, or fsdp",
        lambda layout: layout.zero >= 2 and not layout.is_deepspeed,
        _fields("zero", "engine", "pp"),
    ),
    Rule(
        "zero 1 on torch's engine with one replica",
        "it shards over data-parallel replicas, and there is one; raise dp",
        lambda layout: layout.zero == 1 and not layout.is_deepspeed and layout.replica_ranks == 1,
        _fields("zero", "engine", "dp"),
    ),
    Rule(
        "selective-op with zero 3",
        "DeepSpeed's linears of that stage add a bias in place to a product that torch's cache holds, and a rerun would"
        " add it again; use fsdp, or full",
        lambda layout: _is_selective_op(layout) and layout.zero == 3,
        _fields("recompute", "zero"),
    ),
    Rule(
        "selective-op with tp and no sequence_parallel",
        "a sum over tp takes the place of a product that torch's cache holds, and a rerun would sum it again; use"
        " sequence_parallel, or full",
        lambda layout: _is_selective_op(layout) and layout.tp > 1 and not layout.sequence_parallel,
        _fields("recompute", "tp", "sequence_parallel"),
    ),
    Rule(
        "zero with tp",
        "ZeroRedundancyOptimizer flattens plain tensors and tensor parallelism's are DTensors; use fsdp with tp",
        lambda layout: layout.zero > 0 and layout.tp > 1,
        _fields("zero", "tp"),
    ),
    Rule(
        "stages that a schedule does not take",
        "the schedule fixes how many stages a rank holds",
        lambda layout: layout.pp > 1 and not _has_stage_count(layout),
        _stage_count,
    ),
    Rule(
        "virtual_stages without pp",
        "stages of one rank need no pipeline; use 1, or raise pp",
        lambda layout: layout.pp == 1 and layout.virtual_stages > 1,
        _fields("virtual_stages", "pp"),
    ),
    Rule(
        "a split of another number of stages",
        "it lists the blocks of every stage, pp * virtual_stages of them",
        lambda layout: bool(layout.stage_split.layers) and len(layout.stage_split.layers) != layout.stages,
        lambda layout: f"stage_split({layout.stage_split}) with {_stages(layout)}",
    ),
    Rule(
        "a split backward with parameters that are freed after forward",
        "the weights' part of backward looks for the parameters that forward used; set reshard_after_forward to false",
        lambda layout: _splits_backward(layout) and layout.fsdp > 1 and layout.reshard_after_forward is not False,
        _fields("schedule", "pp", "fsdp", "reshard_after_forward"),
    ),
    Rule(
        "reduction each micro-batch with pp",
        "torch's stages reduce gradients once, after their last micro-batch; use step",
        lambda layout: layout.pp > 1 and layout.reduction.value == "micro-batch",
        _fields("reduction", "pp"),
    ),
    Rule(
        "reshard_after_forward to a number that fsdp is no multiple of",
        "it goes back to groups of that many ranks; use true, false, or n with 1 < n < fsdp * cp that divides it",
        lambda layout: not _can_reshard(layout),
        _fields("reshard_after_forward", "fsdp", "cp"),
    ),
    Rule(
        "reshard_after_forward to a number with pp",
        "FSDP2 makes each block's smaller groups by itself, and all ranks would have to take part; use true or false",
        lambda layout: not isinstance(layout.reshard_after_forward, bool) and layout.pp > 1,
        _fields("reshard_after_forward", "pp"),
    ),
    Rule(
        "reshard_after_forward to a number with tp",
        "FSDP2 does not reshard tensor parallelism's DTensors to fewer ranks (torch 2.13); use true or false",
        lambda layout: not isinstance(layout.reshard_after_forward, bool) and layout.tp > 1,
        _fields("reshard_after_forward", "tp"),
    ),
    Rule(
        "FSDP2's settings without fsdp",
        "nothing is gathered and no shard reduced; raise fsdp, or leave them at their defaults",
        lambda layout: layout.fsdp == 1 and _fsdp_settings(layout) != (True, 0, 1, "fp32"),
        _fields("reshard_after_forward", "forward_prefetch", "backward_prefetch", "reduce_type", "fsdp"),
    ),
    Rule(
        "bucket_mib without DDP or ZeRO",
        "only they reduce gradients in buckets; FSDP2 reduces a block at a time, and one replica reduces nothing",
        lambda layout: layout.bucket_mib > 0 and not _has_buckets(layout),
        _fields("bucket_mib", "dp", "fsdp", "zero"),
    ),
    Rule(
        "offload of what is not sharded",
        "ZeRO 1 to 3 can offload the optimizer, ZeRO-3 and FSDP2 the parameters",
        lambda layout: not _can_offload(layout),
        _fields("offload", "zero", "fsdp"),
    ),
)  # fmt: skip


def _stages(layout: Layout) -> str:
    return f"pp({layout.pp}) * virtual_stages({layout.virtual_stages})"


def _is_selective_op(layout: Layout) -> bool:
    return layout.recompute.kind.value == "selective-op"


def _splits_backward(layout: Layout) -> bool:
    return layout.pp > 1 and layout.schedule.splits_backward


def _can_reshard(layout: Layout) -> bool:
    to, ranks = layout.reshard_after_forward, layout.shard_ranks
    return isinstance(to, bool) or (1 < to < ranks and ranks % to == 0)


def _fsdp_settings(layout: Layout) -> tuple[bool | int, int, int, str]:
    settings = layout.reshard_after_forward, layout.forward_prefetch, layout.backward_prefetch
    return (*settings, layout.reduce_type.value)


def _has_buckets(layout: Layout) -> bool:
    return layout.is_deepspeed or (layout.fsdp == 1 and layout.replica_ranks > 1)


def _can_offload(layout: Layout) -> bool:
    if layout.offload.value == "none":
        return True
    if layout.offload.value == "optimizer":
        return layout.is_deepspeed and layout.zero >= 1
    return layout.fsdp > 1 or (layout.is_deepspeed and layout.zero == 3)


def check_layout(layout: Layout) -> None:
    """Refuse what cannot be combined: SpecError with the numbers and the reason."""
    for rule in RULES:
        if rule.is_broken(layout):
            raise SpecError(f"layout: {rule.values(layout)}: {rule.why}")
