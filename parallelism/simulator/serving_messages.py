"""What ranks say to each other while a model answers."""

from __future__ import annotations

from collections.abc import Iterator

from suite.cache_shape import CacheShape, compute_dtype
from suite.case import Case
from suite.collectives import Collective, Message


def serving_messages(case: Case, tokens: int) -> Iterator[Message]:
    """What ranks say in a pass over so many tokens of every sequence: with tensor parallelism the sums of the embedding
    and of both halves of every block, and the last token's logits, gathered; in a pipeline the stream, from each stage
    to the next."""
    layout, spec, size = case.layout, case.model, compute_dtype(case).nbytes
    sequences = CacheShape.of(case).sequences
    stream = sequences * tokens * spec.hidden * size
    if layout.tp > 1:
        yield Message(
            Collective.ALL_REDUCE, "tp", layout.tp, stream, 2 * spec.layers + 1,
            "outputs of the embedding, attention and MLP, summed", f"b*s*h*{size}", "arXiv:1909.08053, section 3",
        )  # fmt: skip
        yield Message(
            Collective.ALL_GATHER, "tp", layout.tp, sequences * spec.vocab * size, 1,
            "the last token's logits", f"b*V*{size}", "arXiv:1909.08053, section 3",
        )  # fmt: skip
    if layout.pp > 1:
        yield Message(
            Collective.SEND, "pp", layout.pp, stream, layout.pp - 1,
            "the stream, from a stage to the next", f"b*s*h*{size}", "arXiv:2104.04473, section 2.2",
        )  # fmt: skip
