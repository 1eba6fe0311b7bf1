"""The Transformer's specification (Vaswani et al., arXiv:1706.03762): an encoder-decoder with post-norm. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass

from suite.models.base import TaskKind
from suite.models.encoder_decoder import EncoderDecoderSpec
from suite.parse import require, setting


@dataclass(frozen=True)
class TransformerSpec(EncoderDecoderSpec):
    """h hidden, a heads of d, f ffn, V vocab; e blocks of the encoder, g of the decoder.

    Parameters: V h (+ V h untied) + e (4 h a d + n + 4 h) + g (8 h a d + n + 6 h), n = 2 h f + f + h the feed-forward
    network with its biases; with `attention_bias` also 3 a d + h an attention. One embedding serves source and target
    (section 3.4); positions are sinusoids (section 3.5), which are no parameters.

    The last two ids are no text: the end of a sequence, and what pads one and begins a target.
    """

    layers: int = setting(4, "blocks of encoder and decoder together")
    encoder_layers: int = setting(0, "of them the encoder's (0: half)")
    hidden: int = setting(128, "width of the residual stream")
    heads: int = setting(4, "heads of every attention")
    head_dim: int = setting(0, "width of a head (0: hidden / heads)")
    ffn: int = setting(512, "width of the feed-forward network")
    vocab: int = setting(2048, "rows of the embedding")
    max_positions: int = setting(1024, "longest sequence")
    attention_bias: bool = setting(False, "biases in the attentions' projections too (section 3.2.2 has none)")
    tied: bool = setting(True, "head shares the embedding's weight")
    label_smoothing: float = setting(0.1, "share of a label's probability that goes to all tokens alike (section 5.4)")
    norm_eps: float = setting(1e-5, "added under the norm's root")
    family: str = setting("transformer", "model family")
    name: str = setting("custom", "what reports call it")

    def __post_init__(self) -> None:
        self.check_sizes()
        require(0 <= self.label_smoothing < 1, f"model.label_smoothing: must be in [0, 1), got {self.label_smoothing}")
        require(self.hidden % 2 == 0, f"model.hidden: sinusoids come in pairs; {self.hidden} is not even")
        require(self.family == "transformer", f"model.family: {self.family!r} is not 'transformer'")

    @property
    def kv_heads(self) -> int:  # type: ignore[override]
        """As many as heads."""
        return self.heads

    @property
    def task(self) -> TaskKind:  # type: ignore[override]
        """Denoising."""
        return TaskKind.DENOISING

    @property
    def reserved_ids(self) -> int:  # type: ignore[override]
        """The end and the padding."""
        return 2

    @property
    def end_id(self) -> int:
        """What ends a sequence."""
        return self.vocab - 1

    @property
    def pad_id(self) -> int:
        """What fills a short sequence up, and begins a target."""
        return self.vocab - 2

    def target_len(self, seq_len: int) -> int:
        """As long as the source: a noisy copy is never longer than the clean text."""
        require(seq_len >= 2, f"workload.seq_len: {seq_len} holds no token beside the end's; give at least 2")
        return seq_len
