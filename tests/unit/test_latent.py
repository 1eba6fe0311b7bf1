"""Latent attention without torch: published sizes, FLOPs by hand, what is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from memory.caches.model import cache_bytes
from suite.case import Case, case_from
from suite.layout import Recompute
from suite.models.decoder import DecoderSpec, Position
from suite.models.latent import latent_of
from suite.models.latent_shape import Latent
from suite.models.ledgers import ledger_of
from suite.models.presets import PRESETS, llama
from suite.operators import OperatorKind
from suite.parse import SpecError, to_mapping
from suite.spec import AttentionKernel, Workload
from suite.tape import FP32, Backend
from tests.unit.refusals import refused

pytestmark = pytest.mark.unit

#: attention as published: arXiv:2412.19437, section 4.2, and arXiv:2405.04434, section 3.1.2
V3 = llama("v3", 61, 7168, 128, 18432, 129280, latent=Latent(512, 64, 128, 128, q_rank=1536))
V2 = llama("v2", 60, 5120, 128, 12288, 102400, latent=Latent(512, 64, 128, 128, q_rank=1536))
SIZES = Latent(kv_rank=24, rope_dim=8, nope_dim=10, v_dim=12)
TINY = llama("tiny", 2, 48, 6, 80, 101, positions=64, latent=SIZES)


def case_of(model: DecoderSpec, **parts: Any) -> Case:
    """A case of a model that is no preset."""
    return case_from({"model": to_mapping(model), **parts})


TINY_MAPPING: dict[str, Any] = {
    "layers": 2, "hidden": 48, "heads": 6, "ffn": 80, "vocab": 101, "max_positions": 64,
    "latent": {"kv_rank": 24, "rope_dim": 8, "nope_dim": 10, "v_dim": 12},
}  # fmt: skip


@pytest.mark.parametrize(("model", "nbytes"), [(V3, 70_272), (V2, 69_120)], ids=["v3", "v2"])
def test_deepseeks_bytes_a_token_follow_from_their_sizes(model: DecoderSpec, nbytes: int) -> None:
    """61 and 60 layers of 512 + 64 elements of 2 bytes, and 8 for a token's place: on every tensor-parallel rank."""
    for tp in (1, 8):
        case = case_of(model, workload={"seq_len": 1}, serving={"new_tokens": 1}, layout={"tp": tp})
        room = 2  # the prompt's token and the answer's
        assert cache_bytes(case, rank=tp - 1) == room * (nbytes + 8)


def test_v3s_attention_has_its_published_count() -> None:
    """187,107,328 parameters a layer: the shapes in the published checkpoint's index, multiplied out."""
    made = ledger_of(V3, Workload(seq_len=8), Recompute(), FP32, Backend.CPU, 1)
    block = made.segments[1].segment
    assert sum(weight.elements for weight in block.weights if weight.name.startswith("attention.")) == 187_107_328


@pytest.mark.parametrize("kernel", list(AttentionKernel))
@pytest.mark.parametrize("q_rank", [0, 20])
def test_flops_are_those_of_the_shapes(kernel: AttentionKernel, q_rank: int) -> None:
    """Two a weight and token forward, four backward; scores are r + n wide, sums v wide: padding is no model FLOP."""
    spec = replace(TINY, latent=replace(SIZES, q_rank=q_rank))
    b, s = 3, 40
    made = ledger_of(spec, Workload(seq_len=s, micro_batch=b, attention=kernel), Recompute(), FP32, Backend.CPU, 1)
    found = dict.fromkeys(OperatorKind, 0.0)
    for segment, count in made.counts.items():
        for operator in segment.operators():
            found[operator.kind] += count * operator.flops.total()
    queries = 48 * q_rank + q_rank * 6 * 18 if q_rank else 48 * 6 * 18
    attention = queries + 48 * 24 + 48 * 8 + 24 * 6 * (10 + 12) + 6 * 12 * 48
    assert found[OperatorKind.MATMUL] == 6 * b * s * (2 * (attention + 3 * 48 * 80) + 48 * 101)
    assert found[OperatorKind.ATTENTION] == 2 * 6 * b * s * s * 6 * (18 + 12)


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_has_a_latent_counterpart(name: str) -> None:
    spec = PRESETS[name]
    found = latent_of(spec)
    assert found.latent is not None
    assert latent_of(found) is found
    assert (found.layers, found.hidden, found.heads, found.ffn) == (spec.layers, spec.hidden, spec.heads, spec.ffn)


def test_deepseek_v2s_proportions_are_its_own() -> None:
    """Of V2's heads as they would be without a latent: 128 of 128."""
    plain = replace(V2, latent=None, head_dim=128)
    assert V2.latent is not None
    assert latent_of(plain).latent == replace(V2.latent, q_rank=0)


def test_what_the_sizes_mean() -> None:
    assert (TINY.head_dim, TINY.kv_heads, TINY.rotary_dim, TINY.q_dim) == (18, 6, 8, 108)


@pytest.mark.parametrize(("settings", "message"), [
    ({"head_dim": 16}, r"model.head_dim: 16 with latent, .* rope_dim\(8\) \+ nope_dim\(10\) = 18 wide"),
    ({"kv_heads": 3}, r"model.kv_heads: 3 with latent, .* heads\(6\)"),
    ({"position": Position.LEARNED}, "model.position: learned with latent"),
    ({"rope_fraction": 0.5}, "model.rope_fraction: 0.5 with latent"),
    ({"bias": True}, "model.bias: True, model.qkv_bias: False with latent"),
    ({"qkv_bias": True}, "model.bias: False, model.qkv_bias: True with latent"),
    ({"window": 16}, "model.window: 16 with latent"),
])  # fmt: skip
def test_a_decoder_refuses_what_a_latent_has_no_place_for(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        replace(TINY, **{"head_dim": 0, "kv_heads": 0} | settings)


def test_a_latent_refuses_values_wider_than_keys() -> None:
    text = refused(Latent, kv_rank=24, rope_dim=8, nope_dim=10, v_dim=19)
    assert text.startswith("model.latent.v_dim: 19 > rope_dim(8) + nope_dim(10)")


@pytest.mark.parametrize(("parts", "message"), [
    ({"layout": {"cp": 2}}, r"model.latent with layout.cp\(2\)"),
    ({"layout": {"tp": 2, "sequence_parallel": False}}, r"layout.sequence_parallel\(False\): each rank's heads give"),
    ({"workload": {"seq_len": 32, "precision": "fp8"}}, r"model.latent with workload.precision\(fp8\)"),
    ({"serving": {"new_tokens": 4}, "cache": {"window": 8}}, r"model.latent with cache.window\(8\)"),
    ({"serving": {"new_tokens": 4}, "cache": {"cache_dtype": "int8", "quant_group": 16}},
     r"cache.quant_group\(16\) with model.latent.kv_rank\(24\), model.latent.rope_dim\(8\)"),
])  # fmt: skip
def test_a_case_refuses_what_is_not_proven(parts: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        case_from({"model": TINY_MAPPING, "workload": {"seq_len": 32}} | parts)


def test_a_form_of_reading_latents_needs_latents() -> None:
    parts = {"workload": {"seq_len": 32}, "serving": {"new_tokens": 4}, "cache": {"latent_form": "plain"}}
    with pytest.raises(SpecError, match=r"cache.latent_form\(plain\) with gpt-1m"):
        case_from({"model": "gpt-1m"} | parts)
