"""What strategies cost the host beside operators and collectives: named, in seconds, each with how it is found.

Every figure is a difference of loops of trivial modules, wrapped and bare, taller and shorter; none is taken from a
training step. Seconds of a rank with a core of its own; ranks that share cores share these too. Torch-free.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from suite.parse import require


class Overhead(StrEnum):
    """What is done so often; `per unit` and `per parameter` add up."""

    FSDP_HOOKS_UNIT = "fsdp.hooks.unit"  # FSDP2's hooks around a unit's forward and backward pass, a micro-batch
    FSDP_HOOKS_PARAMETER = "fsdp.hooks.parameter"
    FSDP_GATHER_UNIT = "fsdp.gather.unit"  # gathering a unit and freeing it again, without the all-gather
    FSDP_GATHER_PARAMETER = "fsdp.gather.parameter"
    FSDP_REDUCE_UNIT = "fsdp.reduce.unit"  # reducing a unit's gradients, without the reduce-scatter
    FSDP_REDUCE_PARAMETER = "fsdp.reduce.parameter"
    DIVIDED_USE = "divided.use"  # a DTensor's local part, and its gradient wrapped: each use of a parameter
    DIVIDED_ADD = "divided.add"  # adding to the gradient of one: each use but the first of a step
    DIVIDED_CLIP = "divided.clip"  # clipping's part for one
    DIVIDED_UPDATE = "divided.update"  # fused AdamW's part for one
    REGION = "checkpoint.region"  # entering a checkpointed region and starting its rerun
    REGION_OPERATOR = "checkpoint.operator"  # an operator there: packing what it would have kept
    SELECTIVE_REGION = "checkpoint.selective.region"  # the same under a selective policy
    SELECTIVE_OPERATOR = "checkpoint.selective.operator"
    DDP_STEP = "ddp.micro-batch"  # DDP's part of a forward and backward pass
    DDP_PARAMETER = "ddp.parameter"  # its hook on a parameter, a micro-batch
    DDP_REDUCE = "ddp.reduction"  # a reduced micro-batch's more than one left unreduced, without the all-reduce
    DDP_REDUCE_PARAMETER = "ddp.reduction.parameter"  # copying into a bucket and out of it
    PIPELINE_STEP = "pipeline.step"  # torch's schedule: dividing a batch, gathering losses
    PIPELINE_PASS = "pipeline.pass"  # a stage's forward or backward pass under it, over a bare one
    INPUTS = "pipeline.inputs"  # a backward pass for inputs alone: finding the weights' part of the graph
    INPUTS_PARAMETER = "pipeline.inputs.parameter"  # a weight and its bias together
    INPUTS_OPERATOR = "pipeline.inputs.operator"
    WEIGHTS = "pipeline.weights"  # a backward pass for weights alone: a run of autograd for each
    WEIGHTS_PARAMETER = "pipeline.weights.parameter"
    PIPELINE_MESSAGE = "pipeline.message"  # issuing a send or a receive, and its part of gloo's threads
    PIPELINE_BYTE = "pipeline.message.byte"


#: of DTensors on two meshes' dimensions (FSDP2 beside tensor parallelism) the sharding costs more
BESIDE_TENSOR = "beside-tensor"


def name_of(overhead: Overhead, beside_tensor: bool = False) -> str:
    """Its key in a calibration."""
    return f"{overhead}.{BESIDE_TENSOR}" if beside_tensor else str(overhead)


@dataclass(frozen=True, slots=True, order=True)
class ContextCore:
    """An attention core whose keys are spread over ranks, at one shape, so many groups at once."""

    method: str
    kernel: str
    balanced: bool
    ranks: int
    groups: int
    sequences: int
    tokens: int
    """of a rank"""
    heads: int
    kv_heads: int
    width: int

    def __post_init__(self) -> None:
        require(self.ranks >= 2, f"context core: ranks must be at least 2, got {self.ranks}")

    @property
    def world(self) -> int:
        """Ranks on the machine."""
        return self.ranks * self.groups

    def name(self, whole: bool) -> str:
        """Its key in a calibration: of the forward pass, or of that and the backward pass together."""
        order = "balanced" if self.balanced else "in-order"
        sizes = "x".join(map(str, (self.sequences, self.tokens, self.heads, self.kv_heads, self.width)))
        passes = "forward-backward" if whole else "forward"
        return f"context.{self.method}.{self.kernel}.{order}.{self.ranks}r{self.groups}g.{sizes}.{passes}"


class Kept(StrEnum):
    """What a sharded unit is measured doing in a micro-batch, over an unwrapped one."""

    KEPT = "kept"  # gathered once, whole until its backward pass is over
    FREED = "freed"  # gathered for its forward and again for its backward pass
    REDUCED = "reduced"  # freed, its gradients reduced


@dataclass(frozen=True, slots=True, order=True)
class ShardedUnit:
    """What FSDP2 gathers together, at its own number of parameters and bytes, so many groups at once."""

    ranks: int
    groups: int
    parameters: int
    payload_bytes: int
    divided: bool
    """are they DTensors of tensor parallelism too?"""

    @property
    def world(self) -> int:
        """Ranks on the machine."""
        return self.ranks * self.groups

    def name(self, kept: Kept) -> str:
        """Its key in a calibration."""
        beside = f".{BESIDE_TENSOR}" if self.divided else ""
        return f"fsdp.{self.ranks}r{self.groups}g.{self.parameters}p.{self.payload_bytes}b{beside}.{kept}"


@dataclass(frozen=True, slots=True, order=True)
class TensorHalf:
    """Half a block whose operators are divided over ranks, at one shape of the stream, so many groups at once."""

    ranks: int
    groups: int
    sequences: int
    tokens: int
    width: int
    """in fp32 values, which a narrower stream has fewer of"""
    sequence_parallel: bool

    def __post_init__(self) -> None:
        require(self.ranks >= 2, f"tensor half: ranks must be at least 2, got {self.ranks}")

    @property
    def world(self) -> int:
        """Ranks on the machine."""
        return self.ranks * self.groups

    def name(self, whole: bool) -> str:
        """Its key in a calibration: what dividing adds to the forward pass, or to that and the backward pass
        together; three weights' DTensors and the collectives with it."""
        stream = "sequence" if self.sequence_parallel else "whole"
        sizes = "x".join(map(str, (self.sequences, self.tokens, self.width)))
        passes = "forward-backward" if whole else "forward"
        return f"tensor.{stream}.{self.ranks}r{self.groups}g.{sizes}.{passes}"


#: divided weights of a TensorHalf
HALF_WEIGHTS = 3


class Engine(StrEnum):
    """What DeepSpeed's engine adds to a bare step. Stage 3: its all-gathers with it, which are one a module."""

    MODULE = "module"  # a module's forward and backward pass, a micro-batch
    RERUN = "rerun"  # a module's forward pass again
    MICRO_BATCH = "micro-batch"
    MODULE_STEP = "module-step"  # a module's part of clipping, update and what follows
    STEP = "step"


@dataclass(frozen=True, slots=True, order=True)
class ZeroEngine:
    """DeepSpeed's engine in one stage on so many ranks."""

    stage: int
    ranks: int

    def name(self, part: Engine) -> str:
        """Its key in a calibration."""
        return f"zero{self.stage}.{self.ranks}r.{part}"
