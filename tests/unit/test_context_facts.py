"""What context parallelism sends in a step, by hand."""

from __future__ import annotations

from typing import Any

import pytest

from parallelism.context.strategy import context_messages
from suite.case import case_from
from suite.collectives import Collective, Message, Tally, tally

pytestmark = pytest.mark.unit

#: 3 blocks, 4 heads of 8, 2 key heads
MODEL = {"family": "decoder", "layers": 3, "hidden": 32, "heads": 4, "kv_heads": 2, "ffn": 64, "vocab": 64}

MODES = ("none", "selective", "selective-op", "full", "every-2")


def messages(precision: str = "fp32", blocks: int = 3, tp: int = 1, **layout: Any) -> tuple[Message, ...]:
    """Two micro-batches of 5 sequences of 24 tokens."""
    workload = {"seq_len": 24, "micro_batch": 5, "micro_batches": 2, "precision": precision}
    layout = {"tp": tp, **layout}
    return context_messages(case_from({"model": MODEL, "layout": layout, "workload": workload}), range(blocks))


def sends(rows: tuple[Message, ...]) -> list[tuple[int, int]]:
    return [(row.count, row.payload) for row in rows]


def test_ring() -> None:
    """On 3 ranks: 8 tokens x 5 sequences x 2 key heads x 8 = 640 elements of keys. Forward 2 steps, backward 2, the
    gradients 3; keys and values apart; 2 micro-batches, 3 blocks: 4 x 6, 4 x 6 and 6 x 6."""
    assert sends(messages(cp=3)) == [(24, 2560), (24, 2560), (36, 2560)]
    # in bf16 keys are half as large, sums stay fp32
    assert sends(messages("bf16-mixed", cp=3)) == [(24, 1280), (24, 1280), (36, 2560)]
    total = 48 * 1280 + 36 * 2560
    assert tally(messages("bf16-mixed", cp=3)) == {Collective.SEND: Tally(84, total, total)}


def test_ring_moves_as_much_whether_balanced_or_not() -> None:
    assert messages(cp=2, load_balance=True) == messages(cp=2, load_balance=False)


def test_tensor_parallel_ranks_send_their_own_heads() -> None:
    assert sends(messages(cp=3, tp=2)) == [(24, 1280), (24, 1280), (36, 1280)]


def test_checkpointing_reruns_the_forward() -> None:
    """Of 3 blocks, every-2 covers the first and the last; selective-op keeps nothing of a ring."""
    assert [sends(messages(cp=3, recompute=mode))[0][0] for mode in MODES] == [24, 48, 48, 48, 40]
    assert sends(messages(cp=3, recompute="full"))[1:] == sends(messages(cp=3))[1:]


def test_ulysses() -> None:
    """On 2 ranks: 12 x 5 x 4 x 8 = 1920 elements of queries, 960 of keys; two all-to-alls of each, both ways, in 6
    passes of a block. Half of a payload stays."""
    rows = messages(cp=2, context="ulysses")
    assert sends(rows) == [(12, 7680), (12, 3840), (12, 7680), (12, 3840)]
    assert {row.collective for row in rows} == {Collective.ALL_TO_ALL}
    payload = 24 * (7680 + 3840)
    assert tally(rows)[Collective.ALL_TO_ALL].sent == payload // 2


def test_ulysses_rerun() -> None:
    """A block's rerun repeats all four; a rerun of the core alone, which stops early, not the output's."""
    full = messages(cp=2, context="ulysses", recompute="full")
    selective = messages(cp=2, context="ulysses", recompute="selective")
    assert sends(full) == [(24, 7680), (24, 3840), (12, 7680), (12, 3840)]
    assert sends(selective) == [(18, 7680), (24, 3840), (12, 7680), (12, 3840)]


def test_nothing_to_send() -> None:
    assert messages() == ()
    assert messages(cp=2, blocks=0) == ()
