"""T5's specification (arXiv:1910.10683), v1.0 and v1.1: an encoder-decoder with relative positions. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass

from suite.models.base import TaskKind
from suite.models.encoder_decoder import EncoderDecoderSpec, Feed
from suite.models.span_lengths import lengths_of_source
from suite.parse import require, setting


@dataclass(frozen=True)
class T5Spec(EncoderDecoderSpec):
    """h hidden, a heads of d, f ffn, V vocab; e blocks of the encoder, g of the decoder, r buckets.

    Parameters: V h (+ V h untied) + e (4 h a d + n + 2 h) + g (8 h a d + n + 3 h) + 2 r a + 2 h, n = 2 h f (gated
    3 h f) the feed-forward network: no biases, RMSNorm before each sub-block and after each stack. The bias of relative
    positions is one table a stack, which its blocks share; scores are not divided by sqrt(d).

    With attention=flash cross-attention runs fused. Self-attention stays in the open: its bias is learned, and no fused
    kernel of torch's on the CPU, and no flash kernel on a GPU, makes a bias's gradient.

    The last ids are no text: the sentinels from the last one down, the end, the padding, which begins a target.
    """

    layers: int = setting(4, "blocks of encoder and decoder together")
    encoder_layers: int = setting(0, "of them the encoder's (0: half)")
    hidden: int = setting(128, "width of the residual stream")
    heads: int = setting(4, "heads of every attention")
    head_dim: int = setting(0, "width of a head, d_kv (0: hidden / heads)")
    ffn: int = setting(512, "width of the feed-forward network")
    vocab: int = setting(2048, "rows of the embedding")
    max_positions: int = setting(1_000_000, "longest sequence; relative positions know no end")
    feed: Feed = setting(Feed.RELU, "feed-forward network: relu (v1.0) or gated-gelu (v1.1)")
    tied: bool = setting(True, "head shares the embedding's weight, its input scaled by hidden^-0.5 (v1.0)")
    buckets: int = setting(32, "distances that the relative-position bias tells apart")
    max_distance: int = setting(128, "from where on distances share a bucket")
    sentinels: int = setting(100, "ids that stand for a span")
    norm_eps: float = setting(1e-6, "added under the norm's root")
    family: str = setting("t5", "model family")
    name: str = setting("custom", "what reports call it")

    def __post_init__(self) -> None:
        self.check_sizes()
        require(
            self.buckets >= 4 and self.buckets % 4 == 0,
            f"model.buckets: must be a multiple of 4, at least 4, got {self.buckets}",
        )
        require(
            self.max_distance > self.buckets // 2,
            f"model.max_distance: {self.max_distance} must be beyond half of buckets({self.buckets}), which are exact",
        )
        require(self.sentinels >= 1, f"model.sentinels: must be at least 1, got {self.sentinels}")
        require(self.family == "t5", f"model.family: {self.family!r} is not 't5'")

    @property
    def kv_heads(self) -> int:  # type: ignore[override]
        """As many as heads."""
        return self.heads

    @property
    def task(self) -> TaskKind:  # type: ignore[override]
        """Span corruption."""
        return TaskKind.SPANS

    @property
    def reserved_ids(self) -> int:  # type: ignore[override]
        """Sentinels, the end and the padding."""
        return self.sentinels + 2

    @property
    def end_id(self) -> int:
        """What ends a sequence."""
        return self.vocab - 1 - self.sentinels

    @property
    def pad_id(self) -> int:
        """What begins a target."""
        return self.end_id - 1

    @property
    def head_scale(self) -> float:
        """hidden^-0.5 before a tied head, else 1."""
        return self.hidden**-0.5 if self.tied else 1.0

    def target_len(self, seq_len: int) -> int:
        """Tokens of span corruption's targets for sources of seq_len."""
        return lengths_of_source(seq_len).target
