"""Mixtures of experts without torch: published counts, FLOPs by hand, capacity, what is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from parallelism.tensor.plan import Style, plan_of
from suite.case import case_from
from suite.layout import Recompute
from suite.models.experts import Experts
from suite.models.experts_layers import active_parameters, router_biases
from suite.models.ledgers import ledger_of
from suite.models.presets import PRESETS
from suite.operators import OperatorKind
from suite.parse import SpecError
from suite.spec import Workload
from suite.tape import FP32, Backend

pytestmark = pytest.mark.unit

#: rows of the published table: parameters (V3's and Kimi's with routers' biases), and those that a token uses
PUBLISHED = [
    ("mixtral-8x7b", 46_702_792_704, 12_879_925_248),
    ("mixtral-8x22b", 140_620_634_112, None),
    ("mixtral-8x22b-v0.3", 140_630_071_296, None),
    ("deepseek-v2", 235_741_434_880, None),
    ("deepseek-v3", 671_026_419_200, 37_552_297_472),
    ("kimi-k2", 1_026_408_232_448, None),
]
SIZES: dict[str, Any] = {"layers": 4, "hidden": 32, "heads": 4, "ffn": 48, "vocab": 64, "max_positions": 64}
MOE: dict[str, Any] = {"count": 8, "top_k": 2, "ffn": 16}


def model_of(experts: dict[str, Any] | None = None, **settings: Any) -> dict[str, Any]:
    return SIZES | {"experts": MOE | (experts or {})} | settings


@pytest.mark.parametrize(("name", "parameters", "active"), PUBLISHED)
def test_counts_are_the_published_ones(name: str, parameters: int, active: int | None) -> None:
    spec = PRESETS[name]
    found = ledger_of(spec, Workload(seq_len=2), Recompute(), FP32, Backend.CPU).parameters + router_biases(spec)
    assert found == parameters
    assert active in (None, active_parameters(spec, found))


def test_flops_are_those_of_the_experts_that_a_token_goes_to() -> None:
    """Six a weight and token: attention, router, top_k + shared experts, of one dense block and three mixtures."""
    b, s, h = 3, 16, 32
    case = case_from({"model": model_of({"shared": 1}, dense_layers=1), "workload": {"seq_len": s, "micro_batch": b}})
    made = ledger_of(case.model, case.workload, Recompute(), FP32, Backend.CPU)
    found = sum(
        count * operator.flops.total()
        for segment, count in made.counts.items()
        for operator in segment.operators()
        if operator.kind is OperatorKind.MATMUL
    )
    weights = 4 * 4 * h * h + 3 * h * 48 + 3 * (h * 8 + (2 + 1) * 3 * h * 16) + h * 64
    assert found == 6 * b * s * weights


@pytest.mark.parametrize(("factor", "seq_len", "room"), [(1.0, 16, 4), (1.25, 16, 5), (1.0, 17, 5), (9.0, 16, 16)])
def test_an_experts_room_is_its_share_of_a_sequence(factor: float, seq_len: int, room: int) -> None:
    """Of 8 experts and 2 a token: a quarter of the tokens, times the factor, rounded up, at most all."""
    assert Experts(8, 2, 16, capacity_factor=factor).capacity(seq_len) == room


def test_the_plan_of_a_mixture_gathers_and_sums_around_it_alone() -> None:
    plan = plan_of(case_from({
        "model": model_of({"shared": 1}, dense_layers=1), "layout": {"tp": 2}, "workload": {"seq_len": 16},
    }))  # fmt: skip
    assert plan["blocks.0.mlp"] is Style.ENTER_BEFORE
    assert plan["blocks.1.mlp"] is plan["blocks.2.mlp"] is Style.AROUND
    assert plan["blocks.*.mlp.experts"] is Style.EXPERTS
    assert plan["blocks.*.mlp.down"] is Style.ROWS
    assert plan["blocks.*.mlp.shared.down"] is Style.OWN_ROWS
    assert not {"blocks.*.mlp.shared", "blocks.*.mlp.router"} & set(plan)


REFUSED: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({"top_k": 9}, {}, r"model.experts.top_k: 9 > 8 experts"),
    ({"count": 9, "groups": 2}, {}, r"model.experts.groups: count\(9\) % groups\(2\) != 0"),
    ({"ffn": 18}, {}, r"rows of 128 and 72 bytes in fp32: torch's grouped product"),
    ({}, {"layout": {"tp": 2, "sequence_parallel": False}}, r"sequence_parallel\(False\): each rank's channels give"),
    ({"ffn": 17}, {"layout": {"tp": 2}}, r"model.experts.ffn\(17\) % layout.tp\(2\) != 0"),
    ({"balance": "auxiliary"}, {"layout": {"cp": 2}}, r"balance\(auxiliary\) with layout.cp\(2\)"),
    ({"dispatch": "capacity"}, {"layout": {"cp": 2}}, r"dispatch\(capacity\) with layout.cp\(2\)"),
    ({"balance": "auxiliary"}, {"workload": {"precision": "fp16-mixed"}}, r"workload.precision\(fp16-mixed\)"),
    ({"balance": "bias"}, {"layout": {"dp": 2, "zero": 2}, "workload": {"precision": "bf16-mixed"}}, "rounds buffers"),
    ({}, {"workload": {"precision": "fp8"}}, r"model.experts with workload.precision\(fp8\)"),
    (
        {},
        {
            "layout": {"pp": 2, "schedule": "interleaved-zero-bubble", "virtual_stages": 2},
            "workload": {"micro_batches": 4},
        },
        r"layout.schedule\(interleaved-zero-bubble\)",
    ),
]


@pytest.mark.parametrize(("experts", "parts", "message"), REFUSED, ids=lambda part: str(part)[:40])
def test_a_case_refuses_what_is_not_proven(experts: dict[str, Any], parts: dict[str, Any], message: str) -> None:
    workload = {"seq_len": 32, "precision": "fp32"} | parts.get("workload", {})
    with pytest.raises(SpecError, match=message):
        case_from({"model": model_of(experts)} | parts | {"workload": workload})


@pytest.mark.parametrize(("settings", "parts", "message"), [
    ({"activation": "gelu"}, {}, r"model.activation\(gelu\)"),
    ({"bias": True}, {}, r"model.bias\(True\)"),
    ({"dense_layers": 4}, {}, r"leave no block with experts"),
    ({"mtp": 1}, {"layout": {"tp": 2}}, r"model.mtp\(1\) with layout.pp\(1\), tp\(2\)"),
    ({"mtp": 1}, {"workload": {"loss": "chunked", "seq_len": 32}}, r"model.mtp\(1\) with workload.loss\(chunked\)"),
    ({"mtp": 2}, {"workload": {"seq_len": 2}}, r"model.mtp\(2\) with workload.seq_len\(2\)"),
])  # fmt: skip
def test_a_model_refuses_what_it_has_no_place_for(
    settings: dict[str, Any], parts: dict[str, Any], message: str
) -> None:
    with pytest.raises(SpecError, match=message):
        case_from({"model": model_of(**settings), "workload": {"seq_len": 32}} | parts)


def test_a_case_without_experts_keeps_its_id() -> None:
    """Their settings are named where given alone."""
    plain = case_from({"model": SIZES, "workload": {"seq_len": 32}})
    data = plain.to_mapping()
    assert case_from(data).case_id == plain.case_id
    with_experts = case_from({"model": model_of(), "workload": {"seq_len": 32}})
    assert len({plain.case_id, with_experts.case_id, replace(with_experts, model=replace(
        with_experts.decoder, dense_layers=1)).case_id}) == 3  # fmt: skip
