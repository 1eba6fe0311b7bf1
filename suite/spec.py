"""The nouns that describe a training run: Layout, Workload, Cluster, Recipe. Frozen, validated, torch-free.

Sizes are per rank unless the name says otherwise. A refused value raises SpecError with every
number that took part in the decision.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from enum import StrEnum

from suite.parse import SpecError, require, setting, shown


class Precision(StrEnum):
    """Number formats of a training step."""

    FP32 = "fp32"
    BF16_MIXED = "bf16-mixed"  # fp32 weights, bf16 matrix work: autocast, or FSDP's mixed-precision policy


class AttentionKernel(StrEnum):
    """How attention is computed."""

    FLASH = "flash"  # torch's scaled_dot_product_attention: scores are never stored
    EAGER = "eager"  # scores and probabilities are tensors of their own


class LossKernel(StrEnum):
    """How the head's cross-entropy is computed."""

    PLAIN = "plain"  # all logits at once
    CHUNKED = "chunked"  # a slice of the sequence at a time, its logits recomputed in backward


#: Slices of the sequence in the chunked loss; torchtune's CEWithChunkedOutputLoss uses as many.
LOSS_CHUNKS = 8


class OptimizerKind(StrEnum):
    """The update rule."""

    ADAMW = "adamw"
    SGD = "sgd"  # with momentum


class TokenizerKind(StrEnum):
    """How text becomes tokens."""

    BPE = "bpe"  # trained on the corpus, of the model's vocabulary size
    BYTE = "byte"


class Schedule(StrEnum):
    """Pipeline schedules."""

    ONE_F_ONE_B = "1f1b"


class RecomputeKind(StrEnum):
    """What activation checkpointing recomputes in the backward pass."""

    NONE = "none"
    SELECTIVE = "selective"  # the attention core only (arXiv:2205.05198, section 5)
    FULL = "full"  # every block, from its input
    EVERY = "every"  # every n-th block, from its input


@dataclass(frozen=True)
class Recompute:
    """An activation-checkpointing mode: none, selective, full, or every-<n> (blocks 0, n, 2n, ...)."""

    kind: RecomputeKind = RecomputeKind.NONE
    every: int = 1

    @classmethod
    def parse(cls, text: str, where: str = "recompute") -> Recompute:
        """Read 'none', 'selective', 'full' or 'every-<n>'."""
        match = re.fullmatch(r"every-([1-9]\d{0,8})", text, flags=re.ASCII)
        if match:
            return cls(RecomputeKind.EVERY, int(match[1]))
        if text in {"none", "selective", "full"}:
            return cls(RecomputeKind(text))
        raise SpecError(f"{where}: {shown(text)} is not known; accepted: none, selective, full, every-<n> with n >= 1")

    def __str__(self) -> str:
        return f"every-{self.every}" if self.kind is RecomputeKind.EVERY else self.kind.value

    def covers_block(self, index: int) -> bool:
        """Is block `index` rerun from its input?"""
        if self.kind is RecomputeKind.EVERY:
            return index % self.every == 0
        return self.kind is RecomputeKind.FULL


@dataclass(frozen=True)
class Layout:
    """How a run is spread over ranks: the degree of every axis, and what goes with it."""

    dp: int = setting(1, "data-parallel replicas (DDP)")
    fsdp: int = setting(1, "ranks that shard parameters, gradients and optimizer state (FSDP2)")
    tp: int = setting(1, "tensor-parallel degree (only 1 so far)")
    cp: int = setting(1, "context-parallel degree (only 1 so far)")
    pp: int = setting(1, "pipeline stages (only 1 so far)")
    ep: int = setting(1, "expert-parallel degree (only 1 so far)")
    zero: int = setting(0, "DeepSpeed ZeRO stage (only 0 so far)")
    schedule: Schedule = setting(Schedule.ONE_F_ONE_B, "with pp > 1: pipeline schedule: 1f1b")
    virtual_stages: int = setting(1, "with pp > 1: pipeline stages a rank holds (only 1 so far)")
    sequence_parallel: bool = setting(True, "with tp > 1: shard norms and residual stream over the sequence")
    recompute: Recompute = setting(Recompute(), "activation checkpointing: none, selective, full, every-<n>")
    reshard_after_forward: bool = setting(
        True, "with fsdp > 1: free a block's gathered parameters after its forward pass"
    )

    def __post_init__(self) -> None:
        for name in ("dp", "fsdp", "tp", "cp", "pp", "ep", "virtual_stages"):
            degree = getattr(self, name)
            require(degree >= 1, f"layout.{name}: must be at least 1, got {degree}")
        require(0 <= self.zero <= 3, f"layout.zero: must be 0, 1, 2 or 3, got {self.zero}")
        for name in ("tp", "cp", "pp", "ep", "virtual_stages"):
            degree = getattr(self, name)
            require(degree == 1, f"layout.{name}: {degree} is not built yet; available: dp, fsdp, recompute; use 1")
        require(self.zero == 0, f"layout.zero: {self.zero} is not built yet; use fsdp for sharded state, or zero 0")
        require(
            self.dp == 1 or self.fsdp == 1,
            f"layout: dp({self.dp}) with fsdp({self.fsdp}) is not built yet; set one of them to 1",
        )

    @property
    def world_size(self) -> int:
        """Ranks this layout needs."""
        return self.dp * self.fsdp * self.tp * self.cp * self.pp * self.ep

    @property
    def data_ranks(self) -> int:
        """Ranks that each take their own part of the global batch."""
        return self.dp * self.fsdp

    def __str__(self) -> str:
        degrees = [f"{name}{getattr(self, name)}" for name in ("dp", "fsdp") if getattr(self, name) > 1]
        if self.fsdp > 1 and not self.reshard_after_forward:
            degrees.append("keep")
        if self.recompute.kind is not RecomputeKind.NONE:
            degrees.append(f"recompute-{self.recompute}")
        return "+".join(degrees) or "single"


@dataclass(frozen=True)
class Workload:
    """What one optimizer step computes."""

    seq_len: int = setting(1024, "tokens in a sequence")
    micro_batch: int = setting(1, "sequences a rank takes at once")
    micro_batches: int = setting(1, "micro-batches a step (gradient accumulation)")
    precision: Precision = setting(Precision.BF16_MIXED, "number formats: fp32, bf16-mixed")
    optimizer: OptimizerKind = setting(OptimizerKind.ADAMW, "update rule: adamw, sgd")
    attention: AttentionKernel = setting(AttentionKernel.FLASH, "attention kernel: flash, eager")
    loss: LossKernel = setting(LossKernel.PLAIN, "cross-entropy: plain, chunked")

    def __post_init__(self) -> None:
        for name in ("seq_len", "micro_batch", "micro_batches"):
            size = getattr(self, name)
            require(size >= 1, f"workload.{name}: must be at least 1, got {size}")


@dataclass(frozen=True)
class Cluster:
    """Where it runs: `nodes` machines with `per_node` devices each; per_node 0 means what the layout needs."""

    device: str = setting("cpu", "device name, as in `models --devices`; cpu is this machine")
    nodes: int = setting(1, "machines")
    per_node: int = setting(0, "devices a machine (0: as many as the layout needs)")

    def __post_init__(self) -> None:
        require(self.nodes >= 1, f"cluster.nodes: must be at least 1, got {self.nodes}")
        require(self.per_node >= 0, f"cluster.per_node: must be at least 0, got {self.per_node}")


@dataclass(frozen=True)
class Recipe:
    """How the model is trained: AdamW, linear warm-up, cosine to a tenth, clipping. Costs nothing but time."""

    steps: int = setting(12, "optimizer steps")
    warmup_steps: int = setting(4, "steps of linear warm-up")
    learning_rate: float = setting(1e-3, "peak learning rate")
    weight_decay: float = setting(0.1, "weight decay of matrices (vectors have none)")
    clip_norm: float = setting(1.0, "largest gradient norm (inf: gradients are not clipped)")
    seed: int = setting(1337, "seed of the weights and of the order of the data")
    data: str = setting("", "a text file or a folder of them; empty: Python's own documentation")
    tokenizer: TokenizerKind = setting(TokenizerKind.BPE, "tokenizer: bpe, byte")
    stride: int = setting(0, "tokens between the starts of two windows (0: seq_len)")
    validation_batches: int = setting(0, "batches of held-out text at the end and every tenth of the way (0: none)")

    def __post_init__(self) -> None:
        require(self.steps >= 1, f"recipe.steps: must be at least 1, got {self.steps}")
        for name in ("warmup_steps", "seed", "stride", "validation_batches", "learning_rate", "weight_decay"):
            value = getattr(self, name)
            require(0 <= value < math.inf, f"recipe.{name}: must be finite and not negative, got {value}")
        require(self.clip_norm > 0, f"recipe.clip_norm: must be positive, got {self.clip_norm}")
