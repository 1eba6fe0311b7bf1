"""The nouns refuse what cannot be, in a line that names the field, the value and the numbers that decided."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import pytest

from suite.case import Case, case_from
from suite.layout import (
    ContextMethod,
    Engine,
    Layout,
    Offload,
    Recompute,
    RecomputeKind,
    ReduceType,
    Reduction,
    Schedule,
    StageSplit,
)
from suite.models import preset
from suite.models.decoder import DecoderSpec
from suite.parse import SpecError
from suite.spec import Cluster, LossKernel, OptimizerKind, Precision, Recipe, Workload

pytestmark = pytest.mark.unit


def refused(kind: type, **values: Any) -> str:
    with pytest.raises(SpecError) as error:
        kind(**values)
    assert "\n" not in str(error.value)
    return str(error.value)


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
        ({"ep": 2}, "ep(2): expert parallelism"),
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
        ({"engine": Engine.DEEPSPEED}, "zero(0) with engine(deepspeed) with dp(1): it shards over"),
        (
            {"dp": 2, "zero": 2, "reduction": Reduction.MICRO_BATCH},
            "reduction(micro-batch) with zero(2) with engine(auto): its stage decides",
        ),
        (
            {"dp": 2, "engine": Engine.DEEPSPEED, "bucket_mib": 1},
            "bucket_mib(1) with zero(0) with engine(deepspeed): its all-reduce has a bucket of 5e8 elements",
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


@pytest.mark.parametrize("text", ["none", "selective", "full", "every-1", "every-12"])
def test_a_recompute_mode_is_its_text(text: str) -> None:
    assert str(Recompute.parse(text)) == text


@pytest.mark.parametrize(
    "text", ["", "every", "every-0", "every-01", "every--1", "every-1.5", "every-٣", "FULL", "9" * 99]
)
def test_other_recompute_modes_are_refused(text: str) -> None:
    with pytest.raises(SpecError, match=r"^layout\.recompute: '.*; accepted: none, selective, full, every-<n> with n"):
        Recompute.parse(text, "layout.recompute")


def test_the_blocks_that_are_rerun() -> None:
    def covered(text: str) -> list[int]:
        return [index for index in range(7) if Recompute.parse(text).covers_block(index)]

    assert covered("none") == covered("selective") == []
    assert covered("full") == covered("every-1") == list(range(7))
    assert covered("every-3") == [0, 3, 6]
    assert Recompute.parse("every-1").kind is RecomputeKind.EVERY


# --- workload, cluster, recipe -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["seq_len", "micro_batch", "micro_batches"])
def test_a_workload_has_something_of_everything(name: str) -> None:
    assert refused(Workload, **{name: 0}) == f"workload.{name}: must be at least 1, got 0"


def test_a_cluster_has_machines() -> None:
    assert refused(Cluster, nodes=0) == "cluster.nodes: must be at least 1, got 0"
    assert refused(Cluster, per_node=-1) == "cluster.per_node: must be at least 0, got -1"


@pytest.mark.parametrize("name", ["warmup_steps", "seed", "stride", "validation_batches", "learning_rate"])
def test_a_recipe_has_nothing_negative(name: str) -> None:
    assert refused(Recipe, **{name: -1}) == f"recipe.{name}: must be finite and not negative, got -1"


@pytest.mark.parametrize("name", ["learning_rate", "weight_decay"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_recipe_is_made_of_finite_numbers(name: str, value: float) -> None:
    assert refused(Recipe, **{name: value}) == f"recipe.{name}: must be finite and not negative, got {value}"


def test_steps_and_clipping() -> None:
    assert refused(Recipe, steps=0) == "recipe.steps: must be at least 1, got 0"
    for value in (0, -1.0, math.nan):
        assert refused(Recipe, clip_norm=value) == f"recipe.clip_norm: must be positive, got {value}"
    assert Recipe(clip_norm=math.inf).clip_norm == math.inf  # the way to say: no clipping


# --- the decoder ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["layers", "hidden", "heads", "kv_heads", "ffn", "vocab", "max_positions"])
def test_a_decoder_has_no_empty_axis(name: str) -> None:
    assert refused(DecoderSpec, **{name: -1}) == f"model.{name}: must be at least 1, got -1"


@pytest.mark.parametrize(
    "values, message",
    [
        ({"hidden": 100, "heads": 3}, "model.heads: hidden(100) % heads(3) != 0; give head_dim or other heads"),
        ({"heads": 4, "kv_heads": 3}, "model.kv_heads: heads(4) % kv_heads(3) != 0"),
        ({"head_dim": -2}, "model.head_dim: must be at least 1, got -2"),
        ({"head_dim": 5}, "model.head_dim: rope rotates pairs; 5 rotated of 5 is not even"),
        ({"rope_fraction": 0.0}, "model.rope_fraction: must be in (0, 1], got 0.0"),
        ({"rope_fraction": 1.5}, "model.rope_fraction: must be in (0, 1], got 1.5"),
        ({"rope_fraction": math.nan}, "model.rope_fraction: must be in (0, 1], got nan"),
        ({"rope_fraction": 0.01}, "model.head_dim: rope rotates pairs; 0 rotated of 32 is not even"),
        ({"family": "encoder"}, "model.family: 'encoder' is not 'decoder'"),
    ],
)
def test_a_decoder_whose_numbers_do_not_fit(values: dict[str, Any], message: str) -> None:
    assert refused(DecoderSpec, **values) == message


def test_what_a_decoder_derives() -> None:
    spec = DecoderSpec(hidden=96, heads=6, kv_heads=2, rope_fraction=0.5)
    assert (spec.head_dim, spec.q_dim, spec.kv_dim, spec.rotary_dim) == (16, 96, 32, 8)
    assert DecoderSpec(heads=4).kv_heads == 4
    assert DecoderSpec(hidden=100, heads=3, head_dim=32).q_dim == 96


# --- the case ------------------------------------------------------------------------------------------------


def test_per_node_is_what_the_layout_needs() -> None:
    case = Case(preset("gpt-1m"), Layout(dp=6), cluster=Cluster(nodes=2))
    assert case.cluster.per_node == 3
    assert case_from(case.to_mapping()) == case


@pytest.mark.parametrize(
    "parts, message",
    [
        (
            {"workload": Workload(seq_len=1025)},
            "workload.seq_len: 1025 is beyond the model's max_positions(1024) of gpt-1m",
        ),
        (
            {"layout": Layout(dp=3), "cluster": Cluster(nodes=2)},
            "cluster.nodes: 2 does not divide the layout's 3 ranks",
        ),
        (
            {"layout": Layout(fsdp=4), "cluster": Cluster(nodes=2, per_node=4)},
            "layout: fsdp(4) = 4 ranks != nodes(2) * per_node(4) = 8; per_node 0 takes what the layout needs",
        ),
        (
            {"layout": Layout(fsdp=2, reduce_type=ReduceType.BF16), "workload": Workload(precision=Precision.FP32)},
            "layout.reduce_type(bf16) with workload.precision(fp32): it is the type of gradients that are computed in"
            " bf16; use bf16-mixed",
        ),
        (
            {"layout": Layout(fsdp=2, offload=Offload.PARAMETERS)},
            "layout.offload(parameters) with cluster.device(cpu): a CPU rank's own memory is the host's, so that"
            " nothing would move; use none, or a GPU",
        ),
    ],
)
def test_parts_that_do_not_fit_each_other(parts: dict[str, Any], message: str) -> None:
    assert refused(Case, model=preset("gpt-1m"), **parts) == message


def test_the_global_batch_counts_every_rank_and_micro_batch() -> None:
    case = Case(preset("gpt-1m"), Layout(fsdp=4), Workload(seq_len=16, micro_batch=3, micro_batches=5))
    assert (case.global_batch, case.tokens_per_step) == (60, 960)


def test_the_id_follows_every_part_and_nothing_else() -> None:
    case = Case(preset("gpt-1m"))
    others = [
        replace(case, model=preset("gpt-10m")),
        replace(case, layout=Layout(recompute=Recompute.parse("full"))),
        replace(case, workload=Workload(seq_len=512)),
        replace(case, cluster=Cluster(device="b200")),
        replace(case, recipe=Recipe(seed=1)),
    ]
    assert len({case.case_id, *(other.case_id for other in others)}) == 6
    shuffled = dict(reversed(json.loads(json.dumps(case.to_mapping())).items()))
    assert case_from(shuffled).case_id == case.case_id
    assert len(case.case_id) == 12


def test_the_label_tells_the_choices() -> None:
    usual = Case(preset("gpt-1m"), Layout(fsdp=2), Workload(micro_batches=2))
    assert usual.label == "gpt-1m fsdp2 bf16-mixed flash x2"
    other = Workload(optimizer=OptimizerKind.SGD, loss=LossKernel.CHUNKED)
    assert Case(preset("gpt2"), workload=other).label == "gpt2 single bf16-mixed flash sgd chunked-loss"
