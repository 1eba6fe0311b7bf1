"""Bytes on the wire by hand: a ring of n ranks passes n-1 parts on, an all-reduce twice."""

from __future__ import annotations

from fractions import Fraction

import pytest

from suite.collectives import Call, Collective, Message, Tally, sent_bytes, tally

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("collective", "payload", "ranks", "sent"),
    [
        # a ring of 4 over 400 bytes: parts of 100, three passed on to reduce and three more to gather
        (Collective.ALL_REDUCE, 400, 4, 600),
        (Collective.ALL_GATHER, 400, 4, 300),
        (Collective.REDUCE_SCATTER, 400, 4, 300),
        # 400 bytes in, 100 of them for each rank, one of which is this one
        (Collective.ALL_TO_ALL, 400, 4, 300),
        (Collective.SEND, 400, 4, 400),
        # three of four ranks are told 400 bytes: 1200 cross the wire, 300 a rank
        (Collective.BROADCAST, 400, 4, 300),
        (Collective.REDUCE, 400, 4, 300),
        # three of four ranks send or get their 100: 300 cross the wire, 75 a rank
        (Collective.GATHER, 400, 4, 75),
        (Collective.SCATTER, 400, 4, 75),
        # a scalar over three ranks is not cut evenly, and stays exact
        (Collective.ALL_REDUCE, 4, 3, Fraction(16, 3)),
    ],
)
def test_sent_bytes(collective: Collective, payload: int, ranks: int, sent: Fraction) -> None:
    assert sent_bytes(collective, payload, ranks) == sent


@pytest.mark.parametrize("collective", Collective)
def test_a_group_of_one_sends_nothing(collective: Collective) -> None:
    assert sent_bytes(collective, 400, 1) == 0


def test_an_all_reduce_is_a_reduce_scatter_and_an_all_gather() -> None:
    for ranks in range(1, 9):
        halves = (sent_bytes(half, 123, ranks) for half in (Collective.REDUCE_SCATTER, Collective.ALL_GATHER))
        assert sent_bytes(Collective.ALL_REDUCE, 123, ranks) == sum(halves)


def test_tally_sums_by_collective_and_leaves_groups_of_one_out() -> None:
    rows = [
        Call(Collective.SEND, 2, 10),
        Call(Collective.ALL_REDUCE, 2, 8),
        Call(Collective.ALL_REDUCE, 4, 8),
        Call(Collective.ALL_REDUCE, 1, 999),
        Call(Collective.BROADCAST, 1, 999),
    ]
    # 8 over two ranks: 2 * 1/2 * 8 = 8; over four: 2 * 3/4 * 8 = 12
    assert tally(rows) == {
        Collective.ALL_REDUCE: Tally(2, 16, Fraction(20)),
        Collective.SEND: Tally(1, 10, Fraction(10)),
    }
    assert list(tally(rows)) == [Collective.ALL_REDUCE, Collective.SEND]


def test_a_message_counts_for_all_its_calls() -> None:
    message = Message(Collective.ALL_GATHER, "fsdp", 4, 400, 3, "", "", "")
    assert message.sent == 900
    assert tally([message]) == {Collective.ALL_GATHER: Tally(3, 1200, Fraction(900))}
