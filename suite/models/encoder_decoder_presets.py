"""Named encoder-decoders: the Transformer's and T5's published shapes, and tiny ones for a CPU."""

from __future__ import annotations

from suite.models.base import ModelSpec
from suite.models.encoder_decoder import Feed
from suite.models.t5 import T5Spec
from suite.models.transformer import TransformerSpec

TRANSFORMER_VOCAB = 37000  # arXiv:1706.03762, section 5.1
T5_VOCAB = 32128


def _transformer(name: str, layers: int, hidden: int, heads: int, vocab: int = TRANSFORMER_VOCAB) -> TransformerSpec:
    """So many blocks in either stack, f = 4h."""
    return TransformerSpec(
        name=name, layers=2 * layers, hidden=hidden, heads=heads, ffn=4 * hidden, vocab=vocab, max_positions=1024
    )


def _t5(name: str, layers: int, hidden: int, ffn: int, heads: int, head_dim: int = 64) -> T5Spec:
    """v1.0: so many blocks in either stack."""
    return T5Spec(name=name, layers=2 * layers, hidden=hidden, heads=heads, head_dim=head_dim, ffn=ffn, vocab=T5_VOCAB)


def _t5_v1_1(name: str, layers: int, hidden: int, ffn: int, heads: int) -> T5Spec:
    """v1.1: gated GELU, a head of its own."""
    return T5Spec(
        name=name, layers=2 * layers, hidden=hidden, heads=heads, head_dim=64, ffn=ffn, vocab=T5_VOCAB,
        feed=Feed.GATED_GELU, tied=False,
    )  # fmt: skip


_PRESETS: tuple[ModelSpec, ...] = (
    # for a 2-core CPU: about 1 M parameters
    _transformer("transformer-1m", 2, 128, 4, 1024),
    T5Spec(name="t5-1m", layers=4, hidden=128, heads=4, ffn=512, vocab=1024),
    # arXiv:1706.03762, table 3
    _transformer("transformer-base", 6, 512, 8),
    _transformer("transformer-big", 6, 1024, 16),
    # arXiv:1910.10683, section 3.7.2, and the released checkpoints' config.json (google-t5/t5-*)
    _t5("t5-small", 6, 512, 2048, 8),
    _t5("t5-base", 12, 768, 3072, 12),
    _t5("t5-large", 24, 1024, 4096, 16),
    _t5("t5-3b", 24, 1024, 16384, 32, head_dim=128),
    _t5("t5-11b", 24, 1024, 65536, 128, head_dim=128),
    # the released checkpoints' config.json (google/t5-v1_1-*)
    _t5_v1_1("t5-v1.1-small", 8, 512, 1024, 6),
    _t5_v1_1("t5-v1.1-base", 12, 768, 2048, 12),
    _t5_v1_1("t5-v1.1-large", 24, 1024, 2816, 16),
    _t5_v1_1("t5-v1.1-xl", 24, 2048, 5120, 32),
    _t5_v1_1("t5-v1.1-xxl", 24, 4096, 10240, 64),
)

ENCODER_DECODERS: dict[str, ModelSpec] = {spec.name: spec for spec in _PRESETS}
