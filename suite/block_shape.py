"""How many tokens a block memory has on the device and on the host (arXiv:2402.04617, section 3). Torch-free."""

from __future__ import annotations

from dataclasses import dataclass

from suite.cache import CacheSpec
from suite.cache_shape import CacheShape


@dataclass(frozen=True)
class BlockShape:
    """Entries of a sequence in a layer. A token of place p < sinks is a sink; block j has the `block` places from
    sinks + j * block on, and goes to the host when no later query has any of them in its window."""

    sinks: int
    window: int
    block: int
    representatives: int
    blocks: int  # that the host has room for
    fetched: int  # that a pass fetches back
    recent: int  # entries for what is neither a sink nor on the host: the window, and a block not yet full

    @classmethod
    def of(cls, shape: CacheShape, spec: CacheSpec) -> BlockShape:
        """Of a cache of kind BLOCKS, with room for `shape.room` tokens of a sequence."""
        assert spec.sinks is not None
        assert spec.window is not None
        assert spec.memory_block is not None
        blocks = full_blocks(shape.room, spec.sinks, spec.window, spec.memory_block)
        between = spec.window + spec.memory_block - 2  # a window without the query's own token, a block but for one
        return cls(
            sinks=spec.sinks, window=spec.window, block=spec.memory_block, representatives=spec.representatives,
            blocks=blocks, fetched=min(spec.fetched_blocks, blocks),
            recent=max(1, min(between, shape.room - spec.sinks)),
        )  # fmt: skip


def full_blocks(tokens: int, sinks: int, window: int, block: int) -> int:
    """Blocks of a text of so many tokens that no query behind it has in its window."""
    return max(0, tokens - window + 1 - sinks) // block
