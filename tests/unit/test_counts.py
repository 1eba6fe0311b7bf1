"""What a token of a mixture uses: held to published counts, to 6 N of the matrices that it meets."""

from __future__ import annotations

from dataclasses import replace

import pytest

from parallelism.simulator.work import GROUPED, Product, backward_work, forward_work, parts_of
from reports.counts import active_of, counts_of, parameters_of
from suite.case import Case, case_from
from suite.formats import formats_of
from suite.models import DecoderSpec, preset
from suite.models.ledgers import ledger_of
from suite.operators import Ledger
from suite.tape import Backend

pytestmark = pytest.mark.unit


def ledger(case: Case) -> Ledger:
    return ledger_of(case.model, case.workload, case.layout.recompute, formats_of(case).numerics, Backend.CUDA)


def case_of(name: str, seq_len: int = 64) -> Case:
    return case_from({"model": name, "workload": {"seq_len": seq_len, "micro_batch": 2}})


@pytest.mark.parametrize(
    ("name", "active"),
    [
        ("mixtral-8x7b", 12_879_925_248),  # params.csv, params-0031
        ("deepseek-v3", 37_552_297_472 - 58 * 256),  # params-0074, which counts the routers' biases
        ("llama3-8b", 8_030_261_248),
        ("t5-small", 60_506_624),
    ],
)
def test_what_a_token_uses_is_what_was_published(name: str, active: int) -> None:
    assert active_of(preset(name), parameters_of(preset(name))) == active


def test_predicting_further_tokens_is_training_s_alone() -> None:
    spec = preset("deepseek-v3-1m")
    assert isinstance(spec, DecoderSpec)
    assert spec.mtp
    bare = replace(spec, mtp=0)
    assert active_of(spec, parameters_of(spec)) == active_of(bare, parameters_of(bare))


@pytest.mark.parametrize("name", ["mixtral-1m", "mixtral-8x7b", "deepseek-v2-lite", "deepseek-v3"])
def test_a_token_costs_six_flops_for_each_weight_of_a_matrix_that_it_meets(name: str) -> None:
    """6 N_active (arXiv:2401.04088, section 2.1: sparse compute goes by active parameters), the embedding's rows and
    the norms' vectors not multiplied; attention beside it: 12 a s (d_qk + d_v) / 2 a layer, half of it masked."""
    case = case_of(name)
    spec, counts = case.decoder, counts_of(case, ledger(case))
    norms = spec.layers * 2 + 1
    vectors = norms * spec.hidden
    latent = spec.latent
    if latent is not None:
        vectors += spec.layers * (latent.kv_rank + latent.q_rank)
    widths = 2 * spec.head_dim if latent is None else latent.key_dim + latent.v_dim
    attention = spec.layers * spec.heads * 64 * 6 * widths
    matrices = counts.active - spec.vocab * spec.hidden - vectors
    assert counts.flops_full_attention - attention == 6 * matrices
    assert counts.flops == 6 * matrices + attention / 2
    everything = counts.parameters - spec.vocab * spec.hidden - vectors
    assert counts.flops_all_experts == 6 * everything + attention / 2


def test_without_experts_all_is_active() -> None:
    case = case_of("gpt2")
    counts = counts_of(case, ledger(case))
    assert counts.active == counts.parameters == 124_439_808
    assert counts.flops_all_experts == counts.flops


@pytest.mark.parametrize("seq_len", [64, 1])
def test_a_grouped_product_is_one_of_each_experts_own_rows(seq_len: int) -> None:
    """128 tokens of two experts each over 8: 32 rows an expert, whose products are as fast as 32 rows make them. Of 2
    tokens four experts have a row each. FLOPs are those of the ledger, forward and both halves of backward."""
    case = case_of("mixtral-1m", seq_len)
    found = [
        (operator, kernel)
        for segment in ledger(case).counts
        for operator, kernel in parts_of(segment.body)
        if kernel.name == GROUPED
    ]
    assert len(found) == 3
    for operator, kernel in found:
        (product,) = forward_work(operator, kernel)
        assert isinstance(product, Product)
        assert (product.m, product.batch) == ((32, 8) if seq_len == 64 else (1, 4))
        assert product.flops == operator.flops.forward
        inputs, weights = backward_work(operator, kernel)
        halves = [work for work in (*inputs, *weights) if isinstance(work, Product)]
        assert [half.flops for half in halves] == [operator.flops.forward] * 2
        assert halves[1].m == product.n
        assert halves[1].k == product.m
