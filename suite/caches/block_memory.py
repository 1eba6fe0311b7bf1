"""Block memory in InfLLM's manner (arXiv:2402.04617, section 3): the device has the first tokens and the newest, the
host the others in blocks, of which a pass fetches what it asks for."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from suite.block_shape import BlockShape
from suite.cache import CacheSpec
from suite.cache_shape import CacheShape
from suite.caches.base import LANES, NOTHING, CacheFull, Sight, sight_of
from suite.caches.block_plan import BlockPlan, plan_of
from suite.caches.flat import reorder_sequences, tensors_of, zeroed
from suite.caches.full import MakeStore
from suite.caches.store import Store
from suite.record import Component

HOST = torch.device("cpu")


class BlockLayer:
    """One layer: stores of all sequences' entries in a row. On the device a lane has the sinks, the newest tokens and
    room for the fetched blocks; of keys there are each block's representatives too. The host has the blocks.

    A pass calls `extend`, `fetch` and `keep` in that order. Keys are kept as they were before rotation.
    """

    def __init__(self, shape: CacheShape, make: MakeStore, on_host: MakeStore, cache: BlockMemory) -> None:
        size, self._cache = cache.size, cache
        rows, (keys, values) = shape.sequences, shape.lanes

        def both(make: MakeStore, entries: int) -> tuple[Store, Store]:
            return zeroed(make(1, rows * entries, keys)), zeroed(make(1, rows * entries, values))

        self.sinks, self.recent = both(make, size.sinks), both(make, size.recent)
        self.fetched = both(make, size.fetched * size.block)
        self.representatives = zeroed(make(1, rows * size.blocks * size.representatives, keys))
        self.blocks = both(on_host, size.blocks * size.block)
        #: what the queries within the window after each of the newest tokens scored it, summed
        self.scores = torch.zeros(rows, size.recent, device=cache.places.device)

    def extend(self, *new: Tensor) -> tuple[Tensor, ...]:
        """Sinks, the newest tokens and the new ones, [b, sinks + recent + s, k, d] each; nothing is kept yet."""
        return tuple(
            torch.cat((_all(sinks, len(lane)), _all(recent, len(lane)), lane), dim=1)
            for sinks, recent, lane in zip(self.sinks, self.recent, new, strict=True)
        )

    def chosen(self, query: Tensor) -> tuple[Tensor, Tensor]:
        """The blocks whose representatives score highest, [b, fetched], and whether there are so many, by
        sim(X, B) = sum of q k over X's queries and B's representatives (section 3), here over all heads.
        query [b, k, d]: the sum of the pass's queries that read a key-value head, as they read what is far."""
        size = self._cache.size
        keys = _all(self.representatives, len(query)).unflatten(1, (size.blocks, size.representatives)).sum(dim=2)
        similar = torch.einsum("bnkd,bkd->bn", keys.float(), query.float())
        there = torch.arange(size.blocks, device=query.device) < self._cache.plan.blocks[:, None]
        best = similar.masked_fill(~there, float("-inf")).topk(size.fetched, dim=1).indices
        return best, there.gather(1, best)

    def fetch(self, query: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
        """Bring the chosen blocks to the device: their lanes [b, fetched * block, k, d], and which entries are there,
        [b, fetched * block]."""
        size, (best, there) = self._cache.size, self.chosen(query)
        first = (best + torch.arange(len(best), device=best.device)[:, None] * size.blocks) * size.block
        at = (first.unsqueeze(-1) + torch.arange(size.block, device=best.device)).flatten().to(HOST)
        for host, device in zip(self.blocks, self.fetched, strict=True):
            device.write(slice(None), host.read(at).to(device.payload.device))
        return tuple(_all(store, len(query)) for store in self.fetched), there.repeat_interleave(size.block, dim=1)

    def keep(self, lanes: tuple[Tensor, ...], scores: Tensor) -> None:
        """Keep the new tokens of what `extend` returned; send blocks that have left the window to the host.
        scores [b, t]: what this pass's queries scored each entry. Those tokens of a block stand for it that the queries
        within the window after them scored highest (section 3)."""
        size, plan = self._cache.size, self._cache.plan
        begin, end = size.sinks, size.sinks + size.recent
        scores[:, begin:end] += self.scores
        flat = tuple(lane.flatten(0, 1) for lane in lanes)
        for stores, move in ((self.sinks, plan.to_sinks), (self.recent, plan.to_recent)):
            for store, lane in zip(stores, flat, strict=True):
                store.write(move.target, lane[move.source].unsqueeze(0))
        for host, lane in zip(self.blocks, flat, strict=True):
            host.write(plan.to_host.target.to(HOST), lane[plan.to_host.source].unsqueeze(0).to(HOST))
        source = plan.to_host.source.view(-1, size.block)
        best = scores.flatten()[source].topk(size.representatives, dim=1).indices
        self.representatives.write(plan.to_representatives, flat[0][source.gather(1, best).flatten()].unsqueeze(0))
        self.scores.copy_(scores[:, begin:end])
        self.scores.view(-1)[plan.to_recent.target] = scores.flatten()[plan.to_recent.source]

    @property
    def on_device(self) -> tuple[tuple[Store, ...], tuple[Store, ...]]:
        """Stores of keys and of values."""
        keys, values = zip(self.sinks, self.recent, self.fetched, strict=True)
        return (*keys, self.representatives), values


class BlockMemory:
    """A whole model's block memory. Blocks are the same places in every layer, but each layer chooses its own.

    `places` [b, recent] (int64) says where the newest tokens stand. A token of place p lies at entry (p - sinks) %
    recent, so a prompt's padding takes no entry. Every layer has room for its fetched blocks; they are fetched anew in
    every pass. Tensor-parallel ranks choose by the heads that they have.
    """

    def __init__(
        self, shape: CacheShape, spec: CacheSpec, make: MakeStore, on_host: MakeStore, device: torch.device,
        frequencies: Tensor | None,
    ) -> None:  # fmt: skip
        self.size, self._room = BlockShape.of(shape, spec), shape.room
        #: of the model's rotation, [rotary_dim / 2]; None where positions are learned
        self.frequencies = None if frequencies is None else frequencies.to(device)
        self.lengths = [0] * shape.sequences
        self.places = torch.full((shape.sequences, self.size.recent), NOTHING, device=device)
        self._layers = tuple(BlockLayer(shape, make, on_host, self) for _ in range(shape.layers))
        self._plan = plan_of(self.size, self.lengths, self.places, torch.full_like(self.places[:, :1], NOTHING))

    @property
    def layers(self) -> tuple[BlockLayer, ...]:
        """One a block of the model."""
        return self._layers

    @property
    def plan(self) -> BlockPlan:
        """Where the tokens of the latest `advance` go."""
        return self._plan

    @property
    def positions(self) -> Tensor:
        """What the model is told of the latest tokens' places, [b, s]: 0 where its rotation is not used."""
        places = self._plan.queries.clamp(min=0)
        return places if self.frequencies is None else torch.zeros_like(places)

    @property
    def sight(self) -> Sight:
        """What the latest tokens may read of what `extend` returns: whatever comes before them."""
        return sight_of(self._plan.queries, self._plan.entries)

    def advance(self, places: Tensor) -> None:
        """Make ready for tokens at these places."""
        ends = [length + new for length, new in zip(self.lengths, (places != NOTHING).sum(1).tolist(), strict=True)]
        if max(ends) > self._room:
            raise CacheFull(f"the cache has room for {self._room} tokens of a sequence, and {max(ends)} are there")
        self._plan = plan = plan_of(self.size, self.lengths, self.places, places)
        self.lengths = ends
        self.places.masked_fill_(self.places < plan.begin, NOTHING)
        self.places.view(-1)[plan.to_recent.target] = plan.entries.flatten()[plan.to_recent.source]

    def reorder(self, rows: Tensor) -> None:
        """Let sequence i go on from what sequence rows[i] holds, on the host too."""
        self.lengths = [self.lengths[row] for row in rows.tolist()]
        self.places.copy_(self.places[rows])
        for layer in self._layers:
            layer.scores.copy_(layer.scores[rows])
            for store in (*layer.on_device[0], *layer.on_device[1]):
                reorder_sequences(store, rows)
            for store in layer.blocks:
                reorder_sequences(store, rows.to(HOST))

    def held(self) -> Mapping[Component, tuple[Tensor, ...]]:
        """Stores by what they are for, blocks with their scales as the host's; places and scores as tables."""
        lanes = {lane: [s for layer in self._layers for s in layer.on_device[i]] for i, lane in enumerate(LANES)}
        held = {lane: tuple(store.payload for store in stores) for lane, stores in lanes.items()}
        scales = tuple(scale for stores in lanes.values() for store in stores for scale in store.scales)
        return {
            **held, **({Component.SCALES: scales} if scales else {}),
            Component.TABLES: (self.places, *(layer.scores for layer in self._layers)),
            Component.HOST: tuple(x for layer in self._layers for store in layer.blocks for x in tensors_of(store)),
        }  # fmt: skip


def _all(store: Store, sequences: int) -> Tensor:
    """Every entry, [b, entries a sequence, heads, width]."""
    found = store.read(slice(None))[0]
    return found.unflatten(0, (sequences, len(found) // sequences))
