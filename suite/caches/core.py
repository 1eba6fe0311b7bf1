"""A decoder that answers through a cache: which core takes the place of its own, and the logits of what is read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from suite.cache import LatentForm
from suite.caches.attend import CachedCore
from suite.caches.base import Cache, CacheLayer
from suite.caches.block_core import BlockCore
from suite.caches.block_memory import BlockLayer, BlockMemory
from suite.caches.latent_core import LATENT_CORES
from suite.caches.sink_core import RecountingCore
from suite.caches.sinks import SinkCache
from suite.models.blocks import Attention
from suite.models.decoder_module import Decoder
from suite.models.latent_attention import LatentAttention


def core_of(layer: CacheLayer, cache: Cache) -> nn.Module:
    """The core that reads such a cache."""
    if isinstance(layer, BlockLayer) and isinstance(cache, BlockMemory):
        return BlockCore(layer, cache)
    return RecountingCore(layer, cache) if isinstance(cache, SinkCache) else CachedCore(layer, cache)


@contextmanager
def through(model: Decoder, cache: Cache, form: LatentForm = LatentForm.ABSORBED) -> Iterator[None]:
    """Let the model's attention go through a cache; its own cores are back afterwards. form: how latent attention reads
    what it keeps."""
    attentions = [module for module in model.modules() if isinstance(module, Attention | LatentAttention)]
    own = [attention.core for attention in attentions]
    for attention, layer in zip(attentions, cache.layers, strict=True):
        is_latent = isinstance(attention, LatentAttention)
        attention.core = LATENT_CORES[form](layer, cache) if is_latent else core_of(layer, cache)
    try:
        yield
    finally:
        for attention, core in zip(attentions, own, strict=True):
            attention.core = core
        model.own_positions = None


def next_logits(model: Decoder, cache: Cache, ids: Tensor, places: Tensor) -> Tensor:
    """Read tokens [b, s] that stand at these places [b, s] into the cache; logits of the last one, [b, V] in fp32.
    To be called within `through`; CacheFull where there is no room."""
    cache.advance(places)
    # padding is looked up somewhere, and read by nobody
    model.own_positions = cache.positions if isinstance(cache, SinkCache | BlockMemory) else places.clamp(min=0)
    assert model.norm is not None
    assert model.head is not None
    return model.head(model.norm(model.trunk(ids)[:, -1:]))[:, 0].float()
