"""How long span corruption's sources and targets are (arXiv:1910.10683, section 3.1.4). Torch-free."""

from __future__ import annotations

from dataclasses import dataclass

from suite.parse import require

#: of a text's tokens, those that are to be found again; and the mean length of a run of them
NOISE_DENSITY, MEAN_SPAN = 0.15, 3.0
#: the shortest source: one token, one sentinel, the end
SHORTEST = 3


@dataclass(frozen=True)
class SpanLengths:
    """Of one example."""

    text: int
    """tokens of the text that it is made of"""
    noise: int
    """tokens that are replaced"""
    spans: int
    """runs of them"""

    @property
    def source(self) -> int:
        """Tokens that are left, a sentinel a span, the end."""
        return self.text - self.noise + self.spans + 1

    @property
    def target(self) -> int:
        """The replaced tokens, each span after its sentinel; the end."""
        return self.noise + self.spans + 1


def lengths_of_text(text: int) -> SpanLengths:
    """What `text` tokens become: 15 % of them rounded, at least one and not all, in spans of 3 on average."""
    noise = min(max(round(text * NOISE_DENSITY), 1), text - 1)
    return SpanLengths(text, noise, max(round(noise / MEAN_SPAN), 1))


def lengths_of_source(source: int) -> SpanLengths:
    """Those of the longest text whose source has `source` tokens: a token more makes a source longer by one, or by
    none, so one always fits to the token. SpecError for a source that holds no such text."""
    require(
        source >= SHORTEST,
        f"workload.seq_len: {source} holds no corrupted text; give at least {SHORTEST}: a token, a sentinel, the end",
    )
    text = source - 1  # of which at least one becomes a sentinel, and never fewer tokens than sentinels go
    while lengths_of_text(text + 1).source <= source:
        text += 1
    return lengths_of_text(text)
