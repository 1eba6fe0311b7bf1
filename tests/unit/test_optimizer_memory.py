"""Optimizer state and step temporaries by hand, and the optimizers that layouts refuse."""

from __future__ import annotations

from typing import Any

import pytest

from memory.estimate import MemoryModel
from memory.optimizer import optimizer_bytes, optimizer_transient
from suite.case import Case, case_from
from suite.parse import SpecError

pytestmark = pytest.mark.unit

#: embedding and head 7x4 each, wq and wo 4x4, wk and wv 2x4, gate and up 5x4, down 4x5, three norms of 4
SMALL = {"layers": 1, "hidden": 4, "heads": 2, "kv_heads": 1, "head_dim": 2, "ffn": 5, "vocab": 7, "max_positions": 8}
WHOLE, BLOCK, TENSORS = 176, 16 + 16 + 8 + 8 + 20 + 20 + 20, 12
#: embedding and head 101x64, wq and wo 64x64, wk and wv 16x64, gate, up and down of 70x64, norms of 64: all matrices
#: but wk and wv have 4096 elements or more
WIDE = {"layers": 2, "hidden": 64, "heads": 4, "kv_heads": 1, "ffn": 70, "vocab": 101, "max_positions": 8}


def case_of(layout: dict[str, Any] | None = None, model: Any = None, **workload: Any) -> Case:
    """A case in fp32."""
    work = {"seq_len": 6, "precision": "fp32"} | workload
    return case_from({"model": model or SMALL, "layout": layout or {}, "workload": work})


def state(rank: int = 0, **choices: Any) -> int:
    """Bytes of a rank's optimizer state."""
    case = case_of(**choices)
    return optimizer_bytes(case, MemoryModel(case).ledger_of_rank(rank), rank)


def passing(rank: int = 0, **choices: Any) -> int:
    """Bytes that a rank's update allocates in passing."""
    case = case_of(**choices)
    found = optimizer_transient(case, MemoryModel(case).ledger_of_rank(rank), rank)
    return found.nbytes if found else 0


def test_adafactor_keeps_rows_and_columns_of_matrices_and_vectors_whole() -> None:
    matrices = 2 * (7 + 4) + 2 * (4 + 4) + 2 * (2 + 4) + 3 * (5 + 4)
    assert state(optimizer="adafactor") == 4 * (matrices + 3 * 4) + 4 * TENSORS


def test_muon_keeps_one_momentum_of_the_blocks_matrices_and_adamw_the_rest() -> None:
    others = 7 * 4 + 7 * 4 + 3 * 4
    assert others + BLOCK == WHOLE
    assert state(optimizer="muon") == 4 * BLOCK + 8 * others + 4 * 5


def test_8_bit_adam_keeps_codes_and_scales_and_small_tensors_whole() -> None:
    """6464 elements are 26 blocks of 256, 4096 are 16, 4480 are 18."""
    quantized = 2 * (6464 + 4 * 26) + 2 * (2 * (4096 + 4 * 16) + 3 * (4480 + 4 * 18))
    small = 2 * (2 * 1024 + 2 * 64) + 64
    assert state(model=WIDE, optimizer="adam-8bit") == 2 * quantized + 8 * small + 4 * (2 * 4 + 1) + 2 * 1024


@pytest.mark.parametrize(
    ("optimizer", "bytes_a_parameter"),
    [("adamw", 16), ("sgd", 12), ("adafactor", 8), ("adam-8bit", 4 + 4 + 2 * (1 + 4 / 256))],
)
def test_bytes_a_parameter(optimizer: str, bytes_a_parameter: float) -> None:
    """Weights, gradients and state of a model of 8 billion parameters: vectors, steps and factors are next to nothing
    (ZeRO, arXiv:1910.02054, section 3.1: 16; 8-bit Adam, arXiv:2110.02861: 2 bytes of state for 8)."""
    case = case_of(model="llama3-8b", optimizer=optimizer)
    ledger = MemoryModel(case).ledger
    held = 2 * 4 * ledger.parameters + optimizer_bytes(case, ledger, 0)
    assert held / ledger.parameters == pytest.approx(bytes_a_parameter, rel=5e-4)


def test_fused_steps_need_nothing() -> None:
    assert passing() == passing(optimizer="sgd") == passing(optimizer_kernel="fused") == 0


def test_foreach_makes_a_list_of_the_largest_group() -> None:
    """All matrices; under FSDP a rank's shards: 12 of 28, 8 of 16, 4 of 8, 8 of 5 rows of 4, 10 of 4 rows of 5."""
    matrices = WHOLE - 3 * 4
    for optimizer in ("adamw", "sgd", "adafactor"):
        assert passing(optimizer=optimizer, optimizer_kernel="foreach") == 4 * matrices
    shards = 2 * 12 + 2 * 8 + 2 * 4 + 2 * 8 + 10
    assert passing(layout={"fsdp": 3}, optimizer_kernel="foreach") == 4 * shards


def test_a_loop_over_adamws_tensors_keeps_the_one_before() -> None:
    """Embedding, wq, wk, wv, wo, gate, up, down, head: the last is the largest, after one of 20."""
    assert passing(optimizer_kernel="loop") == 4 * (2 * 28 + 20)
    assert passing(optimizer_kernel="loop", layout={"fsdp": 3}) == 4 * (2 * 12 + 10)


def test_a_loop_goes_from_block_to_block() -> None:
    """wq, 16 elements, after the block before's down, 12; within a block wo follows wv, 8, and gate, 12, follows wo."""
    narrow = SMALL | {"layers": 3, "ffn": 3, "vocab": 2}
    assert passing(model=narrow, optimizer_kernel="loop") == 4 * (12 + 2 * 16)


def test_a_loop_over_adafactors_tensors_keeps_the_update_before() -> None:
    assert passing(optimizer="adafactor") == 4 * (28 + 7 + 4 + 20)


def test_sgds_loop_decays_one_tensor() -> None:
    assert passing(optimizer="sgd", optimizer_kernel="loop") == 4 * 28
    still = case_from({"model": SMALL, "workload": {"seq_len": 6, "optimizer": "sgd", "optimizer_kernel": "loop"},
                       "recipe": {"weight_decay": 0.0}})  # fmt: skip
    assert optimizer_transient(still, MemoryModel(still).ledger, 0) is None


def test_muon_iterates_on_its_largest_matrix_in_bf16() -> None:
    """gate: 5x4 in fp32; twice in bf16; its 4x4 Gram matrix and the polynomial of it in bf16."""
    assert passing(optimizer="muon") == 4 * 20 + 2 * 2 * 20 + 2 * 2 * 16
    assert passing(optimizer="muon", optimizer_kernel="loop") == 4 * (
        2 * 28 + 28
    )  # AdamW: the head after the embedding


def test_8_bit_adam_unpacks_whole_blocks_of_a_slice() -> None:
    """25 of the embedding's 26 blocks are full; of a large tensor 2^20 elements at a time."""
    assert passing(model=WIDE, optimizer="adam-8bit") == 4 * (3 * 25 * 256 + 255)
    assert passing(model="llama3-8b", optimizer="adam-8bit") == 4 * (3 * 2**20 + 255)


def test_only_the_fused_step_counts_on_a_gpu() -> None:
    """Elsewhere torch keeps step counters in the host's memory."""
    gpu = {"device": "h100-sxm"}
    for kernel, counters in (("fused", TENSORS), ("foreach", 0)):
        workload = {"seq_len": 6, "optimizer_kernel": kernel}
        case = case_from({"model": SMALL, "workload": workload, "cluster": gpu})
        assert optimizer_bytes(case, MemoryModel(case).ledger, 0) == 8 * WHOLE + 4 * counters


def test_zero_redundancy_gives_adafactors_factors_with_whole_parameters() -> None:
    """28 and 28; 20 and 20; 20 to the first; 16 and 16 to the second; 8 and 8 to the first; vectors where less is."""
    layout = {"dp": 2, "zero": 1, "engine": "torch"}
    first = (7 + 4) + 2 * (5 + 4) + 2 * (2 + 4) + 4
    second = (7 + 4) + (5 + 4) + 2 * (4 + 4) + 2 * 4
    found = [state(rank, layout=layout, optimizer="adafactor") for rank in (0, 1)]
    assert found == [4 * first + 4 * 6, 4 * second + 4 * 6]


@pytest.mark.parametrize(
    ("layout", "workload", "words"),
    [
        ({}, {"optimizer": "adafactor", "optimizer_kernel": "fused"}, "optimizer_kernel(fused) with workload.optim"),
        ({}, {"optimizer": "muon", "optimizer_kernel": "foreach"}, "muon and adam-8bit loop; use auto"),
        ({"fsdp": 2}, {"optimizer": "sgd", "optimizer_kernel": "fused"}, "fsdp(2), layout.tp(1): DTensor has no rule"),
        ({"fsdp": 2}, {"optimizer": "adafactor"}, "workload.optimizer(adafactor) with layout.fsdp(2), layout.tp(1): D"),
        ({"tp": 2}, {"optimizer": "adafactor"}, "workload.optimizer(adafactor) with layout.fsdp(1), layout.tp(2): D"),
        ({"fsdp": 2}, {"optimizer": "muon"}, "tp(1): it orthogonalizes whole matrices"),
        ({"tp": 2}, {"optimizer": "adam-8bit"}, "tp(2): shards would cut its blocks of 256"),
        ({"dp": 2, "zero": 2}, {"optimizer": "adam-8bit"}, "zero(2), layout.engine(auto): its stages 1 to 3 update"),
        ({"dp": 2, "zero": 1}, {"optimizer_kernel": "loop"}, "engine(auto): the formulas know its engine with fused"),
        ({"dp": 2, "zero": 1, "engine": "torch"}, {"optimizer": "muon"}, "engine(torch): it divides one optimizer"),
    ],
)  # fmt: skip
def test_what_a_layout_cannot_take_is_refused(layout: dict[str, Any], workload: dict[str, Any], words: str) -> None:
    with pytest.raises(SpecError) as error:
        case_of(layout, SMALL | {"kv_heads": 2, "ffn": 4}, **workload)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_the_default_kernel_names_no_case_and_another_does() -> None:
    usual, foreach = case_of(), case_of(optimizer_kernel="foreach")
    assert case_of(optimizer_kernel="auto").case_id == usual.case_id == "0f930f3ff34d"
    assert foreach.case_id != usual.case_id
    assert foreach.label == f"{usual.label} foreach"
