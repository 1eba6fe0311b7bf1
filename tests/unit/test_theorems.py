"""Textbook formulas as theorems: what the papers say of a block must follow from the ledger and its walk."""

from __future__ import annotations

from dataclasses import replace

import pytest

from memory.estimate import MemoryModel
from memory.walk import WalkRules, walk_segment
from suite.case import Case, case_from
from suite.layout import Recompute
from suite.models.ledgers import ledger_of
from suite.models.presets import PRESETS
from suite.operators import Ledger, Segment
from suite.record import Component, Moment
from suite.spec import AttentionKernel, LossKernel, Workload
from suite.tape import BF16_AUTOCAST, BF16_POLICY, FP32, Backend, Numerics

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


def test_a_gpt_block_with_the_fused_kernel_keeps_a_float_a_row_for_its_scores() -> None:
    """Of 34 s b h + 5 a s^2 b the masks go with dropout, the scores with the kernel; a log-sum-exp comes, 4 a s b."""
    s, b, h, a = 1024, 2, GPT.hidden, GPT.heads
    flash = kept_bytes(block(ledger(GPT, Workload(seq_len=s, micro_batch=b, attention=AttentionKernel.FLASH))))
    assert flash == 32 * s * b * h + 4 * a * s * b + 8 * s * b


def test_a_llama_block_keeps_four_arrays_of_its_mlp_and_its_keys_and_values_once() -> None:
    """16 bits. Two norms: 2 sbh of input each (the first's is the stream's), 2 sbh of output and 4 sb of 1/rms;
    attention 2 sb (2 a d + 2 k d): q, k, v and the output; its log-sum-exp 4 a s b; SwiGLU 4 x 2 sbf (gate, its
    silu, up, their product); the stream's output 2 sbh. Rotations keep nothing: their gradient is a rotation."""
    s, b, a = 512, 3, LLAMA.heads
    rows = s * b
    norms = 2 * (2 * LLAMA.hidden + 4) + 2 * LLAMA.hidden
    attention = 2 * (2 * LLAMA.q_dim + 2 * LLAMA.kv_dim) + 4 * a
    swiglu, out = 4 * 2 * LLAMA.ffn, 2 * LLAMA.hidden
    kept = kept_bytes(block(ledger(LLAMA, Workload(seq_len=s, micro_batch=b))))
    assert kept == rows * (norms + attention + swiglu + out)


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


@pytest.mark.parametrize("numerics", [FP32, BF16_AUTOCAST, BF16_POLICY])
def test_a_logit_costs_eight_bytes_in_the_loss_and_twelve_in_its_backward_in_every_precision(
    numerics: Numerics,
) -> None:
    """Forward: fp32 logits and log-probabilities at once, for bf16 logits die as soon as they are widened. Backward:
    log-probabilities and two gradients in fp32, narrowed only when two of them are gone. Not 16 bytes, as where bf16
    logits live on beside their fp32 copy."""
    narrow = replace(LLAMA, hidden=64, heads=8, kv_heads=8, head_dim=8)
    tokens, h, v = 2 * 64, 64, narrow.vocab
    of = ledger(narrow, Workload(seq_len=64, micro_batch=2), numerics=numerics)
    walk = walk_segment(of.segments[-1].segment, WalkRules(kept=Component.LOSS))
    # autocast's copies of the head and of its input, for which the fp32 input is let go
    copies, let_go = (2 * h * v + 2 * tokens * h, 4 * tokens * h) if numerics.autocast else (0, 0)
    assert walk.forward.peak == 8 * tokens * v + copies
    assert walk.forward.net == 4 * tokens * v + copies - let_go
    assert walk.backward.peak == 8 * tokens * v  # on top


def test_the_chunked_loss_holds_one_slice_of_logits() -> None:
    """An eighth of the 12 bytes, and the slices' inputs are views: nothing of the head is kept between the passes."""
    narrow = replace(LLAMA, hidden=64, heads=8, kv_heads=8, head_dim=8)
    workload = Workload(seq_len=128, micro_batch=1, loss=LossKernel.CHUNKED)
    walk = walk_segment(ledger(narrow, workload, numerics=FP32).segments[-1].segment, WalkRules(kept=Component.LOSS))
    logits = 128 // 8 * narrow.vocab
    assert walk.forward.peak == 8 * logits
    assert walk.forward.net == 0
    # a slice's gradient of the head came through a view, so the first two and their sum are there at once: three times
    # the head, more than any slice's logits, beside two slices' gradients of the input
    assert walk.backward.peak == 3 * 4 * 64 * narrow.vocab + 2 * 4 * 64 * 128 // 8


def test_autocast_copies_every_matmul_weight_and_bias_in_two_bytes() -> None:
    """And nothing else: not the norms, the embedding or the positions. The copies are made once a micro-batch."""
    case = case_from({"model": "gpt-1m", "workload": {"precision": "bf16-mixed"}, "cluster": {"device": "h100-sxm"}})
    terms = [term for term in MemoryModel(case).estimate().terms if term.moment is Moment.AFTER_FORWARD]
    copies = sum(term.value for term in terms if term.formula.startswith("bf16 copies of weights"))
    h, f = 128, 512
    assert copies == 4 * 2 * (3 * (h * h + h) + (h * h + h) + (f * h + f) + (h * f + h))


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
