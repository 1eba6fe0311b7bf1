"""The nouns refuse what cannot be, in a line that names the field, the value and the numbers that decided."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import pytest

from suite.case import Case, case_from
from suite.layout import (
    Layout,
    Offload,
    Recompute,
    ReduceType,
)
from suite.models import preset
from suite.models.decoder import DecoderSpec
from suite.spec import Cluster, LossKernel, OptimizerKind, Precision, Recipe, Workload
from tests.unit.refusals import refused

pytestmark = pytest.mark.unit


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
            " bf16; use bf16-mixed or bf16",
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
