"""The nouns that describe a training run beside its layout: Workload, Cluster, Recipe. Frozen, validated, torch-free.

Sizes are per rank unless the name says otherwise. A refused value raises SpecError with every
number that took part in the decision.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

from suite.links import Level, check_levels
from suite.parse import require, setting


class Precision(StrEnum):
    """Number formats of a training step."""

    FP32 = "fp32"
    BF16_MIXED = "bf16-mixed"  # fp32 weights, bf16 matrix work: autocast, or FSDP's mixed-precision policy
    BF16 = "bf16"  # weights, gradients, optimizer state and compute: no fp32 master
    FP8 = "fp8"  # as bf16-mixed, the blocks' products in fp8, a scale a tensor: estimated, not trained yet
    FP8_ROWWISE = "fp8-rowwise"  # the same, a scale a row
    FP16_MIXED = "fp16-mixed"  # as bf16-mixed in fp16, with a gradient scaler


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


MIN_LEARNING_RATE = 0.1  # of the peak, at the end of a recipe's cosine


class OptimizerKind(StrEnum):
    """The update rule."""

    ADAMW = "adamw"
    SGD = "sgd"  # with momentum
    ADAFACTOR = "adafactor"  # a matrix's second moment as its row and column means (arXiv:1804.04235)
    MUON = "muon"  # orthogonalized momentum for the blocks' matrices, AdamW for the rest
    ADAM_8BIT = "adam-8bit"  # AdamW whose moments are codes of 8 bits, scaled block by block (arXiv:2110.02861)


class OptimizerKernel(StrEnum):
    """How the update runs: what torch.optim calls its implementations."""

    AUTO = "auto"  # fused where torch has it for the layout, else the loop
    FUSED = "fused"  # one kernel for all tensors of a group
    FOREACH = "foreach"  # an operation at a time, over all tensors of a group
    LOOP = "loop"  # a tensor at a time


class TokenizerKind(StrEnum):
    """How text becomes tokens."""

    BPE = "bpe"  # trained on the corpus, of the model's vocabulary size
    BYTE = "byte"


@dataclass(frozen=True)
class Workload:
    """What one optimizer step computes."""

    seq_len: int = setting(1024, "tokens in a sequence")
    micro_batch: int = setting(1, "sequences a rank takes at once")
    micro_batches: int = setting(1, "micro-batches a step (gradient accumulation)")
    precision: Precision = setting(
        Precision.BF16_MIXED, "number formats: fp32, bf16-mixed, bf16, fp16-mixed, fp8, fp8-rowwise"
    )
    optimizer: OptimizerKind = setting(OptimizerKind.ADAMW, "update rule: adamw, sgd, adafactor, muon, adam-8bit")
    optimizer_kernel: OptimizerKernel = setting(
        OptimizerKernel.AUTO, "how the update runs: auto (fused where torch has it), fused, foreach, loop"
    )
    attention: AttentionKernel = setting(AttentionKernel.FLASH, "attention kernel: flash, eager")
    loss: LossKernel = setting(LossKernel.PLAIN, "cross-entropy: plain, chunked")
    imbalance: float = setting(
        1.0, "with ep > 1: rows that the busiest expert-parallel rank receives over the mean of all"
    )

    def __post_init__(self) -> None:
        for name in ("seq_len", "micro_batch", "micro_batches"):
            size = getattr(self, name)
            require(size >= 1, f"workload.{name}: must be at least 1, got {size}")
        require(
            1 <= self.imbalance < math.inf,
            f"workload.imbalance: must be at least 1, the busiest rank's rows over the mean, got {self.imbalance}",
        )


@dataclass(frozen=True)
class Cluster:
    """Where it runs: `nodes` machines with `per_node` devices each; per_node 0 means what the layout needs."""

    device: str = setting("cpu", "device name, as in `models --devices`; cpu is this machine")
    nodes: int = setting(1, "machines")
    per_node: int = setting(0, "devices a machine (0: as many as the layout needs)")
    links: tuple[Level, ...] = setting(
        (), "links in place of the device's own, as in nvlink:8:300e9:3e-6,ib:*:25e9:8e-6 (bytes/s, s)"
    )

    def __post_init__(self) -> None:
        require(self.nodes >= 1, f"cluster.nodes: must be at least 1, got {self.nodes}")
        require(self.per_node >= 0, f"cluster.per_node: must be at least 0, got {self.per_node}")
        check_levels(self.links)


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
