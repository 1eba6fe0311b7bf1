"""Routing, experts and their balance against arithmetic token by token; training's memory to the byte."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from parallelism.expert_loads import move_biases, take_loads
from suite.case import Case, case_from
from suite.models.decoder_module import Decoder
from suite.models.experts import Balance, Dispatch, Experts, Scoring
from suite.models.experts_module import MixtureMLP, mixtures
from suite.models.routing import balance_loss, chosen, places_of
from suite.record import Component, Moment
from suite.spec import Precision
from tests.fake.measured import measure
from tests.fake.workspace import without_workspace

pytestmark = pytest.mark.fake

V2 = Experts(8, 3, 16, shared=2, normalized=False, scale=2.0, groups=4, top_groups=2)
V3 = replace(V2, scoring=Scoring.SIGMOID, normalized=True, balance=Balance.BIAS)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def mixture_of(spec: Experts, hidden: int = 12) -> MixtureMLP:
    torch.manual_seed(1)
    mixture = MixtureMLP(spec, hidden).double()
    for parameter in mixture.parameters():
        nn.init.normal_(parameter, std=0.3)
    if mixture.router.bias is not None:
        mixture.router.bias.copy_(torch.randn(spec.count) * 0.2)
    return mixture


def by_hand(mixture: MixtureMLP, x: Tensor) -> Tensor:
    """Token by token and choice by choice; with capacity, a queue for each sequence and expert."""
    spec, made = mixture.spec, []
    for sequence in x:
        experts, weights, _ = mixture.router(sequence, 1)
        taken = [0] * spec.count
        for token, mine, shares in zip(sequence, experts.tolist(), weights, strict=True):
            y = torch.zeros_like(token) if mixture.shared is None else mixture.shared(token)
            for expert, share in zip(mine, shares, strict=True):
                taken[expert] += 1
                if spec.dispatch is Dispatch.CAPACITY and taken[expert] > spec.capacity(len(sequence)):
                    continue
                gate, up, down = (
                    each[expert] for each in (mixture.experts.gate, mixture.experts.up, mixture.experts.down)
                )
                y = y + share * (down @ (F.silu(gate @ token) * (up @ token)))
            made.append(y)
    return torch.stack(made).view_as(x)


@pytest.mark.parametrize("spec", [
    Experts(5, 2, 7), V2, V3, Experts(4, 1, 8, dispatch=Dispatch.CAPACITY, capacity_factor=0.5),
    Experts(4, 2, 8, shared=1, dispatch=Dispatch.CAPACITY, capacity_factor=1.0),
], ids=["mixtral", "v2", "v3", "capacity", "capacity, shared"])  # fmt: skip
def test_a_mixture_is_its_experts_one_by_one(spec: Experts) -> None:
    """Outputs, and every gradient, in fp64 (scores are in fp32)."""
    mixture, x = mixture_of(spec), torch.randn(3, 9, 12, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(3, 9, 12, dtype=torch.float64)
    wanted = [x, *mixture.parameters()]
    found = torch.autograd.grad((mixture(x) * weight).sum(), wanted)
    expected = torch.autograd.grad((by_hand(mixture, x) * weight).sum(), wanted)
    torch.testing.assert_close(mixture(x), by_hand(mixture, x), atol=1e-6, rtol=0)
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-5)


def test_a_groups_score_is_its_best_experts_or_its_best_twos() -> None:
    """Groups {0.5, 0.0}, {0.4, 0.3}, {0.2, 0.1}: by the best one the first, by two the second."""
    scores, spec = torch.tensor([[0.5, 0.0, 0.4, 0.3, 0.2, 0.1]]), Experts(6, 2, 8, groups=3)
    assert set(chosen(scores, spec)[0].tolist()) == {0, 1}
    assert set(chosen(scores, replace(spec, scoring=Scoring.SIGMOID))[0].tolist()) == {2, 3}


def test_the_balance_loss_is_its_rate_where_all_is_even_and_more_where_it_is_not() -> None:
    """Even scores and choices: E / (k s) x (k s / E) x 1 / E summed over E experts is 1. All of a sequence's tokens to
    one of 4 experts with all of the score: 4."""
    spec = Experts(4, 1, 8, balance=Balance.AUXILIARY, rate=0.5)
    even, one = torch.full((8, 4), 0.25), torch.eye(4)[0].expand(8, 4)
    spread = torch.arange(8).view(8, 1) % 4
    assert balance_loss(even, spread, 2, spec).item() == pytest.approx(0.5)
    assert balance_loss(one, torch.zeros_like(spread), 2, spec).item() == pytest.approx(0.5 * 4)
    assert balance_loss(torch.cat((even[:4], one[:4])), spread * 0, 2, spec).item() == pytest.approx(0.5 * (1 + 4) / 2)


def test_what_is_over_capacity_is_the_last_of_its_sequence() -> None:
    """Two sequences of 4 tokens, all to expert 0 of 2, which takes ceil(1 x 1 x 4 / 2) = 2 of each."""
    spec = Experts(2, 1, 8, dispatch=Dispatch.CAPACITY, capacity_factor=1.0)
    places = places_of(torch.zeros(8, 1, dtype=torch.int64), 2, spec)
    assert places.filled is not None
    assert places.tokens[places.filled].tolist() == [0, 1, 4, 5]
    assert (places.counts.tolist(), places.load.tolist()) == ([4, 4], [8, 0])


def case_of(experts: dict[str, Any], model: dict[str, Any], recompute: str, **workload: Any) -> Case:
    sizes = {"layers": 2, "hidden": 48, "heads": 3, "ffn": 80, "vocab": 304, "max_positions": 128}
    return case_from({
        "model": sizes | {"experts": {"count": 6, "top_k": 2, "ffn": 24} | experts} | model,
        "layout": {"recompute": recompute}, "workload": {"seq_len": 40, "micro_batch": 3} | workload,
    })  # fmt: skip


SIGMOID = {"scoring": "sigmoid", "shared": 1, "scale": 2.5, "groups": 3, "top_groups": 2, "balance": "bias"}
LATENT = {"kv_rank": 40, "rope_dim": 8, "nope_dim": 16, "v_dim": 20}
TRAINED: list[tuple[dict[str, Any], dict[str, Any], str, dict[str, Any]]] = [
    ({"balance": "auxiliary"}, {}, "none", {"precision": "fp32"}),
    (SIGMOID, {"dense_layers": 1, "latent": LATENT}, "full", {"precision": "bf16-mixed"}),
    (SIGMOID | {"balance": "auxiliary"}, {}, "selective", {"precision": "bf16", "micro_batches": 2}),
    ({"dispatch": "capacity", "top_k": 3}, {"dropout": 0.1}, "none", {"precision": "bf16-mixed"}),
    ({"dispatch": "capacity", "shared": 1}, {}, "full", {"precision": "fp32", "attention": "eager"}),
    (SIGMOID, {"mtp": 1}, "none", {"precision": "bf16-mixed"}),
    ({}, {"mtp": 2, "tied": True}, "full", {"precision": "fp32", "micro_batches": 2}),
    ({"count": 8}, {}, "selective-op", {"precision": "fp32"}),
    ({}, {}, "full", {"precision": "bf16-mixed"}),
    ({"balance": "auxiliary", "shared": 2}, {}, "full", {"precision": "fp32"}),
    ({"balance": "auxiliary", "shared": 2}, {}, "full", {"precision": "bf16-mixed"}),
    (SIGMOID, {"layers": 3}, "every-2", {"precision": "bf16-mixed"}),
    ({"dispatch": "capacity"}, {"layers": 3}, "every-2", {"precision": "bf16-mixed"}),
]


@pytest.mark.parametrize(("experts", "model", "recompute", "workload"), TRAINED, ids=lambda part: str(part)[:48])
def test_every_moment_of_training_is_predicted(
    experts: dict[str, Any], model: dict[str, Any], recompute: str, workload: dict[str, Any]
) -> None:
    """As in test_memory_single: states to the byte, totals but for scalars, in fp32 every component."""
    case = case_of(experts, model, recompute, **workload)
    with without_workspace():
        found = measure(case)
    assert not found.states_off()
    assert not found.components_off()
    assert not found.totals_off()
    assert case.workload.precision is not Precision.FP32 or not found.components_off(Moment)


def test_a_block_to_be_rerun_keeps_its_load_and_not_what_its_experts_read() -> None:
    """What is there after the forward pass of one block more: its input [3, 40, 48] in fp32, and an entry of 8 bytes
    for each of 6 experts, of which the rerun must not be the only holder."""
    found = [
        measure(case_of({"shared": 1}, {"layers": layers}, "full", precision="fp32")) for layers in (1, 2)
    ]  # fmt: skip
    key = Moment.AFTER_FORWARD, Component.ACTIVATIONS
    for table in ("predicted", "measured"):
        one, two = (getattr(beside, table)[key] for beside in found)
        assert two - one == 3 * 40 * 48 * 4 + 6 * 8


def test_biases_move_against_the_load_which_a_rerun_counts_once() -> None:
    from parallelism.checkpointing import apply

    case = case_of(SIGMOID | {"rate": 0.25}, {"mtp": 1}, "full", precision="fp32")
    model = Decoder(case.decoder)
    model.reset_parameters()
    apply(model, None, case)
    ids = torch.randint(304, (3, 40))
    model(ids, ids).backward()
    loads = take_loads(model)
    assert loads is not None
    assert loads.sum(dim=1).tolist() == [3 * 40 * 2, 3 * 40 * 2, 3 * 39 * 2]
    move_biases(model, loads, None, case)
    for mixture, load in zip(mixtures(model), loads.tolist(), strict=True):
        mean = sum(load) / 6
        assert mixture.router.bias is not None
        assert mixture.router.bias.tolist() == [0.25 * ((mean > each) - (mean < each)) for each in load]
        assert not mixture.tally.any()


def test_further_tokens_add_gradient_and_no_loss() -> None:
    """The loss's value is the next tokens'; its gradient has 0.3 x the mean over depths of further tokens' losses, made
    here by hand from the model's own parts."""
    case = case_of({}, {"mtp": 2}, "none", precision="fp32")
    model = Decoder(case.decoder).double()
    model.reset_parameters()
    ids, labels = torch.randint(304, (2, 2, 12)).unbind(0)
    loss = model(ids, labels)
    with torch.no_grad():
        torch.testing.assert_close(loss.detach(), model(ids, labels))
    found = torch.autograd.grad(loss, list(model.parameters()))
    assert model.embedding is not None and model.norm is not None and model.head is not None  # noqa: PT018
    streams, losses = model.trunk(ids), []
    total = F.cross_entropy(model.head(model.norm(streams)).flatten(0, 1).float(), labels.flatten())
    for depth, predictor in enumerate(model.mtp.values(), start=1):
        assert model.rope is not None
        embedded = model.embedding(labels[:, depth - 1 : -1])
        pair = torch.cat((predictor.stream_norm(streams[:, :-1]), predictor.embedding_norm(embedded)), dim=-1)
        rope = model.rope(12 - depth, torch.float64)
        streams = super(type(predictor), predictor).forward(predictor.projection(pair), rope)
        logits = model.head(model.norm(streams)).flatten(0, 1).float()
        losses.append(F.cross_entropy(logits, labels[:, depth:].flatten()))
    expected = torch.autograd.grad(total + 0.3 * sum(losses) / 2, list(model.parameters()))
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-6, rtol=1e-4)
