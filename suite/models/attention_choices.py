"""A decoder with another form of attention, all else as it is: multi-head, grouped-query, multi-query, latent."""

from __future__ import annotations

from dataclasses import replace

from suite.models.decoder import DecoderSpec
from suite.models.latent import latent_of
from suite.parse import require

#: key-value heads of the sizes that arXiv:2305.13245, section 3.2, settles on, and Llama 2 and 3 and Qwen2.5 have
GROUPS = 8


def with_kv_heads(spec: DecoderSpec, kv_heads: int) -> DecoderSpec:
    """The decoder with so many key-value heads of its own width: all heads (multi-head attention), one (multi-query,
    arXiv:1911.02150), or between them (grouped-query, arXiv:2305.13245). A latent is given up. SpecError where the
    heads do not divide evenly."""
    require(kv_heads >= 1, f"model.kv_heads: must be at least 1, got {kv_heads}")
    width = head_width(spec)
    return replace(spec, kv_heads=kv_heads, head_dim=width, latent=None)


def head_width(spec: DecoderSpec) -> int:
    """Elements of a head's value: d_h."""
    return spec.head_dim if spec.latent is None else spec.latent.v_dim


def with_latent(spec: DecoderSpec) -> DecoderSpec:
    """The decoder with latent attention in DeepSeek-V2's proportions; one that has a latent is itself."""
    return replace(latent_of(spec), name=spec.name)
