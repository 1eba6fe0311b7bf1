"""What ranks say to each other: collectives, the bytes each puts on the wire, and the messages of a step.

Two sizes are told apart. The payload is what the caller hands over: the whole tensor of an all-reduce, a broadcast or
a reduce, the whole gathered output of an all-gather or a gather, the whole input of a reduce-scatter, an all-to-all or
a scatter, the tensor that is sent. What is sent is what one rank then puts on the wire, by the bandwidth-optimal
algorithm. Sent bytes are Fractions, for a ring's share of a payload need not be a whole number, and so that equal means
equal.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from fractions import Fraction
from typing import Protocol


class Collective(StrEnum):
    """What ranks do together. A send counts once, on the rank that sends; a barrier carries no bytes: not here."""

    ALL_REDUCE = "all_reduce"
    ALL_GATHER = "all_gather"
    REDUCE_SCATTER = "reduce_scatter"
    ALL_TO_ALL = "all_to_all"
    BROADCAST = "broadcast"
    REDUCE = "reduce"
    GATHER = "gather"
    SCATTER = "scatter"
    SEND = "send"


def sent_bytes(collective: Collective, payload: int, ranks: int) -> Fraction:
    """Bytes one of `ranks` ranks puts on the wire for a payload of so many bytes; 0 in a group of one.

    All-reduce: 2 (n-1)/n of the payload (a ring's reduce-scatter and all-gather). All-gather, reduce-scatter: (n-1)/n.
    All-to-all: (n-1)/n, an equal part to every other rank. Send: all of it. Broadcast and reduce: n-1 payloads cross
    the wire whatever the tree, (n-1)/n of one as the mean over the ranks. Gather and scatter: n-1 parts of an n-th,
    (n-1)/n^2 as the mean over the ranks. Not counted: headers, handshakes, what a backend sends beyond this (gloo may
    run a reduce-scatter as an all-reduce). Patarasuk and Yuan 2009, doi:10.1016/j.jpdc.2008.09.002, section 3.
    """
    if ranks == 1:
        return Fraction(0)
    others = Fraction(ranks - 1, ranks)
    match collective:
        case Collective.ALL_REDUCE:
            return 2 * others * payload
        case Collective.SEND:
            return Fraction(payload)
        case Collective.GATHER | Collective.SCATTER:
            return others / ranks * payload
        case _:
            return others * payload


@dataclass(frozen=True, slots=True)
class Call:
    """One collective that ran: `payload` bytes of `dtype` in a group of `ranks`."""

    collective: Collective
    ranks: int
    payload: int
    dtype: str = ""

    @property
    def count(self) -> int:
        """A call is one call."""
        return 1


@dataclass(frozen=True, slots=True)
class Message:
    """A line of a traffic estimate: `count` calls a step with `payload` bytes each, in a group of `ranks`.

    `axis` is the layout's field whose ranks talk; `purpose` says what for; `formula` gives the payload in letters.
    """

    collective: Collective
    axis: str
    ranks: int
    payload: int
    count: int
    purpose: str
    formula: str
    source: str

    @property
    def sent(self) -> Fraction:
        """Bytes this rank sends in a step for all its calls."""
        return self.count * sent_bytes(self.collective, self.payload, self.ranks)


@dataclass(frozen=True, slots=True)
class Tally:
    """What a rank did of one collective in a step: calls, bytes handed over, bytes sent."""

    count: int = 0
    payload: int = 0
    sent: Fraction = Fraction(0)


class Counted(Protocol):
    """A Call or a Message."""

    @property
    def collective(self) -> Collective:
        """What was done."""
        ...

    @property
    def ranks(self) -> int:
        """In a group of so many."""
        ...

    @property
    def payload(self) -> int:
        """Bytes of one call."""
        ...

    @property
    def count(self) -> int:
        """So often."""
        ...


def tally(rows: Iterable[Counted]) -> dict[Collective, Tally]:
    """Sums by collective, in the order of Collective. Calls in a group of one send nothing and are left out."""
    sums: dict[Collective, Tally] = {}
    for row in rows:
        if row.ranks > 1 and row.count:
            old = sums.get(row.collective, Tally())
            sent = row.count * sent_bytes(row.collective, row.payload, row.ranks)
            sums[row.collective] = Tally(old.count + row.count, old.payload + row.count * row.payload, old.sent + sent)
    return {collective: sums[collective] for collective in Collective if collective in sums}


@dataclass(frozen=True)
class TrafficEstimate:
    """The messages of one rank in one steady optimizer step."""

    messages: tuple[Message, ...]
    rank: int = 0

    @property
    def sent(self) -> Fraction:
        """Bytes sent in all."""
        return sum((message.sent for message in self.messages), Fraction(0))
