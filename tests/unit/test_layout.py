"""Layouts: names, the rank grid, and refusals that name the numbers and the reason."""

from __future__ import annotations

from typing import Any

import pytest

from suite.case import Case
from suite.layout import (
    ContextMethod,
    Engine,
    Layout,
    Offload,
    Recompute,
    RecomputeKind,
    Reduction,
    Schedule,
    StageSplit,
)
from suite.models.decoder import DecoderSpec
from suite.parse import SpecError
from suite.spec import Workload
from tests.unit.refusals import refused

pytestmark = pytest.mark.unit

SELECTIVE_OP = Recompute(RecomputeKind.SELECTIVE_OP)


# --- layout --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("axis", ["dp", "fsdp", "tp", "cp", "pp", "ep", "virtual_stages"])
@pytest.mark.parametrize("degree", [0, -1])
def test_a_degree_is_at_least_one(axis: str, degree: int) -> None:
    assert refused(Layout, **{axis: degree}) == f"layout.{axis}: must be at least 1, got {degree}"


@pytest.mark.parametrize(
    "layout, ranks, text",
    [
        (Layout(), 1, "single"),
        (Layout(dp=4), 4, "dp4"),
        (Layout(fsdp=2), 2, "fsdp2"),
        (Layout(fsdp=2, reshard_after_forward=False), 2, "fsdp2+keep"),
        (Layout(recompute=Recompute.parse("every-3")), 1, "recompute-every-3"),
        (Layout(dp=2, recompute=Recompute.parse("full")), 2, "dp2+recompute-full"),
        (Layout(fsdp=4, reshard_after_forward=2), 4, "fsdp4+reshard2"),
        (Layout(dp=2, zero=3, offload=Offload.PARAMETERS), 2, "dp2+zero3+offload-parameters"),
        (Layout(dp=2, engine=Engine.DEEPSPEED), 2, "dp2+zero0"),
        (Layout(dp=2, zero=1, engine=Engine.TORCH), 2, "dp2+zero1-torch"),
    ],
)
def test_a_layout_knows_its_ranks_and_its_name(layout: Layout, ranks: int, text: str) -> None:
    assert (layout.world_size, layout.data_ranks, str(layout)) == (ranks, ranks, text)


@pytest.mark.parametrize(
    "layout, ranks, data_ranks, text",
    [
        (Layout(tp=4), 4, 1, "tp4"),
        (Layout(tp=2, sequence_parallel=False), 2, 1, "tp2-no-sp"),
        (Layout(cp=2, load_balance=False), 2, 1, "cp2-ring-unbalanced"),
        (Layout(cp=2, context=ContextMethod.ULYSSES), 2, 1, "cp2-ulysses"),
        (Layout(pp=2, schedule=Schedule.GPIPE), 2, 1, "pp2-gpipe"),
        (Layout(pp=2, schedule=Schedule.INTERLEAVED, virtual_stages=3), 2, 1, "pp2-interleaved-1f1bx3"),
        (Layout(pp=2, dp=3, fsdp=5, cp=7, tp=11), 2310, 15, "pp2-1f1b+dp3+fsdp5+cp7-ring+tp11"),
        (Layout(pp=2, dp=2, zero=1), 4, 2, "pp2-1f1b+dp2+zero1-torch"),
    ],
)
def test_a_product_knows_its_ranks_and_its_name(layout: Layout, ranks: int, data_ranks: int, text: str) -> None:
    assert (layout.world_size, layout.data_ranks, str(layout)) == (ranks, data_ranks, text)


def test_the_rank_grid_is_pp_dp_fsdp_cp_tp_outermost_first() -> None:
    """Counted out by hand: 2 x 2 x 3 x 2 x 2 ranks, of which 37 = 24 + 12 + 0*4 + 0*2 + 1."""
    layout = Layout(pp=2, dp=2, fsdp=3, cp=2, tp=2)
    assert [layout.place(axis, 37) for axis in ("pp", "dp", "fsdp", "cp", "tp")] == [1, 1, 0, 0, 1]
    assert [layout.place(axis, 22) for axis in ("pp", "dp", "fsdp", "cp", "tp")] == [0, 1, 2, 1, 0]
    assert [layout.data_rank(rank) for rank in (0, 3, 4, 8, 12, 23, 24)] == [0, 0, 1, 2, 3, 5, 0]


def test_context_ranks_average_gradients_or_share_the_shards() -> None:
    assert (Layout(dp=2, cp=3).replica_ranks, Layout(dp=2, cp=3).shard_ranks) == (6, 1)
    assert (Layout(dp=2, fsdp=2, cp=3).replica_ranks, Layout(dp=2, fsdp=2, cp=3).shard_ranks) == (2, 6)


@pytest.mark.parametrize(
    "values, words",
    [
        ({"zero": 4}, "layout.zero: must be 0, 1, 2 or 3, got 4"),
        ({"zero": -1}, "layout.zero: must be 0, 1, 2 or 3, got -1"),
        ({"ep": 2, "cp": 2}, "ep(2) with cp(2): a router that balances sees whole sequences"),
        ({"ep": 2, "dp": 2, "zero": 1}, "ep(2) with zero(1) with engine(auto): both engines of ZeRO"),
        ({"fsdp": 2, "zero": 1}, "fsdp(2) with zero(1) with engine(auto): both shard the same state"),
        ({"dp": 2, "zero": 2, "tp": 2}, "tp(2): the engine makes its own"),
        (
            {"dp": 2, "zero": 2, "engine": Engine.TORCH},
            "zero(2) with engine(torch) with pp(1): ZeroRedundancyOptimizer",
        ),
        ({"zero": 1, "engine": Engine.TORCH}, "dp(1): it shards over data-parallel replicas"),
        ({"dp": 2, "zero": 1, "tp": 2, "engine": Engine.TORCH}, "zero(1) with tp(2): "),
        ({"pp": 2, "schedule": Schedule.ZBV}, "schedule(zbv) with virtual_stages(1); it takes 2: "),
        ({"pp": 2, "schedule": Schedule.INTERLEAVED}, "virtual_stages(1); it takes 2 or more: "),
        ({"pp": 2, "virtual_stages": 2}, "schedule(1f1b) with virtual_stages(2); it takes 1: "),
        ({"virtual_stages": 2}, "virtual_stages(2) with pp(1): "),
        (
            {"pp": 2, "fsdp": 2, "schedule": Schedule.ZBV, "virtual_stages": 2},
            "reshard_after_forward(True): the weights' part of backward looks for",
        ),
        ({"pp": 2, "fsdp": 4, "reshard_after_forward": 2}, "reshard_after_forward(2) with pp(2): FSDP2 makes each"),
        ({"pp": 2, "reduction": Reduction.MICRO_BATCH}, "reduction(micro-batch) with pp(2): torch's stages reduce"),
        ({"pp": 2, "stage_split": StageSplit((1, 2, 3), False)}, "stage_split(1-2-3) with pp(2) * virtual_stages(1): "),
        ({"fsdp": 4, "reshard_after_forward": 3}, "reshard_after_forward(3) with fsdp(4)"),
        ({"fsdp": 4, "reshard_after_forward": 4}, "reshard_after_forward(4) with fsdp(4)"),
        (
            {"fsdp": 4, "tp": 2, "reshard_after_forward": 2},
            "reshard_after_forward(2) with tp(2): FSDP2 does",
        ),
        (
            {"dp": 2, "forward_prefetch": 1},
            "forward_prefetch(1) with backward_prefetch(1) with reduce_type",
        ),
        ({"dp": 2, "reshard_after_forward": False}, "reshard_after_forward(False) with forward_prefetch(0) with "),
        ({"dp": 2, "fsdp": 2, "bucket_mib": 1}, "bucket_mib(1) with dp(2) with fsdp(2) with zero(0): "),
        ({"bucket_mib": 1}, "bucket_mib(1) with dp(1) with fsdp(1) with zero(0): "),
        ({"offload": Offload.OPTIMIZER, "dp": 2}, "offload(optimizer) with zero(0) with fsdp(1): "),
        ({"offload": Offload.PARAMETERS, "dp": 2, "zero": 2}, "offload(parameters) with zero(2) with fsdp(1): "),
        ({"zero": 3}, "zero(3) with engine(auto) with dp(1): it shards over data-parallel ranks"),
        ({"dp": 2, "zero": 2, "reduction": Reduction.MICRO_BATCH}, "reduction(micro-batch) with zero(2) with engine(a"),
        ({"dp": 2, "engine": Engine.DEEPSPEED, "bucket_mib": 1}, "bucket_mib(1) with zero(0) with engine(deepspeed): "),
        ({"dp": 2, "zero": 3, "recompute": SELECTIVE_OP}, "recompute(selective-op) with zero(3): DeepSpeed's linears"),
        (
            {"tp": 2, "sequence_parallel": False, "recompute": SELECTIVE_OP},
            "recompute(selective-op) with tp(2) with sequence_parallel(False): a sum over tp takes the place",
        ),
        ({"bucket_mib": -1}, "layout.bucket_mib: must not be negative, got -1"),
    ],
)
def test_what_cannot_be_combined_is_refused_with_the_numbers_and_the_reason(values: dict[str, Any], words: str) -> None:
    assert words in refused(Layout, **values)


@pytest.mark.parametrize("text", ["balanced", "even", "3-2-2-1"])
def test_a_split_is_its_text(text: str) -> None:
    assert str(StageSplit.parse(text)) == text


@pytest.mark.parametrize("text", ["", "3", "3-", "-1", "3-x", "Even"])
def test_other_splits_are_refused(text: str) -> None:
    with pytest.raises(SpecError, match=r"^layout\.stage_split: '.*; accepted: balanced, even, "):
        StageSplit.parse(text, "layout.stage_split")


GPT = DecoderSpec(name="tiny", layers=4, hidden=48, heads=6, kv_heads=3, ffn=64, vocab=5, max_positions=64)


@pytest.mark.parametrize(
    "layout, workload, words",
    [
        ({"tp": 4}, {}, "model.heads(6) % layout.tp(4) != 0: each rank takes whole heads"),
        ({"tp": 2}, {}, "model.kv_heads(3) % layout.tp(2) != 0: "),
        ({"tp": 3}, {}, "model.ffn(64) % layout.tp(3) != 0: "),
        ({"cp": 2}, {"seq_len": 30}, "workload.seq_len(30) % 4 parts != 0: "),
        ({"cp": 2, "context": ContextMethod.ULYSSES}, {"seq_len": 30}, "model.kv_heads(3) % (cp(2) * tp(1)) != 0: "),
        ({"pp": 5}, {"micro_batches": 5}, "model.layers(4) < stages(5): every stage holds at least one block"),
        (
            {"pp": 2, "stage_split": StageSplit((1, 2), False)},
            {"micro_batches": 2},
            "stage_split(1-2) with model.layers(4)",
        ),
        (
            {"pp": 2, "stage_split": StageSplit((4, 0), False)},
            {"micro_batches": 2},
            "stage_split(4-0) with model.layers(4)",
        ),
        ({"pp": 2}, {}, "workload.micro_batches(1) < stages(2): 1f1b and dualpipev fill the pipeline first"),
        (
            {"pp": 2, "schedule": Schedule.INTERLEAVED, "virtual_stages": 2},
            {"micro_batches": 5},
            "workload.micro_batches(5) with layout.pp(2); take a multiple of pp: ",
        ),
    ],
)
def test_a_layout_that_does_not_fit_the_model_or_the_workload(
    layout: dict[str, Any], workload: dict[str, Any], words: str
) -> None:
    with pytest.raises(SpecError) as error:
        Case(GPT, Layout(**layout), Workload(**{"seq_len": 32, **workload}))
    assert words in str(error.value)
    assert "\n" not in str(error.value)


# --- recomputation -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["none", "selective", "selective-op", "full", "every-1", "every-12"])
def test_a_recompute_mode_is_its_text(text: str) -> None:
    assert str(Recompute.parse(text)) == text


@pytest.mark.parametrize(
    "text", ["", "every", "every-0", "every-01", "every--1", "every-1.5", "every-٣", "FULL", "9" * 99]
)
def test_other_recompute_modes_are_refused(text: str) -> None:
    with pytest.raises(SpecError, match=r"^layout\.recompute: '.*; accepted: none, selective, selective-op, "):
        Recompute.parse(text, "layout.recompute")


def test_the_blocks_that_are_rerun() -> None:
    def covered(text: str) -> list[int]:
        return [index for index in range(7) if Recompute.parse(text).covers_block(index)]

    assert covered("none") == covered("selective") == []
    assert covered("full") == covered("selective-op") == covered("every-1") == list(range(7))
    assert covered("every-3") == [0, 3, 6]
    assert Recompute.parse("every-1").kind is RecomputeKind.EVERY
