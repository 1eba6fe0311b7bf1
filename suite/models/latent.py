"""A decoder's counterpart with multi-head latent attention, for comparisons. Torch-free."""

from __future__ import annotations

from dataclasses import replace

from suite.models.decoder import DecoderSpec, Mixing, Position
from suite.models.latent_shape import Latent


def latent_of(spec: DecoderSpec) -> DecoderSpec:
    """The same decoder with latent attention in DeepSeek-V2's proportions (arXiv:2405.04434, section 2.1.3): with heads
    d_h wide, a latent of 4 d_h and a shared rotated key of d_h / 2, rounded up to a pair. Each head's own key and
    value are d_h wide (section 3.1.2), queries are projected directly. A latent model is returned as it is.

    Learned positions become rotary ones; what latent attention has no place for is left out: biases, a window, a
    rotated fraction, a key-value head that several queries share.
    """
    if spec.latent is not None:
        return spec
    width = spec.head_dim
    pairs = -(-width // 4)
    return replace(
        spec, latent=Latent(kv_rank=4 * width, rope_dim=2 * pairs, nope_dim=width, v_dim=width), head_dim=0, kv_heads=0,
        position=Position.ROPE, mixing=Mixing.SOFTMAX, rope_fraction=1.0, bias=False, qkv_bias=False, window=None,
        name=f"{spec.name}-mla",
    )  # fmt: skip
