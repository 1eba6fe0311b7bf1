"""ZeRO's formulas by hand, and its configuration: none of it needs torch or DeepSpeed."""

from __future__ import annotations

import subprocess
import sys
from math import inf
from typing import Any

import pytest

from memory.estimate import MemoryModel
from memory.optimizer import optimizer_bytes
from parallelism.zero.config import deepspeed_config
from parallelism.zero.redundancy import shares
from parallelism.zero.state import Place, backward_bucket_bytes, gradient_bytes, held
from parallelism.zero.traffic import messages
from suite.case import Case, case_from
from suite.collectives import Collective
from suite.operators import Ledger
from suite.record import Component

pytestmark = pytest.mark.unit

#: matrices of 28 28 16 16 8 8 20 20 20 elements and vectors of 4 4 4
SMALL = {"layers": 1, "hidden": 4, "heads": 2, "kv_heads": 1, "head_dim": 2, "ffn": 5, "vocab": 7, "max_positions": 8}
MATRICES, VECTORS = 28 + 28 + 16 + 16 + 8 + 8 + 20 + 20 + 20, 4 + 4 + 4
#: over 3 ranks: a third of 164 and 12 to the next multiple of 6, and of each parameter alone
FLAT = 168 + 12
PARTS = 10 + 10 + 6 + 6 + 3 + 3 + 7 + 7 + 7 + 2 + 2 + 2


def case_of(layout: dict[str, Any], recipe: dict[str, Any] | None = None, **workload: Any) -> Case:
    """A small case on 3 ranks, fp32 and 6 tokens a sequence."""
    work = {"seq_len": 6, "precision": "fp32"} | workload
    return case_from({"model": SMALL, "layout": {"dp": 3} | layout, "workload": work, "recipe": recipe or {}})


def ledger_of(case: Case) -> Ledger:
    """The case's ledger."""
    return MemoryModel(case).ledger


def kept(case: Case, place: Place | None = None) -> dict[Component, int]:
    """Bytes by component between two steps on rank 0, everywhere or in one place."""
    rows: dict[Component, int] = {}
    for item in held(case, ledger_of(case), 0):
        if place in (None, item.place):
            rows[item.component] = rows.get(item.component, 0) + item.nbytes
    return rows


def sent(case: Case) -> list[tuple[Collective, int, int]]:
    """Collective, payload and count of each message."""
    return [(row.collective, row.payload, row.count) for row in messages(case, ledger_of(case), 0)]


def test_stages_1_and_2_keep_an_fp32_copy_of_a_part() -> None:
    assert MATRICES == 164
    for stage in (1, 2):
        assert kept(case_of({"zero": stage})) == {
            Component.PARAMETERS: 4 * FLAT,
            Component.OPTIMIZER: 12 * FLAT // 3 + 4 * 2,  # master and moments, and a step for each of two groups
        }


def test_bf16_halves_parameters_and_leaves_the_master() -> None:
    assert kept(case_of({"zero": 1}, precision="bf16-mixed")) == {
        Component.PARAMETERS: 2 * FLAT,
        Component.OPTIMIZER: 12 * FLAT // 3 + 8,
    }


def test_stage_0_keeps_everything_and_in_bf16_a_master_of_everything() -> None:
    whole = MATRICES + VECTORS
    for precision, size, master in (("fp32", 4, 0), ("bf16-mixed", 2, 4)):
        case = case_of({"engine": "deepspeed"}, precision=precision)
        assert kept(case) == {
            Component.PARAMETERS: size * whole,
            Component.OPTIMIZER: (master + 8) * whole + 4 * 12,  # a step for each tensor
        }


def test_stage_3_cuts_each_parameter_and_keeps_gradients_and_the_bucket() -> None:
    assert kept(case_of({"zero": 3, "bucket_mib": 1}, optimizer="sgd")) == {
        Component.PARAMETERS: 4 * PARTS,
        Component.OPTIMIZER: 8 * PARTS,  # master and momentum
        Component.GRADIENTS: 4 * PARTS,
        Component.COMMUNICATION: 2**20,
    }


def test_offloaded_state_is_on_the_host() -> None:
    case = case_of({"zero": 3, "bucket_mib": 1, "offload": "parameters"}, precision="bf16-mixed")
    assert kept(case, Place.DEVICE) == {Component.COMMUNICATION: 2**20}
    assert kept(case, Place.HOST) == {
        Component.PARAMETERS: 2 * PARTS,
        Component.OPTIMIZER: 12 * PARTS + 8,
        Component.GRADIENTS: (2 + 4) * PARTS,
    }
    optimizer = case_of({"zero": 1, "offload": "optimizer"})
    assert kept(optimizer, Place.DEVICE) == {Component.PARAMETERS: 4 * FLAT, Component.COMMUNICATION: 4 * 28}


def test_gradients_of_a_part_are_those_of_every_parameter_in_it() -> None:
    """Matrices in order: 28 16 8 8 16 20 20 20 28. Ranks take 56 elements each, and 4 of the vectors' 12; the last has
    4 of padding."""
    case = case_of({"zero": 2})
    touched = (28 + 16 + 8 + 8, 8 + 16 + 20 + 20, 20 + 20 + 28 + 4)
    assert [gradient_bytes(case, ledger_of(case), rank) for rank in range(3)] == [4 * (mine + 4) for mine in touched]


def test_the_bucket_of_stages_1_and_2_lives_in_the_backward_pass() -> None:
    assert backward_bucket_bytes(case_of({"zero": 2})) == 4 * 500_000_000
    assert backward_bucket_bytes(case_of({"zero": 1, "bucket_mib": 3}, precision="bf16-mixed")) == 3 * 2**20
    assert backward_bucket_bytes(case_of({"zero": 3})) == 0


@pytest.mark.parametrize(("stage", "passes"), [(1, 1), (2, 2)])
def test_stage_2_reduces_every_micro_batch_and_stage_1_the_last(stage: int, passes: int) -> None:
    assert sent(case_of({"zero": stage}, micro_batches=2)) == [
        (Collective.ALL_REDUCE, 4 * 176, passes),
        (Collective.ALL_REDUCE, 4, 2),
        (Collective.ALL_GATHER, 4 * 168, 1),
        (Collective.ALL_GATHER, 4 * 12, 1),
    ]


def test_stage_3_gathers_in_forward_and_backward_and_when_a_block_is_rerun() -> None:
    """Everything twice; of a rerun block all but its last module, down, once more."""
    for recompute, again in (("none", 0), ("full", PARTS - 10 - 10 - 2 - 7)):
        rows = sent(case_of({"zero": 3, "recompute": recompute}, micro_batches=2))
        gathered = sum(payload * count for collective, payload, count in rows if collective is Collective.ALL_GATHER)
        assert gathered == 2 * 4 * 3 * (2 * PARTS + again)
        assert rows[-2:] == [(Collective.REDUCE_SCATTER, 4 * 3 * PARTS, 2), (Collective.ALL_REDUCE, 8, 2)]


def test_zero_redundancy_gives_the_largest_to_the_rank_with_the_least() -> None:
    """28 and 28; 20 and 20; 20 to the first; 16 and 16 to the second; 8 and 8 to the first; vectors where less is."""
    case = case_of({"dp": 2, "zero": 1, "engine": "torch"})
    mine = [[item.elements for item in share] for share in shares(ledger_of(case), 2)]
    assert mine == [[28, 20, 20, 8, 8, 4], [28, 20, 16, 16, 4, 4]]
    assert [optimizer_bytes(case, ledger_of(case), rank) for rank in (0, 1)] == [8 * 88 + 4 * 6] * 2


def test_configuration() -> None:
    case = case_of({"zero": 2, "bucket_mib": 2, "offload": "optimizer"}, micro_batch=5, micro_batches=2)
    config = deepspeed_config(case)
    assert config["train_batch_size"] == 30
    assert config["gradient_clipping"] == 1.0
    assert config["zero_optimization"] == {
        "stage": 2,
        "reduce_bucket_size": 2**19,
        "allgather_bucket_size": 2**19,
        "offload_optimizer": {"device": "cpu", "pin_memory": False},
    }


@pytest.mark.parametrize(
    ("layout", "recipe", "workload"),
    [({"zero": 1}, {"clip_norm": inf}, {}), ({"engine": "deepspeed"}, {"clip_norm": 0.5}, {})],
)
def test_the_engine_is_not_told_to_clip_where_it_should_not(
    layout: dict[str, Any], recipe: dict[str, Any], workload: dict[str, Any]
) -> None:
    """No limit; and stage 0 in fp32, where our own clipping runs."""
    assert deepspeed_config(case_of(layout, recipe, **workload))["gradient_clipping"] == 0.0


def test_facts_need_neither_torch_nor_deepspeed() -> None:
    code = (
        "import sys, parallelism.zero.strategy, parallelism.zero.state, parallelism.zero.traffic;"
        "import parallelism.zero.redundancy;"
        "sys.exit(bool({'torch', 'deepspeed'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
