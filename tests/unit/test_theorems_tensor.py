"""Textbook formulas of tensor and sequence parallelism as theorems: what a rank of t keeps, makes and computes."""

from __future__ import annotations

from dataclasses import replace

import pytest

from memory.walk import WalkRules, walk_segment
from suite.layout import Recompute
from suite.models.ledgers import ledger_of
from suite.models.presets import PRESETS
from suite.operators import Ledger
from suite.record import Component
from suite.share import Share
from suite.spec import AttentionKernel, Workload
from suite.tape import BF16_POLICY, FP32, Backend, Numerics

pytestmark = pytest.mark.unit

#: s, b; the model's h and a
S, B = 512, 2
GPT = replace(PRESETS["megatron-22b"], layers=2, dropout=0.1)
H, A = GPT.hidden, GPT.heads


def ledger(share: Share, recompute: str = "none") -> Ledger:
    """A rank's ledger in 16 bits on CUDA's kernels, attention in the open, as in the paper."""
    workload = Workload(seq_len=S, micro_batch=B, attention=AttentionKernel.EAGER)
    return ledger_of(GPT, workload, Recompute.parse(recompute), BF16_POLICY, Backend.CUDA, share=share)


def kept(share: Share, recompute: str = "none") -> int:
    """Bytes that a block's forward pass leaves for its backward."""
    block = next(placed.segment for placed in ledger(share, recompute).segments if placed.prefix)
    return walk_segment(block, WalkRules()).forward.net


def test_a_gpt_block_keeps_ten_and_twenty_four_over_t() -> None:
    """arXiv:2205.05198, table 2, tensor parallel: s b h (10 + 24/t + 5 a s / (h t)) bytes. Of 5 a s^2 b the dropout of
    the probabilities (a mask and what it leaves, 3 bytes) is not ours; a mean and a 1/std a row, twice, are not the
    paper's. Ten are the norms' inputs, the columns' inputs and the two masks."""
    for t in (2, 4, 8):
        paper = 10 * S * B * H + (24 * S * B * H + 2 * A * S * S * B) // t
        assert kept(Share(tp=t)) == paper + 8 * S * B


def test_with_sequence_parallelism_all_of_a_block_is_divided_but_what_is_gathered() -> None:
    """arXiv:2205.05198, table 2: s b h / t (34 + 5 a s / h). The paper gathers the columns' inputs a second time in the
    backward pass and so keeps a part of them; here they are kept as they were gathered: 4 s b h in the place of
    4 s b h / t."""
    for t in (2, 4, 8):
        paper = (34 * S * B * H + 2 * A * S * S * B + 8 * S * B) // t
        assert kept(Share(tp=t, sequence_parallel=True)) == paper + 4 * S * B * H * (t - 1) // t


def test_selective_recomputation_leaves_ten_and_twenty_four_over_t() -> None:
    """arXiv:2205.05198, table 2, tensor parallel with selective recomputation: s b h (10 + 24/t) bytes; and the means
    and 1/stds that the paper does not count."""
    for t in (2, 4, 8):
        assert kept(Share(tp=t), "selective") == 10 * S * B * H + 24 * S * B * H // t + 8 * S * B


def test_with_sequence_parallelism_and_selective_recomputation_thirty_four_over_t_are_left() -> None:
    """arXiv:2205.05198, table 2, the last of its five: 34 s b h / t; beside it what is gathered, as above."""
    for t in (2, 4, 8):
        share = Share(tp=t, sequence_parallel=True)
        assert kept(share, "selective") == (34 * S * B * H + 8 * S * B) // t + 4 * S * B * H * (t - 1) // t


def test_full_recomputation_keeps_a_part_of_the_input_alone() -> None:
    """arXiv:2205.05198, section 5, with sequence parallelism: 2 s b h / t a block."""
    assert kept(Share(tp=4, sequence_parallel=True), "full") == 2 * S * B * H // 4
    assert kept(Share(tp=4), "full") == 2 * S * B * H


@pytest.mark.parametrize("numerics", [FP32, BF16_POLICY])
def test_a_divided_logit_costs_eight_bytes_where_a_whole_one_costs_twelve(numerics: Numerics) -> None:
    """The loss keeps each logit's share in fp32, a label's column (8 bytes) and whether it is foreign (1); backward
    makes the logits' gradient beside them, the mean's gradient and the label's. A narrow model, so that the head's own
    gradient is no larger."""
    t, tokens = 4, S * B
    narrow = replace(PRESETS["llama2-70b"], layers=1, hidden=64, heads=8, kv_heads=8, head_dim=8)
    of = ledger_of(narrow, Workload(seq_len=S, micro_batch=B), Recompute(), numerics, Backend.CUDA, share=Share(tp=t))
    walk = walk_segment(of.segments[-1].segment, WalkRules(kept=Component.LOSS))
    logits = tokens * narrow.vocab // t
    assert walk.forward.net == 4 * logits + 9 * tokens
    assert walk.forward.net + walk.backward.peak == 8 * logits + 17 * tokens


def test_the_ranks_hold_every_divided_weight_once_and_compute_every_matrix_product_once() -> None:
    """Parts that do not divide alike (an odd vocabulary) add up; attention and matrices are shared out, nothing of them
    is done twice."""
    odd = replace(GPT, vocab=1001)
    workload = Workload(seq_len=S, micro_batch=B)

    def of(share: Share) -> Ledger:
        return ledger_of(odd, workload, Recompute(), BF16_POLICY, Backend.CUDA, share=share)

    whole, parts = of(Share()), [of(Share(tp=4, tp_rank=rank, sequence_parallel=True)) for rank in range(4)]
    assert sum(part.flops() for part in parts) == whole.flops()
    norms = GPT.layers * 2 * 2 * H + 2 * H
    row_biases, positions = GPT.layers * 2 * H, GPT.max_positions * H
    assert sum(part.parameters for part in parts) == whole.parameters + 3 * (norms + row_biases + positions)
