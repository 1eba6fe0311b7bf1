"""Layout: how a run is spread over ranks, the degree of every axis and what goes with it. Frozen, validated."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum

from suite.layout_rules import check_layout
from suite.parse import SpecError, require, setting, shown


class Engine(StrEnum):
    """Who runs the data-parallel side of a step."""

    AUTO = "auto"  # DeepSpeed where there is a ZeRO stage and no pipeline, else torch
    TORCH = "torch"  # DDP; its ZeroRedundancyOptimizer is ZeRO-1
    DEEPSPEED = "deepspeed"


class Schedule(StrEnum):
    """In which order a pipeline's ranks run micro-batches forward and backward."""

    GPIPE = "gpipe"  # arXiv:1811.06965
    ONE_F_ONE_B = "1f1b"  # arXiv:2104.04473, section 2.2.1
    INTERLEAVED = "interleaved-1f1b"  # arXiv:2104.04473, section 2.2.2
    INTERLEAVED_ZERO_BUBBLE = "interleaved-zero-bubble"  # arXiv:2401.10241, on interleaved stages
    ZBV = "zbv"  # arXiv:2405.15362
    DUAL_PIPE_V = "dualpipev"  # DeepSeek-V3's DualPipe (arXiv:2412.19437), cut in half

    @property
    def is_v(self) -> bool:
        """Does the model go down the ranks and up again, so that the first rank has the last stage too?"""
        return self in (Schedule.ZBV, Schedule.DUAL_PIPE_V)

    @property
    def splits_backward(self) -> bool:
        """Are the gradients of inputs and of weights computed apart?"""
        return self in (Schedule.INTERLEAVED_ZERO_BUBBLE, Schedule.ZBV, Schedule.DUAL_PIPE_V)

    @property
    def stages_a_rank(self) -> tuple[int, int | None]:
        """Fewest and most stages a rank may hold; None: any number."""
        if self.is_v:
            return 2, 2
        return (2, None) if self in (Schedule.INTERLEAVED, Schedule.INTERLEAVED_ZERO_BUBBLE) else (1, 1)


class ContextMethod(StrEnum):
    """How attention sees the whole sequence when each rank holds a part of it."""

    RING = "ring"  # keys and values go round (arXiv:2310.01889)
    ULYSSES = "ulysses"  # all-to-all: whole sequences of some heads (arXiv:2309.14509)


class Offload(StrEnum):
    """What waits in host memory while it is not used."""

    NONE = "none"
    OPTIMIZER = "optimizer"  # ZeRO: optimizer state and its step
    PARAMETERS = "parameters"  # ZeRO-3: parameters too; FSDP2: shards, their gradients and the step


class Reduction(StrEnum):
    """When the gradients of accumulated micro-batches are reduced over the data-parallel ranks."""

    STEP = "step"  # once: whole gradients are kept between micro-batches
    MICRO_BATCH = "micro-batch"  # each time: only shards are kept


class ReduceType(StrEnum):
    """Number format in which FSDP2 reduces gradients."""

    FP32 = "fp32"
    BF16 = "bf16"


class RecomputeKind(StrEnum):
    """What activation checkpointing recomputes in the backward pass."""

    NONE = "none"
    SELECTIVE = "selective"  # the attention core only (arXiv:2205.05198, section 5)
    SELECTIVE_OP = "selective-op"  # every block, but for every other product, fused attention and scattered sums
    FULL = "full"  # every block, from its input
    EVERY = "every"  # every n-th block, from its input


@dataclass(frozen=True)
class Recompute:
    """An activation-checkpointing mode: none, selective, selective-op, full, or every-<n> (blocks 0, n, 2n, ...)."""

    kind: RecomputeKind = RecomputeKind.NONE
    every: int = 1

    @classmethod
    def parse(cls, text: str, where: str = "recompute") -> Recompute:
        """Read 'none', 'selective', 'selective-op', 'full' or 'every-<n>'."""
        match = re.fullmatch(r"every-([1-9]\d{0,8})", text, flags=re.ASCII)
        if match:
            return cls(RecomputeKind.EVERY, int(match[1]))
        if text in {"none", "selective", "selective-op", "full"}:
            return cls(RecomputeKind(text))
        accepted = "none, selective, selective-op, full, every-<n> with n >= 1"
        raise SpecError(f"{where}: {shown(text)} is not known; accepted: {accepted}")

    def __str__(self) -> str:
        return f"every-{self.every}" if self.kind is RecomputeKind.EVERY else self.kind.value

    def covers_block(self, index: int) -> bool:
        """Is block `index` rerun from its input, some of its outputs perhaps kept?"""
        if self.kind is RecomputeKind.EVERY:
            return index % self.every == 0
        return self.kind in (RecomputeKind.FULL, RecomputeKind.SELECTIVE_OP)


@dataclass(frozen=True)
class StageSplit:
    """Which blocks a pipeline stage holds: balanced by cost, even, or so many blocks each, as in 3-2-2-1."""

    layers: tuple[int, ...] = ()
    is_balanced: bool = True

    @classmethod
    def parse(cls, text: str, where: str = "stage_split") -> StageSplit:
        """Read 'balanced', 'even' or '<n>-<n>-...', the blocks of stage 0, 1, ..."""
        if text in {"balanced", "even"}:
            return cls((), text == "balanced")
        if re.fullmatch(r"\d{1,9}(-\d{1,9})+", text, flags=re.ASCII):
            return cls(tuple(int(part) for part in text.split("-")), False)
        raise SpecError(
            f"{where}: {shown(text)} is not known; accepted: balanced, even, or blocks a stage as in 3-2-2-1"
        )

    def __str__(self) -> str:
        return "-".join(map(str, self.layers)) or ("balanced" if self.is_balanced else "even")


@dataclass(frozen=True)
class Layout:
    """How a run is spread over ranks: the degree of every axis, and what goes with it.

    The rank grid is pp x dp x fsdp x ep x cp x tp, outermost first: ranks that differ in tp alone are neighbours.
    Context ranks hold the same parameters as each other's replicas, so gradients are reduced over them too, and FSDP2
    shards over fsdp x cp. Expert-parallel ranks take their own part of the batch: each holds count / ep of every
    block's experts, which FSDP2 shards over fsdp, and of the rest what a data-parallel replica holds, which FSDP2
    shards over fsdp x ep.
    """

    dp: int = setting(1, "data-parallel replicas (DDP; with fsdp > 1: HSDP; with zero: the ranks that it shards over)")
    fsdp: int = setting(1, "ranks that shard parameters, gradients and optimizer state (FSDP2)")
    tp: int = setting(1, "tensor-parallel degree")
    cp: int = setting(1, "context-parallel degree")
    pp: int = setting(1, "pipeline ranks")
    ep: int = setting(1, "expert-parallel ranks: each takes its own data and count / ep of every block's experts")
    zero: int = setting(0, "ZeRO stage over dp: 0 to 3")
    engine: Engine = setting(
        Engine.AUTO, "data-parallel engine: auto (deepspeed with zero, else torch), torch, deepspeed"
    )
    schedule: Schedule = setting(Schedule.ONE_F_ONE_B, f"with pp > 1: {', '.join(Schedule)}")
    virtual_stages: int = setting(1, "with pp > 1: pipeline stages a rank holds")
    stage_split: StageSplit = setting(StageSplit(), "with pp > 1: blocks a stage: balanced, even, or as in 3-2-2-1")
    sequence_parallel: bool = setting(True, "with tp > 1: shard norms and residual stream over the sequence")
    context: ContextMethod = setting(ContextMethod.RING, "with cp > 1: ring, ulysses")
    load_balance: bool = setting(True, "with cp > 1: each rank takes an early and a late part of the sequence")
    recompute: Recompute = setting(
        Recompute(), "activation checkpointing: none, selective, selective-op (torchtitan's), full, every-<n>"
    )
    reshard_after_forward: bool | int = setting(
        True, "with fsdp > 1: free a block's gathered parameters after its forward pass: true, false, or n: to n shards"
    )
    forward_prefetch: int = setting(0, "with fsdp > 1: blocks gathered ahead in forward")
    backward_prefetch: int = setting(1, "with fsdp > 1: blocks gathered ahead in backward")
    reduce_type: ReduceType = setting(
        ReduceType.FP32, "with fsdp > 1 and bf16-mixed: gradients are reduced in fp32, bf16"
    )
    reduction: Reduction = setting(Reduction.STEP, "with micro_batches > 1: reduce gradients once a step, micro-batch")
    offload: Offload = setting(Offload.NONE, "with zero or fsdp > 1: keep in host memory: none, optimizer, parameters")
    bucket_mib: int = setting(0, "with dp > 1 or zero: MiB of a gradient bucket (0: the engine's default)")

    def __post_init__(self) -> None:
        for name in ("dp", "fsdp", "tp", "cp", "pp", "ep", "virtual_stages"):
            degree = getattr(self, name)
            require(degree >= 1, f"layout.{name}: must be at least 1, got {degree}")
        for name in ("forward_prefetch", "backward_prefetch", "bucket_mib"):
            require(getattr(self, name) >= 0, f"layout.{name}: must not be negative, got {getattr(self, name)}")
        require(0 <= self.zero <= 3, f"layout.zero: must be 0, 1, 2 or 3, got {self.zero}")
        check_layout(self)

    @property
    def world_size(self) -> int:
        """Ranks this layout needs."""
        return self.dp * self.fsdp * self.tp * self.cp * self.pp * self.ep

    @property
    def data_ranks(self) -> int:
        """Ranks that each take their own part of the global batch."""
        return self.dp * self.fsdp * self.ep

    @property
    def shard_ranks(self) -> int:
        """Ranks that FSDP2 shards over, but for experts: fsdp x ep x cp, or 1 without it."""
        return self.fsdp * self.ep * self.cp if self.fsdp > 1 else 1

    @property
    def expert_shard_ranks(self) -> int:
        """Ranks that FSDP2 shards a rank's experts over: fsdp x cp, or 1 without it."""
        return self.shard_ranks // self.ep if self.fsdp > 1 else 1

    @property
    def replica_ranks(self) -> int:
        """Ranks that hold the same parameters, but for experts, and average gradients: dp, times ep and cp where FSDP2
        has not taken them."""
        return self.dp if self.fsdp > 1 else self.dp * self.ep * self.cp

    @property
    def expert_replica_ranks(self) -> int:
        """Ranks that hold the same experts and average their gradients."""
        return self.replica_ranks if self.fsdp > 1 else self.replica_ranks // self.ep

    @property
    def is_balanced(self) -> bool:
        """Does each context rank take an early and a late chunk? Ulysses' ranks attend to whole sequences."""
        return self.cp > 1 and self.load_balance and self.context is ContextMethod.RING

    @property
    def stages(self) -> int:
        """Pipeline stages in all."""
        return self.pp * self.virtual_stages

    @property
    def data_engine(self) -> Engine:
        """The engine, decided."""
        if self.engine is not Engine.AUTO:
            return self.engine
        return Engine.DEEPSPEED if self.zero and self.pp == 1 else Engine.TORCH

    @property
    def is_deepspeed(self) -> bool:
        """Does DeepSpeed run the step?"""
        return self.data_engine is Engine.DEEPSPEED

    def place(self, axis: str, rank: int) -> int:
        """A rank's coordinate on pp, dp, fsdp, ep, cp or tp."""
        for name in reversed(AXES):
            degree = getattr(self, name)
            if name == axis:
                return rank % degree
            rank //= degree
        raise KeyError(axis)

    def data_rank(self, rank: int) -> int:
        """Which of the data_ranks parts of the global batch a rank takes."""
        replica = self.place("dp", rank) * self.fsdp + self.place("fsdp", rank)
        return replica * self.ep + self.place("ep", rank)

    def __str__(self) -> str:
        return "+".join(_names(self)) or "single"


#: the rank grid, outermost first
AXES = ("pp", "dp", "fsdp", "ep", "cp", "tp")


def degrees(layout: Layout) -> str:
    """The axes above 1 with their degrees, as in dp(2) * tp(4)."""
    return " * ".join(f"{axis}({getattr(layout, axis)})" for axis in AXES if getattr(layout, axis) > 1) or "dp(1)"


def _names(layout: Layout) -> list[str]:
    """The parts of a layout's name, as in pp2-zbv, fsdp4, tp2."""
    names = []
    if layout.pp > 1:
        names.append(
            f"pp{layout.pp}-{layout.schedule}" + (f"x{layout.virtual_stages}" if layout.virtual_stages > 2 else "")
        )
        if layout.stage_split != StageSplit():
            names.append(f"split-{layout.stage_split}")
    names += [f"{name}{getattr(layout, name)}" for name in ("dp", "fsdp") if getattr(layout, name) > 1]
    if layout.zero or layout.engine is Engine.DEEPSPEED:
        names.append(f"zero{layout.zero}" + ("-torch" if layout.data_engine is Engine.TORCH else ""))
    if layout.fsdp > 1:
        names += _fsdp_names(layout)
    if layout.offload is not Offload.NONE:
        names.append(f"offload-{layout.offload}")
    if layout.ep > 1:
        names.append(f"ep{layout.ep}")
    if layout.cp > 1:
        unbalanced = "" if layout.load_balance or layout.context is ContextMethod.ULYSSES else "-unbalanced"
        names.append(f"cp{layout.cp}-{layout.context}{unbalanced}")
    if layout.tp > 1:
        names.append(f"tp{layout.tp}" + ("" if layout.sequence_parallel else "-no-sp"))
    if layout.bucket_mib:
        names.append(f"bucket{layout.bucket_mib}")
    if layout.reduction is Reduction.MICRO_BATCH:
        names.append("reduce-each")
    if layout.recompute.kind is not RecomputeKind.NONE:
        names.append(f"recompute-{layout.recompute}")
    return names


def _fsdp_names(layout: Layout) -> list[str]:
    names = []
    if layout.reshard_after_forward is False:
        names.append("keep")
    elif layout.reshard_after_forward is not True:
        names.append(f"reshard{layout.reshard_after_forward}")
    if layout.forward_prefetch or layout.backward_prefetch != 1:
        names.append(f"prefetch{layout.forward_prefetch}-{layout.backward_prefetch}")
    if layout.reduce_type is ReduceType.BF16:
        names.append("reduce-bf16")
    return names
