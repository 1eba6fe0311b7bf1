"""Greedy answers of encoder-decoders, through a cache or without: keys and values of the target grow by a token a step,
those of the source are made once, for cross-attention reads the same every time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from suite.models.encoder_decoder_module import EncoderDecoder
from suite.models.masked_attention import MaskedAttention, OpenCore


@dataclass
class Store:
    """Keys and values of one attention, [b, t, a, d] each."""

    keys: Tensor | None = None
    values: Tensor | None = None

    def grow(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """With those of new tokens behind; all of them."""
        self.keys = keys if self.keys is None else torch.cat([self.keys, keys], dim=1)
        self.values = values if self.values is None else torch.cat([self.values, values], dim=1)
        return self.keys, self.values

    @property
    def nbytes(self) -> int:
        """Bytes that are allocated for them."""
        return sum(tensor.untyped_storage().nbytes() for tensor in (self.keys, self.values) if tensor is not None)


@dataclass(frozen=True)
class CrossCache:
    """What every block of the decoder keeps of the target and of the source."""

    target: list[Store] = field(default_factory=list)
    source: list[Store] = field(default_factory=list)

    @property
    def target_bytes(self) -> int:
        """Bytes that grow with the target."""
        return sum(store.nbytes for store in self.target)

    @property
    def source_bytes(self) -> int:
        """Bytes that the source takes for good."""
        return sum(store.nbytes for store in self.source)


class _GrowingAttention(nn.Module):
    """Self-attention of new tokens to all until now, themselves the last."""

    def __init__(self, attention: MaskedAttention, scale: float, store: Store) -> None:
        super().__init__()
        self.attention, self.store = attention, store
        self.core = OpenCore(scale, is_causal=False)

    def forward(self, x: Tensor, source: Tensor | None, mask: Tensor | None) -> Tensor:
        own = self.attention
        keys, values = self.store.grow(own.heads(own.wk(x)), own.heads(own.wv(x)))
        return own.wo(self.core(own.heads(own.wq(x)), keys, values, mask).flatten(2))


class _FixedAttention(nn.Module):
    """Cross-attention to a source whose keys and values are made at its first call."""

    def __init__(self, attention: MaskedAttention, scale: float, store: Store) -> None:
        super().__init__()
        self.attention, self.store = attention, store
        self.core = OpenCore(scale, is_causal=False)

    def forward(self, x: Tensor, source: Tensor, mask: Tensor | None) -> Tensor:
        own, store = self.attention, self.store
        if store.keys is None or store.values is None:
            store.grow(own.heads(own.wk(source)), own.heads(own.wv(source)))
        return own.wo(self.core(own.heads(own.wq(x)), store.keys, store.values, mask).flatten(2))


@contextmanager
def through_cache(model: EncoderDecoder, cache: CrossCache) -> Iterator[None]:
    """Within it the decoder's attentions read and fill the cache; tokens are decoded one at a time."""
    before: list[tuple[nn.Module, str, nn.Module]] = []
    kinds = {"attention": (_GrowingAttention, cache.target), "cross": (_FixedAttention, cache.source)}
    try:
        for block in model.decoder:
            for name, (kind, stores) in kinds.items():
                attention = block.get_submodule(name)
                assert isinstance(attention, MaskedAttention)
                core = attention.core
                stores.append(Store())
                before.append((block, name, attention))
                setattr(block, name, kind(attention, float(core.scale), stores[-1]))  # type: ignore[arg-type]
        yield
    finally:
        for block, name, attention in before:
            setattr(block, name, attention)


@torch.no_grad()
def generate(
    model: EncoderDecoder, ids: Tensor, source_lengths: Tensor | None, new_tokens: int, cache: CrossCache | None
) -> Tensor:
    """The likeliest next token, new_tokens times: [b, new_tokens] for sources ids [b, s]. A row that has ended goes on
    with padding. Without a cache the whole target is read again for each token."""
    memory, mask = model.encode(ids, source_lengths)
    if cache is None:
        return _greedy(model, ids, new_tokens, lambda reads: model.decode(reads, memory, mask))
    with through_cache(model, cache):
        return _greedy(
            model, ids, new_tokens, lambda reads: model.decode(reads[:, -1:], memory, mask, reads.shape[1] - 1)
        )


def _greedy(model: EncoderDecoder, ids: Tensor, new_tokens: int, decode: Callable[[Tensor], Tensor]) -> Tensor:
    spec = model.spec
    reads = torch.full_like(ids[:, :1], spec.pad_id)
    has_ended = torch.zeros_like(reads[:, 0], dtype=torch.bool)
    for _ in range(new_tokens):
        logits = model.head(model.finish(decode(reads)[:, -1]))
        chosen = logits.argmax(-1).masked_fill(has_ended, spec.pad_id)
        has_ended |= chosen == spec.end_id
        reads = torch.cat([reads, chosen[:, None]], dim=1)
    return reads[:, 1:]
