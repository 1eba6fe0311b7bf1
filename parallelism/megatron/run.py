"""MegatronRun: what of a Megatron-LM run decides the bytes each rank holds and how long a step takes. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from suite.layout import RecomputeKind
from suite.models.decoder import DecoderSpec
from suite.parse import require

#: Megatron pads the vocabulary so that each tensor-parallel rank has a multiple of so many rows
#: (--make-vocab-size-divisible-by)
VOCAB_MULTIPLE = 128


class MegatronOptimizer(StrEnum):
    """Who keeps the fp32 state, and where."""

    MIXED = "mixed"  # every rank: 16-bit weights, fp32 gradients, fp32 master weights and moments: 18 bytes
    DISTRIBUTED = "distributed"  # the last three divided over the replicas: 6 + 12 / (dp cp)
    DEEPSPEED_FP16 = "deepspeed-fp16"  # ZeRO-1: 16-bit weights and gradients, a partition in fp32
    DEEPSPEED_WHOLE = "deepspeed-fp16-whole"  # ZeRO-0: 16-bit weights and gradients, the fp32 state whole
    DEEPSPEED_BF16 = "deepspeed-bf16"  # ZeRO-1, and gradients accumulated in fp32 beside the 16-bit ones


class PipelineMemory(StrEnum):
    """Schedules, by how many micro-batches' activations a stage holds at most."""

    ONE_F_ONE_B = "1f1b"  # arXiv:2104.04473, section 2.2.1
    INTERLEAVED = "interleaved"  # arXiv:2104.04473, section 2.2.2
    ZB_H1 = "zb-h1"  # arXiv:2401.10241, table 2
    ZB_H2 = "zb-h2"
    ZB_1P = "zb-1p"  # the same paper's automatic schedules with a limit of p and of 2 p micro-batches
    ZB_2P = "zb-2p"
    ZBV = "zbv"  # arXiv:2405.15362


class AttentionCore(StrEnum):
    """Does the attention core keep its scores?"""

    FUSED = "fused"  # flash attention, cuDNN's: a log-sum-exp a row
    UNFUSED = "unfused"  # softmax's output, and with dropout a mask and the dropped-out scores


class CrossEntropy(StrEnum):
    """How the loss is taken over vocabulary-parallel logits."""

    PARALLEL = "parallel"  # megatron/core/tensor_parallel/cross_entropy.py: an fp32 copy becomes the softmax
    FUSED_16_BIT = "fused-16-bit"  # Transformer Engine's: the gradient is made in the logits' own format


@dataclass(frozen=True)
class MegatronRun:
    """One run. `stage_layers` are the blocks of each pipeline rank (empty: even); sizes of the model are the whole
    model's. A GPT form has learned positions on the first stage; a vocabulary is padded per tensor-parallel rank."""

    model: DecoderSpec
    seq_len: int
    micro_batch: int
    micro_batches: int
    tp: int = 1
    cp: int = 1
    pp: int = 1
    dp: int = 1
    sequence_parallel: bool = False
    schedule: PipelineMemory = PipelineMemory.ONE_F_ONE_B
    chunks: int = 1  # model chunks a rank, with interleaving
    stage_layers: tuple[int, ...] = ()
    optimizer: MegatronOptimizer = MegatronOptimizer.DISTRIBUTED
    recompute: RecomputeKind = RecomputeKind.NONE
    attention: AttentionCore = AttentionCore.FUSED
    cross_entropy: CrossEntropy = CrossEntropy.PARALLEL
    dropout: bool = False
    is_gradient_fused: bool = True  # a linear's weight gradient is added to the main gradient by the product itself

    def __post_init__(self) -> None:
        for name in ("seq_len", "micro_batch", "micro_batches", "tp", "cp", "pp", "dp", "chunks"):
            size = getattr(self, name)
            require(size >= 1, f"megatron.{name}: must be at least 1, got {size}")
        if not self.stage_layers:
            require(
                self.model.layers % self.pp == 0,
                f"megatron.stage_layers: layers({self.model.layers}) % pp({self.pp}) != 0; give each stage's layers",
            )
            object.__setattr__(self, "stage_layers", (self.model.layers // self.pp,) * self.pp)
        require(
            len(self.stage_layers) == self.pp and sum(self.stage_layers) == self.model.layers,
            f"megatron.stage_layers: {self.stage_layers} are not layers({self.model.layers}) on pp({self.pp}) stages",
        )
        known = (RecomputeKind.NONE, RecomputeKind.SELECTIVE, RecomputeKind.FULL)
        require(
            self.recompute in known, f"megatron.recompute: {self.recompute} is not known; known: {', '.join(known)}"
        )

    @property
    def tokens(self) -> int:
        """Tokens of a micro-batch that a rank computes on: s b / cp."""
        return self.seq_len * self.micro_batch // self.cp

    @property
    def stream_tokens(self) -> int:
        """Tokens of the residual stream and the norms that a rank keeps: divided by tp under sequence parallelism."""
        return self.tokens // self.tp if self.sequence_parallel else self.tokens

    @property
    def vocab_rows(self) -> int:
        """Rows of the padded embedding that a rank holds."""
        multiple = VOCAB_MULTIPLE * self.tp
        return -(-self.model.vocab // multiple) * multiple // self.tp

    def in_flight(self, stage: int) -> float:
        """Micro-batches' worth of a stage's activations that it holds at most.

        1F1B: p - i on stage i. Interleaved: 2 (p - i - 1) + (v - 1) p + 1 chunks of a v-th each. Zero-bubble schedules:
        the limits of arXiv:2401.10241, table 2, the same on every stage: weight gradients that wait hold on to what
        they read. Never more than the step's micro-batches.
        """
        p, v = self.pp, self.chunks
        if self.schedule is PipelineMemory.INTERLEAVED and v > 1:
            return min(self.micro_batches * v, 2 * (p - stage - 1) + (v - 1) * p + 1) / v
        limits = {
            PipelineMemory.ZB_H1: p, PipelineMemory.ZB_1P: p, PipelineMemory.ZBV: p,
            PipelineMemory.ZB_H2: 2 * p - 1, PipelineMemory.ZB_2P: 2 * p,
        }  # fmt: skip
        return min(self.micro_batches, limits.get(self.schedule, p - stage))
