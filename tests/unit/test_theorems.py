"""Textbook formulas as theorems: what the papers say of a block must follow from the ledger and its walk."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memory.estimate import MemoryModel
from memory.state import holdings, optimizer_bytes, parameter_bytes
from memory.walk import WalkRules, walk_segment
from suite.case import Case, case_from
from suite.models.ledgers import ledger_of
from suite.models.presets import PRESETS
from suite.operators import DType, Ledger, Segment
from suite.record import Component, Moment
from suite.spec import AttentionKernel, Recompute, Workload
from suite.tape import BF16_POLICY, FP32, Backend

pytestmark = pytest.mark.unit

GPT = replace(PRESETS["megatron-22b"], layers=2)
LLAMA = replace(PRESETS["llama2-70b"], layers=2)


def ledger(spec: object, workload: Workload, recompute: str = "none", numerics: object = BF16_POLICY) -> Ledger:
    """The ledger on CUDA's kernels, where the papers are at home: everything in 16 bits."""
    return ledger_of(spec, workload, Recompute.parse(recompute), numerics, Backend.CUDA)  # type: ignore[arg-type]


def block(of: Ledger) -> Segment:
    return next(placed.segment for placed in of.segments if placed.prefix)


def kept_bytes(segment: Segment) -> int:
    """Bytes that a block's forward pass leaves for its backward: its output in, its input not yet counted."""
    return walk_segment(segment, WalkRules()).forward.net


@pytest.mark.parametrize(("b", "s"), [(1, 2048), (4, 512)])
def test_a_gpt_block_keeps_what_korthikanti_counts(b: int, s: int) -> None:
    """arXiv:2205.05198, section 4.1: s b h (34 + 5 a s / h) bytes, in 16 bits, with dropout. Term by term:

    attention 2 sbh (its input) + 4 (q, k) + 2 (v) + 2 (the projection's input) + 1 (a mask: ours has no dropout)
    scores    2 a s^2 b (softmax's output) + 1 (a mask) + 2 (the dropped-out scores): the last two go with dropout
    mlp       2 sbh (its input) + 8 (gelu's input) + 8 (the second product's input) + 1 (a mask)
    norms     2 sbh each; and what the paper leaves out, a mean and a 1/std a row in 16 bits, twice
    """
    h, a = GPT.hidden, GPT.heads
    eager = ledger(GPT, Workload(seq_len=s, micro_batch=b, attention=AttentionKernel.EAGER))
    paper = 34 * s * b * h + 5 * a * s * s * b
    masks = 2 * s * b * h + (1 + 2) * a * s * s * b
    moments = 2 * 2 * 2 * s * b
    assert kept_bytes(block(eager)) == paper - masks + moments


@pytest.mark.parametrize("spec", [GPT, LLAMA])
def test_full_recomputation_keeps_the_input_alone(spec: object) -> None:
    """arXiv:2205.05198, section 5: 2 s b h a block."""
    s, b, h = 1024, 2, spec.hidden  # type: ignore[attr-defined]
    assert kept_bytes(block(ledger(spec, Workload(seq_len=s, micro_batch=b), "full"))) == 2 * s * b * h


def test_selective_recomputation_drops_what_is_quadratic() -> None:
    """arXiv:2205.05198, section 5: what is left grows with s alone."""

    def kept(s: int) -> int:
        workload = Workload(seq_len=s, attention=AttentionKernel.EAGER)
        return kept_bytes(block(ledger(GPT, workload, "selective")))

    assert kept(2048) == 2 * kept(1024)
    assert kept(1024) == 1024 * (32 * GPT.hidden + 8)


@pytest.mark.parametrize("spec", [GPT, LLAMA])
def test_flash_grows_linearly_and_eager_quadratically(spec: object) -> None:
    """arXiv:2205.14135: the fused kernel keeps a log-sum-exp a row instead of the scores."""

    def kept(s: int, kernel: AttentionKernel) -> int:
        return kept_bytes(block(ledger(spec, Workload(seq_len=s, attention=kernel))))

    assert kept(2048, AttentionKernel.FLASH) == 2 * kept(1024, AttentionKernel.FLASH)
    heads = spec.heads  # type: ignore[attr-defined]
    growth = kept(2048, AttentionKernel.EAGER) - 2 * kept(1024, AttentionKernel.EAGER)
    assert growth == 2 * heads * (2048**2 - 2 * 1024**2)


def test_grouped_queries_save_their_share_of_keys_and_values() -> None:
    """Flash keeps k and v once: 2 x 2 bytes x s x (heads - kv_heads) x d less."""
    workload = Workload(seq_len=512)
    many = kept_bytes(block(ledger(replace(LLAMA, kv_heads=64), workload)))
    few = kept_bytes(block(ledger(LLAMA, workload)))
    assert many - few == 2 * 2 * 512 * (64 - 8) * LLAMA.head_dim


def test_a_logit_costs_twelve_bytes_at_the_losss_highest_instant() -> None:
    """fp32: log-probabilities, the selection's gradient and the logits' gradient at once. A narrow model, so that the
    head's own gradient is no larger."""
    narrow = replace(LLAMA, hidden=64, heads=8, kv_heads=8, head_dim=8)
    of = ledger(narrow, Workload(seq_len=128, micro_batch=2), numerics=FP32)
    walk = walk_segment(of.segments[-1].segment, WalkRules(kept=Component.LOSS))
    logits = 128 * 2 * narrow.vocab
    assert walk.forward.net == 4 * logits  # the log-probabilities; the input is still kept
    assert walk.forward.net + walk.backward.peak == 12 * logits


@pytest.mark.parametrize("name", ["gpt2", "llama-7b", "minimind"])
def test_adamw_in_fp32_is_sixteen_bytes_a_parameter(name: str) -> None:
    """4 weight + 4 gradient + 8 moments; AdamW's counter, 4 bytes a tensor, on top."""
    case = Case(PRESETS[name])
    model = MemoryModel(case)
    memory = model.estimate()
    row = memory.by_moment[Moment.AFTER_BACKWARD]
    states = row[Component.PARAMETERS] + row[Component.GRADIENTS] + row[Component.OPTIMIZER]
    tensors = sum(
        count * sum(not weight.tied_to for weight in segment.weights) for segment, count in model.ledger.counts.items()
    )
    assert states == 16 * model.ledger.parameters + 4 * tensors


def test_full_sharding_divides_every_state() -> None:
    """ZeRO's third stage (arXiv:1910.02054, figure 1): 16 P / N bytes where every row count divides by N."""
    case = case_from({"model": "llama-7b", "layout": {"fsdp": 64}, "cluster": {"device": "a100-80gb-sxm"}})
    model = MemoryModel(case)
    row = model.estimate(rank=63).by_moment[Moment.AFTER_BACKWARD]
    tensors = 3 + 9 * 32
    states = row[Component.PARAMETERS] + row[Component.GRADIENTS] + row[Component.OPTIMIZER]
    assert states == 16 * model.ledger.parameters // 64 + 4 * tensors


def test_shards_sum_to_the_whole_and_padding_is_counted_where_it_is() -> None:
    """The norms' 96 rows and the odd matrices over 7 ranks: moments are unpadded and conserved, weights are padded."""
    spec = {"layers": 2, "hidden": 96, "heads": 3, "ffn": 161, "vocab": 301}
    whole = MemoryModel(case_from({"model": spec})).ledger
    case = case_from({"model": spec, "layout": {"fsdp": 7}})
    steps = 4 * (3 + 9 * 2)
    assert sum(optimizer_bytes(case, whole, rank) - steps for rank in range(7)) == 8 * whole.parameters
    assert 7 * parameter_bytes(case, whole) >= 4 * whole.parameters


@settings(max_examples=30, deadline=None)
@given(
    model=st.sampled_from(["gpt-1m", "llama-1m"]),
    ranks=st.integers(1, 9),
    seq=st.integers(8, 300),
    batch=st.integers(1, 5),
    precision=st.sampled_from(["fp32", "bf16-mixed"]),
)
def test_more_shards_never_hold_more_and_more_tokens_never_less(
    model: str, ranks: int, seq: int, batch: int, precision: str
) -> None:
    def peak(fsdp: int, seq_len: int, micro_batch: int, recompute: str = "none") -> int:
        layout = {"fsdp": fsdp, "recompute": recompute}
        workload = {"seq_len": seq_len, "micro_batch": micro_batch, "precision": precision}
        cluster = {"device": "h100-sxm"}  # the CPU's workspace depends on how many ranks share its cores
        case = case_from({"model": model, "layout": layout, "workload": workload, "cluster": cluster})
        return MemoryModel(case).peak_bytes()

    def held(fsdp: int) -> int:
        case = case_from({"model": model, "layout": {"fsdp": fsdp}})
        of = MemoryModel(case).ledger
        return sum(item.nbytes for item in holdings(case, of, 0))

    assert held(ranks + 1) <= held(ranks)
    assert peak(ranks, seq, batch) <= peak(ranks, seq + 1, batch)
    assert peak(ranks, seq, batch) <= peak(ranks, seq, batch + 1)


def test_number_formats_have_their_sizes() -> None:
    assert [kind.nbytes for kind in (DType.FP32, DType.BF16, DType.INT64, DType.BOOL)] == [4, 2, 8, 1]
