"""Bytes of a key-value cache: what a token costs in each layer, by the form of attention. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass

from suite.models.encoder_decoder import EncoderDecoderSpec
from suite.parse import require

#: bytes an element of the caches' number formats
CACHE_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2, "fp8": 1, "int8": 1}


def kv_bytes_per_token(layers: int, kv_heads: int, head_dim: int, element_bytes: int = 2, tp: int = 1) -> int:
    """Bytes a rank stores for one token: 2 L k d bytes (a key and a value of every key-value head in every layer).

    MHA has as many key-value heads as heads, GQA fewer, MQA one (arXiv:2305.13245). Tensor parallelism divides heads;
    where it has more ranks than heads, each rank stores a whole one. Not counted: paging's round-up to whole blocks.
    """
    for name, size in (("layers", layers), ("kv_heads", kv_heads), ("head_dim", head_dim), ("tp", tp)):
        require(size >= 1, f"kv_cache.{name}: must be at least 1, got {size}")
    return 2 * layers * max(1, kv_heads // tp) * head_dim * element_bytes


def latent_bytes_per_token(layers: int, latent: int, rope_dim: int, element_bytes: int = 2) -> int:
    """Bytes a rank stores for one token under multi-head latent attention: L (d_c + d_rope) bytes.

    The compressed latent stands for keys and values together, beside one rotated key that all heads share
    (arXiv:2405.04434, section 2.1); tensor parallelism does not divide it.
    """
    for name, size in (("layers", layers), ("kv_lora_rank", latent)):
        require(size >= 1, f"kv_cache.{name}: must be at least 1, got {size}")
    require(rope_dim >= 0, f"kv_cache.rope_dim: must not be negative, got {rope_dim}")
    return layers * (latent + rope_dim) * element_bytes


@dataclass(frozen=True)
class CrossCacheBytes:
    """Bytes of an encoder-decoder's cache: of the target, which grow with it, and of the source, made once."""

    target: int
    source: int


def cross_cache_bytes(
    spec: EncoderDecoderSpec, sequences: int, source: int, target: int, element_bytes: int = 2
) -> CrossCacheBytes:
    """2 g a d bytes for each token of the target and, by cross-attention, for each of the source: a key and a value of
    every head in each of the decoder's g blocks. The encoder's blocks keep none. Not counted: the encoder's output,
    which no block reads once its keys and values are made."""
    token = kv_bytes_per_token(spec.decoder_layers, spec.heads, spec.head_dim, element_bytes)
    return CrossCacheBytes(target * sequences * token, source * sequences * token)


def kv_blocks(pool_bytes: float, block_tokens: int, token_bytes: int) -> int:
    """Whole blocks of a paged cache that a pool has room for (arXiv:2309.06180, section 4.3)."""
    require(block_tokens >= 1, f"kv_cache.block_tokens: must be at least 1, got {block_tokens}")
    return int(pool_bytes // (block_tokens * token_bytes))
