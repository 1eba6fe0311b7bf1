"""The attention core of a context-parallel rank: its bytes by hand, from the steps of rings and all-to-alls."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from memory.estimate import MemoryModel
from memory.walk import SegmentWalk, WalkRules, walk_segment
from suite.case import case_from
from suite.cpu_workspace import CpuWorkspace
from suite.layout import ContextMethod
from suite.operators import Array, Segment, Size
from suite.record import Moment
from suite.share import Share
from suite.spec import AttentionKernel
from suite.tape import BF16_POLICY, FP32, Backend, Numerics, Tape
from suite.tape_attention import Heads
from suite.tape_context import spread_attention

pytestmark = pytest.mark.unit

#: 4 tokens of a sequence, 2 heads of 3 and 1 key head: in fp32 a sequence's q is 96 bytes, k and v 48 each, and a
#: log-sum-exp a row 32
Q, K, L = 96, 48, 32
HEADS, WIDTH, TOKENS = 2, 3, 4


@dataclass(frozen=True)
class _Fixed(CpuWorkspace):
    """A fused kernel that needs 7 bytes in forward and 11 in backward."""

    def attention(
        self, batch: int, heads: int, kv_heads: int, seq: int, width: int, nbytes: int, keys: int | None = None
    ) -> tuple[int, int]:
        return 7, 11


def walked(
    share: Share,
    batch: int = 1,
    numerics: Numerics = FP32,
    backend: Backend = Backend.CUDA,
    kv_heads: int = 1,
) -> SegmentWalk:
    """The walk over a segment that is a flash attention core and nothing else. On CUDA there is no workspace."""
    tape = Tape(numerics, backend, _Fixed(), share)
    b, s, heads, keys, d = (
        Size(name, value) for name, value in zip("bsakd", (batch, TOKENS, HEADS, kv_heads, WIDTH), strict=True)
    )
    q, k, v = (
        Array(name, (b, s, count.times(WIDTH)), numerics.compute)
        for name, count in (("q", heads), ("k", keys), ("v", keys))
    )
    out = spread_attention(tape, "core", Heads(q, k, v, heads, keys, d), AttentionKernel.FLASH)
    return walk_segment(Segment("core", tuple(tape.body), (q, k, v), (), out), WalkRules())


def ring_share(ranks: int, rank: int, balanced: bool) -> Share:
    """A rank of a ring."""
    return Share(cp=ranks, cp_rank=rank, is_balanced=balanced)


def test_a_ring_of_two_balanced() -> None:
    """Rank 0's second step has its late queries and all of the visiting keys. Highest in forward: visitors, output and
    log-sum-exp, the second step's halves of both and two more halves of the latter; in backward: the output, which the
    kernel keeps after the next segment has let go of it, visitors, dq with the sums, the sums on their way here, the
    second step's parts."""
    walk = walked(ring_share(2, 0, True))
    assert walk.forward.peak == 2 * K + Q + L + (Q // 2 + L // 2) + 2 * (L // 2)
    assert walk.forward.net == Q + L
    assert walk.backward.peak == Q + 2 * K + (Q + 2 * K) + 2 * K + (Q // 2 + 2 * K)
    gradients, kept, seed = Q + 2 * K, Q + 2 * K + L, Q  # the output is the next segment's to let go
    assert walk.backward.net == gradients - kept - seed


def test_a_later_rank_of_a_balanced_ring_has_early_keys() -> None:
    """Rank 1: all queries, half of the keys."""
    walk = walked(ring_share(2, 1, True))
    assert walk.forward.peak == 2 * K + Q + L + (Q + L) + 2 * L
    assert walk.backward.peak == Q + 2 * K + (Q + 2 * K) + 2 * K + (Q + K)


def test_a_rank_whose_visitors_are_all_later_multiplies_nothing_more() -> None:
    """Unbalanced, rank 0 only passes on: keys, and the sums that come while those it sent are still there."""
    walk = walked(ring_share(2, 0, False))
    assert walk.forward.peak == 2 * K + Q + L
    assert walk.backward.peak == Q + 2 * K + (Q + 2 * K) + 2 * K


def test_late_queries_of_several_sequences_are_copied_in_backward() -> None:
    """Half of the rows of two sequences are strided; of one they are not. Everything else is twice as large."""
    one, two = (walked(ring_share(2, 0, True), batch) for batch in (1, 2))
    assert two.forward.peak == 2 * one.forward.peak
    assert two.backward.peak == 2 * (one.backward.peak + Q // 2)


def test_a_ring_of_three_in_bf16() -> None:
    """Rank 2 multiplies whole blocks in every step, sums are in fp32 and twice as large as what is multiplied. The
    second step is the highest: two pairs visit, one to multiply with and one on its way."""
    q, k = Q // 2, K // 2
    walk = walked(ring_share(3, 2, False), numerics=BF16_POLICY, backend=Backend.CPU)
    # two pairs of visitors, wide output, log-sum-exp; the block's, cast, and what the merge takes
    assert walk.forward.peak == 4 * k + Q + L + (q + L) + Q + 2 * L
    # the output, two pairs of visitors, wide dq, two pairs of sums, parts, the cast of a part of dq
    assert walk.backward.peak == q + 4 * k + Q + 4 * K + (q + 2 * k) + Q
    assert walk.forward.net == q + L


def test_the_kernels_workspace_is_in_passing() -> None:
    """Where nothing is merged a rank's one product is the highest instant of forward."""
    walk = walked(ring_share(2, 0, False), backend=Backend.CPU)
    assert walk.forward.peak == 2 * K + Q + L + 7
    scratch = [event.nbytes for event in walk.backward.events if event.label.name == "workspace of ring attention"]
    assert scratch == [11, -11]


def test_ulysses_of_several_sequences() -> None:
    """Two ranks, two sequences, as many key heads as heads: q, k, v and all that is exchanged are X, the log-sum-exp of
    one head of 8 tokens Y. Highest: q, k, v and output of one head, beside the packed and the received output; in
    backward the core's three gradients where its output's has taken the place of the block's."""
    walk = walked(Share(cp=2, context=ContextMethod.ULYSSES), batch=2, kv_heads=2)
    x, y = 2 * Q, 2 * L
    assert walk.forward.peak == 4 * x + y + 2 * x
    assert walk.forward.net == (4 * x + y + x) - 3 * x  # q, k and v of the rank's tokens go
    assert walk.backward.peak == 3 * x
    assert walk.backward.net == 3 * x - (4 * x + y) - x


def test_ulysses_of_one_sequence_needs_no_copy_where_parts_lie_in_order() -> None:
    """To heads what is received is in order already; back, what is sent is."""
    walk = walked(Share(cp=2, context=ContextMethod.ULYSSES), kv_heads=2)
    # q, k: received; v: packed and received; against all four, received and copied
    assert walk.forward.peak == 4 * Q + L + 2 * Q
    made = [event.nbytes for event in walk.forward.events if event.nbytes > 0]
    assert made == [Q, Q] * 3 + [Q, L] + [Q, Q]


MODEL = {"layers": 2, "hidden": 24, "heads": 4, "kv_heads": 2, "ffn": 40, "vocab": 50, "max_positions": 64}


def model_of(**layout: object) -> MemoryModel:
    """The memory of a small decoder."""
    workload = {"seq_len": 24, "micro_batch": 2, "precision": "fp32"}
    return MemoryModel(case_from({"model": MODEL, "layout": layout, "workload": workload}))


@pytest.mark.parametrize("layout", [
    {"cp": 3}, {"cp": 3, "load_balance": False}, {"cp": 2, "context": "ulysses"},
])  # fmt: skip
def test_the_ranks_flops_are_the_models(layout: dict[str, object]) -> None:
    """With and without what the causal mask leaves out, the ranks' FLOPs sum to the whole model's."""
    memory = model_of(**layout)
    for causal in (False, True):
        shares = [memory.ledger_of_rank(rank).flops(causal) for rank in range(memory.case.layout.world_size)]
        assert sum(shares) == pytest.approx(memory.ledger.flops(causal), rel=1e-12)


def test_an_unbalanced_rings_last_rank_has_the_most_to_do() -> None:
    """Of 3 ranks it has 5 of the 9 halves of blocks; balanced all have 3."""
    memory = model_of(cp=3, load_balance=False)
    core = [
        next(
            operator.flops
            for operator in memory.ledger_of_rank(rank).segments[1].segment.operators()
            if operator.name == "attention.core"
        )
        for rank in range(3)
    ]
    assert [flops.total(causal=True) / core[0].total(causal=True) for flops in core] == pytest.approx([1, 3, 5])


def test_ring_buffers_are_terms() -> None:
    """Where attention is the highest instant, what visits is a term with its formula: on its last rank an unbalanced
    ring of two has one pair of [2, 12, 2 x 32] there in fp32, and in backward two pairs of sums, and parts."""
    model = MODEL | {"head_dim": 32, "ffn": 8, "vocab": 5}
    workload = {"seq_len": 24, "micro_batch": 2, "precision": "fp32"}
    case = case_from({"model": model, "layout": {"cp": 2, "load_balance": False}, "workload": workload})
    terms = MemoryModel(case).estimate(1).terms
    found = {(term.moment, term.formula): term.value for term in terms if term.formula.startswith("ring: ")}
    pair = 2 * (2 * 12 * 2 * 32 * 4)
    visitors = "ring: visiting keys and values: 2 x b*s/cp*k*d*4"
    assert found[Moment.FORWARD_PEAK, visitors] == pair
    assert found[Moment.BACKWARD_PEAK, visitors] == pair
    assert found[Moment.BACKWARD_PEAK, "ring: sums of gradients of keys and values: 2 x b*s/cp*k*d*4"] == pair
