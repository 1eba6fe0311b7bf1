"""A Megatron-LM rank's memory: the papers' formulas as theorems, and parts by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from memory.kv_cache import kv_blocks, kv_bytes_per_token, latent_bytes_per_token
from memory.megatron.activations import block_bytes, head_arrays
from memory.megatron.estimate import estimate_megatron
from memory.megatron.state import held_bytes
from memory.textbook import zero_model_states
from parallelism.megatron.parameters import stage_parameters
from parallelism.megatron.run import AttentionCore, CrossEntropy, MegatronOptimizer, MegatronRun, PipelineMemory
from suite.layout import RecomputeKind
from suite.models.presets import PRESETS
from suite.parse import SpecError
from suite.record import Component, Moment

pytestmark = pytest.mark.unit

GPT = PRESETS["megatron-22b"]
S, B, H, A, T = 2048, 4, GPT.hidden, GPT.heads, 8
PAPER = MegatronRun(
    GPT, S, B, micro_batches=8, tp=T, dropout=True, attention=AttentionCore.UNFUSED, optimizer=MegatronOptimizer.MIXED
)


@pytest.mark.parametrize(
    ("sequence_parallel", "recompute", "coefficient"),
    [
        (False, RecomputeKind.NONE, 10 + 24 / T + 5 * A * S / (H * T)),
        (True, RecomputeKind.NONE, (34 + 5 * A * S / H) / T),
        (False, RecomputeKind.SELECTIVE, 10 + 24 / T),
        (True, RecomputeKind.SELECTIVE, 34 / T),
        (False, RecomputeKind.FULL, 2),
    ],
)
def test_a_block_keeps_what_korthikanti_counts(
    sequence_parallel: bool, recompute: RecomputeKind, coefficient: float
) -> None:
    """arXiv:2205.05198, table 2: bytes of a block over s b h."""
    run = replace(PAPER, sequence_parallel=sequence_parallel, recompute=recompute)
    assert block_bytes(run) == pytest.approx(S * B * H * coefficient, rel=1e-12)


def test_without_tensor_parallelism_a_block_keeps_34_sbh_and_its_scores() -> None:
    assert block_bytes(replace(PAPER, tp=1)) == S * B * H * 34 + 5 * A * S * S * B


def test_a_rank_alone_holds_18_bytes_a_parameter() -> None:
    run = replace(PAPER, tp=1)
    count = sum(stage_parameters(run, 0).values())
    by_hand = GPT.layers * (12 * H * H + 13 * H) + GPT.vocab * H + GPT.max_positions * H + 2 * H
    assert count == by_hand
    assert [nbytes for _, nbytes, *_ in held_bytes(run, 0)] == [2 * count, 4 * count, 12 * count]


def test_the_distributed_optimizer_divides_twelve_bytes() -> None:
    run = replace(PAPER, dp=4, cp=2, optimizer=MegatronOptimizer.DISTRIBUTED)
    count = sum(stage_parameters(run, 0).values())
    assert sum(nbytes for _, nbytes, *_ in held_bytes(run, 0)) == pytest.approx((6 + 12 / 8) * count, abs=2)


def test_the_stages_hold_the_model_once_and_a_tied_head_twice() -> None:
    pipeline = replace(PAPER, tp=1, pp=4, stage_layers=())
    alone = sum(stage_parameters(replace(PAPER, tp=1), 0).values())
    split = sum(sum(stage_parameters(pipeline, stage).values()) for stage in range(4))
    assert split == alone + GPT.vocab * H


def test_a_vocabulary_is_padded_to_whole_rows_a_rank() -> None:
    assert replace(PAPER, tp=1, model=replace(GPT, vocab=50257)).vocab_rows == 50304
    assert replace(PAPER, tp=8, model=replace(GPT, vocab=50257)).vocab_rows == 51200 // 8


@pytest.mark.parametrize(
    ("schedule", "chunks", "micro_batches", "in_flight"),
    [
        (PipelineMemory.ONE_F_ONE_B, 1, 8, [4, 3, 2, 1]),
        (PipelineMemory.ONE_F_ONE_B, 1, 2, [2, 2, 2, 1]),
        (PipelineMemory.INTERLEAVED, 2, 8, [11 / 2, 9 / 2, 7 / 2, 5 / 2]),  # 2 (p-i-1) + (v-1) p + 1 halves
        (PipelineMemory.ZB_H1, 1, 8, [4, 4, 4, 4]),
        (PipelineMemory.ZB_H2, 1, 8, [7, 7, 7, 7]),
        (PipelineMemory.ZB_2P, 1, 16, [8, 8, 8, 8]),
    ],
)
def test_micro_batches_in_flight(
    schedule: PipelineMemory, chunks: int, micro_batches: int, in_flight: list[float]
) -> None:
    run = replace(PAPER, pp=4, stage_layers=(), schedule=schedule, chunks=chunks, micro_batches=micro_batches)
    assert [run.in_flight(stage) for stage in range(4)] == in_flight


def test_interleavings_first_stage_holds_the_papers_share_more() -> None:
    """arXiv:2205.05198, section 4.2.3: L (1 + (p - 1) / (p v)) layers' worth."""
    p, v = 8, 3
    run = replace(PAPER, pp=p, stage_layers=(), chunks=v, schedule=PipelineMemory.INTERLEAVED, micro_batches=64)
    assert run.in_flight(0) * GPT.layers / p == pytest.approx(GPT.layers * (1 + (p - 1) / (p * v)))


def test_logits_cost_eight_bytes_unfused_and_four_fused_with_the_gradient() -> None:
    """16-bit logits and their gradient; the softmax in fp32 unless the loss is fused."""

    def a_logit(run: MegatronRun) -> float:
        logits = sum(array.nbytes for array in head_arrays(run) if "logits" in array.name)
        return logits / (S * B * run.vocab_rows)

    assert a_logit(PAPER) == 8
    assert a_logit(replace(PAPER, cross_entropy=CrossEntropy.FUSED_16_BIT)) == 4


def test_terms_sum_to_their_moment_and_only_the_last_stage_has_a_loss() -> None:
    run = replace(PAPER, pp=4, stage_layers=())
    first, last = estimate_megatron(run, 0), estimate_megatron(run, 3)
    assert Moment.LOSS not in first.by_moment
    assert last.by_moment[Moment.LOSS][Component.LOSS] == sum(array.nbytes for array in head_arrays(run))
    kept = first.by_moment[Moment.AFTER_FORWARD][Component.ACTIVATIONS]
    assert kept == pytest.approx(4 * GPT.layers / 4 * block_bytes(run), abs=20)
    assert all(term.formula and term.source for term in first.terms)


@pytest.mark.parametrize("ranks", [1, 4, 64])
def test_zeros_states(ranks: int) -> None:
    """arXiv:1910.02054, figure 1: 16 bytes a parameter, of which 12, 14 and 16 are divided."""
    divided = {0: 0, 1: 12, 2: 14, 3: 16}
    for stage, size in divided.items():
        assert zero_model_states(7.5e9, stage, ranks) == pytest.approx(7.5e9 * (16 - size + size / ranks))


def test_bytes_of_a_cached_token() -> None:
    """Llama-3-8B: 32 layers of 8 heads of 128, a key and a value, 2 bytes each: 128 KiB. DeepSeek-V3: 70,272 bytes."""
    assert kv_bytes_per_token(32, 8, 128) == 128 * 1024
    assert kv_bytes_per_token(94, 4, 128, tp=8) == 94 * 2 * 1 * 128 * 2  # more ranks than heads: a whole one each
    assert latent_bytes_per_token(61, 512, 64) == 70272
    assert kv_blocks(16 * 131072 * 7 + 1, 16, 131072) == 7


@pytest.mark.parametrize(
    ("broken", "refusal"),
    [
        ({"tp": 0}, "megatron.tp: must be at least 1, got 0"),
        ({"pp": 5}, r"layers\(48\) % pp\(5\) != 0; give each stage's layers"),
        ({"pp": 2, "stage_layers": (20, 20)}, r"\(20, 20\) are not layers\(48\) on pp\(2\) stages"),
        ({"recompute": RecomputeKind.EVERY}, "every is not known; known: none, selective, full"),
    ],
)
def test_impossible_runs_are_refused_in_one_line(broken: dict[str, object], refusal: str) -> None:
    with pytest.raises(SpecError, match=refusal):
        replace(PAPER, **{"stage_layers": (), **broken})  # type: ignore[arg-type]
