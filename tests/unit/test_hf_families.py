"""Mixtures of experts, BERT and T5 read from a config.json: held to transformers' own classes and to released files."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from reports.counts import parameters_of
from reports.intake.hugging_face import read_hugging_face
from suite.case import case_from
from suite.models import ModelSpec, preset
from suite.models.bert import BertSpec
from suite.models.decoder import DecoderSpec
from suite.models.encoder_decoder import Feed
from suite.models.experts import Balance, Experts, Scoring
from suite.models.hf_config import load_hf_config, read_hf_config
from suite.models.hf_fields import Unfollowed
from suite.models.latent_shape import Latent
from suite.models.t5 import T5Spec
from suite.parse import SpecError
from tests.unit.hf_samples import write

pytestmark = pytest.mark.unit

_SIZES: dict[str, Any] = {"vocab": 97, "hidden": 48, "ffn": 80, "heads": 6, "max_positions": 64}
_LATENT = Latent(kv_rank=16, rope_dim=4, nope_dim=8, v_dim=8, q_rank=12)
OURS: dict[str, ModelSpec] = {
    "mixtral": DecoderSpec(
        **_SIZES, layers=2, kv_heads=2, rope_theta=1e6, tied=True,
        experts=Experts(4, 2, 80, balance=Balance.AUXILIARY, rate=0.02),
    ),
    "deepseek_v2": DecoderSpec(
        **_SIZES, layers=3, norm_eps=1e-6, latent=_LATENT, dense_layers=1,
        experts=Experts(
            8, 2, 32, shared=2, normalized=False, scale=16.0, groups=4, top_groups=2, balance=Balance.AUXILIARY
        ),
    ),
    "deepseek_v3": DecoderSpec(
        **_SIZES, layers=3, norm_eps=1e-6, latent=_LATENT, dense_layers=2,
        experts=Experts(
            8, 3, 32, shared=1, scoring=Scoring.SIGMOID, scale=2.5, groups=4, top_groups=2, balance=Balance.BIAS
        ),
    ),
    "bert": BertSpec(**_SIZES, layers=2, segments=3),
    "t5": T5Spec(
        layers=5, encoder_layers=3, hidden=48, heads=6, head_dim=16, ffn=80, vocab=200, feed=Feed.GATED_GELU,
        buckets=16, max_distance=40,
    ),
}  # fmt: skip
#: fields without which there is no model
REQUIRED = {
    "bert": {
        "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size",
        "max_position_embeddings",
    },
    "t5": {"vocab_size", "d_model", "d_ff", "num_layers", "num_heads"},
}  # fmt: skip
_DECODER = REQUIRED["bert"]
_DEEPSEEK = _DECODER | {"n_routed_experts", "num_experts_per_tok", "moe_intermediate_size"}
REQUIRED |= {"mixtral": _DECODER, "deepseek_v2": _DEEPSEEK, "deepseek_v3": _DEEPSEEK}


def transformers_config(family: str) -> Any:
    """The same model in transformers' own class."""
    import transformers

    if family == "t5":
        return transformers.T5Config(
            vocab_size=200, d_model=48, d_kv=16, d_ff=80, num_layers=3, num_decoder_layers=2, num_heads=6,
            feed_forward_proj="gated-gelu", relative_attention_num_buckets=16, relative_attention_max_distance=40,
            dropout_rate=0.0,
        )  # fmt: skip
    sizes: dict[str, Any] = {
        "vocab_size": 97, "hidden_size": 48, "intermediate_size": 80, "num_attention_heads": 6,
        "max_position_embeddings": 64, "num_hidden_layers": OURS[family].layers,
    }  # fmt: skip
    if family == "bert":
        return transformers.BertConfig(
            **sizes, type_vocab_size=3, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0
        )
    if family == "mixtral":
        return transformers.MixtralConfig(
            **sizes, num_key_value_heads=2, num_local_experts=4, num_experts_per_tok=2, router_aux_loss_coef=0.02,
            output_router_logits=True, tie_word_embeddings=True,
        )  # fmt: skip
    sizes |= {
        "num_key_value_heads": 6, "kv_lora_rank": 16, "q_lora_rank": 12, "qk_rope_head_dim": 4, "qk_nope_head_dim": 8,
        "v_head_dim": 8, "n_routed_experts": 8, "moe_intermediate_size": 32, "n_group": 4, "topk_group": 2,
    }  # fmt: skip
    if family == "deepseek_v2":
        return transformers.DeepseekV2Config(
            **sizes, num_experts_per_tok=2, n_shared_experts=2, routed_scaling_factor=16.0, first_k_dense_replace=1,
            topk_method="group_limited_greedy",
        )  # fmt: skip
    return transformers.DeepseekV3Config(**sizes, num_experts_per_tok=3, first_k_dense_replace=2)


@pytest.mark.parametrize("family", OURS)
def test_transformers_own_files_are_read(tmp_path: Path, family: str) -> None:
    config = transformers_config(family)
    for use_diff in (True, False):
        config.to_json_file(tmp_path / "config.json", use_diff=use_diff)
        spec = read_hf_config(str(tmp_path / "config.json"))
        assert replace(spec, name="") == replace(OURS[family], name="")  # type: ignore[type-var]


@pytest.mark.parametrize("family", OURS)
def test_the_ledger_counts_the_parameters_of_transformers_model(family: str) -> None:
    import torch
    import transformers

    config = transformers_config(family)
    made = {"bert": transformers.BertForPreTraining, "t5": transformers.T5ForConditionalGeneration}
    with torch.device("meta"):
        model = made[family](config) if family in made else transformers.AutoModelForCausalLM.from_config(config)
    assert parameters_of(OURS[family]) == sum(item.numel() for item in model.parameters())


@pytest.mark.parametrize("family", OURS)
def test_a_left_out_field_means_what_it_means_in_transformers(tmp_path: Path, family: str) -> None:
    import transformers

    config = transformers_config(family)
    if family == "mixtral":  # the classes' own numbers of heads and groups fit
        config.num_attention_heads, config.hidden_size, config.head_dim = 32, 64, 2
    if family.startswith("deepseek"):
        config.num_attention_heads = config.num_key_value_heads = 128 if family == "deepseek_v3" else 32
        config.hidden_size, config.n_routed_experts, config.qk_nope_head_dim = 128, 16, 128
        config.num_hidden_layers, config.topk_method = 5, "greedy" if family == "deepseek_v2" else "noaux_tc"
    full = json.loads(config.to_json_string())
    for name in set(full) - {"model_type"}:
        data = {key: value for key, value in full.items() if key != name}
        if name in REQUIRED[family]:
            with pytest.raises(SpecError, match=f": {name}: missing; give a whole number"):
                read_hf_config(write(tmp_path, data))
            continue
        read = read_hf_config(write(tmp_path, data))
        completed = transformers.AutoConfig.for_model(**data).to_dict()
        assert read == read_hf_config(write(tmp_path, completed)), name


_YARN = {
    "beta_fast": 32, "beta_slow": 1, "factor": 40, "mscale": 1.0, "mscale_all_dim": 1.0,
    "original_max_position_embeddings": 4096, "type": "yarn",
}  # fmt: skip
_V2 = {
    "architectures": ["DeepseekV2ForCausalLM"], "attention_bias": False, "attention_dropout": 0.0,
    "auto_map": {"AutoConfig": "configuration_deepseek.DeepseekV2Config"}, "aux_loss_alpha": 0.001, "ep_size": 1,
    "first_k_dense_replace": 1, "hidden_act": "silu", "hidden_size": 5120, "intermediate_size": 12288,
    "kv_lora_rank": 512, "max_position_embeddings": 163840, "model_type": "deepseek_v2", "moe_intermediate_size": 1536,
    "moe_layer_freq": 1, "n_group": 8, "n_routed_experts": 160, "n_shared_experts": 2, "norm_topk_prob": False,
    "num_attention_heads": 128, "num_experts_per_tok": 6, "num_hidden_layers": 60, "num_key_value_heads": 128,
    "pretraining_tp": 1, "q_lora_rank": 1536, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "rms_norm_eps": 1e-06,
    "rope_scaling": _YARN, "rope_theta": 10000, "routed_scaling_factor": 16.0, "scoring_func": "softmax",
    "seq_aux": True, "tie_word_embeddings": False, "topk_group": 3, "topk_method": "group_limited_greedy",
    "torch_dtype": "bfloat16", "v_head_dim": 128, "vocab_size": 102400,
}  # fmt: skip
#: as released: mistralai/Mixtral-8x7B-v0.1, deepseek-ai/DeepSeek-V2, V2-Lite, V3, google-bert/bert-base-uncased,
#: google-t5/t5-small, google/t5-v1_1-base
RELEASED: dict[str, dict[str, Any]] = {
    "mixtral-8x7b": {
        "architectures": ["MixtralForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 1, "eos_token_id": 2,
        "hidden_act": "silu", "hidden_size": 4096, "initializer_range": 0.02, "intermediate_size": 14336,
        "max_position_embeddings": 32768, "model_type": "mixtral", "num_attention_heads": 32, "num_experts_per_tok": 2,
        "num_hidden_layers": 32, "num_key_value_heads": 8, "num_local_experts": 8, "output_router_logits": False,
        "rms_norm_eps": 1e-05, "rope_theta": 1000000.0, "router_aux_loss_coef": 0.02, "sliding_window": None,
        "tie_word_embeddings": False, "torch_dtype": "bfloat16", "use_cache": True, "vocab_size": 32000,
    },
    "deepseek-v2": _V2,
    "deepseek-v2-lite": _V2 | {
        "hidden_size": 2048, "intermediate_size": 10944, "moe_intermediate_size": 1408, "n_group": 1,
        "n_routed_experts": 64, "num_attention_heads": 16, "num_hidden_layers": 27, "num_key_value_heads": 16,
        "q_lora_rank": None, "routed_scaling_factor": 1.0, "topk_group": 1, "topk_method": "greedy",
    },
    "deepseek-v3": _V2 | {
        "architectures": ["DeepseekV3ForCausalLM"], "model_type": "deepseek_v3", "first_k_dense_replace": 3,
        "hidden_size": 7168, "intermediate_size": 18432, "moe_intermediate_size": 2048, "n_routed_experts": 256,
        "n_shared_experts": 1, "norm_topk_prob": True, "num_experts_per_tok": 8, "num_hidden_layers": 61,
        "num_nextn_predict_layers": 1, "routed_scaling_factor": 2.5, "scoring_func": "sigmoid", "topk_group": 4,
        "topk_method": "noaux_tc", "vocab_size": 129280,
        "quantization_config": {"activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8"},
    },
    "bert-base": {
        "architectures": ["BertForMaskedLM"], "attention_probs_dropout_prob": 0.1, "gradient_checkpointing": False,
        "hidden_act": "gelu", "hidden_dropout_prob": 0.1, "hidden_size": 768, "initializer_range": 0.02,
        "intermediate_size": 3072, "layer_norm_eps": 1e-12, "max_position_embeddings": 512, "model_type": "bert",
        "num_attention_heads": 12, "num_hidden_layers": 12, "pad_token_id": 0, "position_embedding_type": "absolute",
        "transformers_version": "4.6.0.dev0", "type_vocab_size": 2, "use_cache": True, "vocab_size": 30522,
    },
    "t5-small": {
        "architectures": ["T5ForConditionalGeneration"], "d_ff": 2048, "d_kv": 64, "d_model": 512,
        "decoder_start_token_id": 0, "dropout_rate": 0.1, "eos_token_id": 1, "initializer_factor": 1.0,
        "is_encoder_decoder": True, "layer_norm_epsilon": 1e-06, "model_type": "t5", "n_positions": 512,
        "num_heads": 8, "num_layers": 6, "output_past": True, "pad_token_id": 0, "relative_attention_num_buckets": 32,
        "vocab_size": 32128,
    },
    "t5-v1.1-base": {
        "architectures": ["T5ForConditionalGeneration"], "d_ff": 2048, "d_kv": 64, "d_model": 768,
        "decoder_start_token_id": 0, "dropout_rate": 0.1, "eos_token_id": 1, "feed_forward_proj": "gated-gelu",
        "initializer_factor": 1.0, "is_encoder_decoder": True, "layer_norm_epsilon": 1e-06, "model_type": "t5",
        "num_decoder_layers": 12, "num_heads": 12, "num_layers": 12, "output_past": True, "pad_token_id": 0,
        "relative_attention_num_buckets": 32, "tie_word_embeddings": False, "vocab_size": 32128,
    },
}  # fmt: skip


@pytest.mark.parametrize("name", RELEASED)
def test_released_files_give_the_presets(name: str, tmp_path: Path) -> None:
    found = load_hf_config(write(tmp_path, RELEASED[name]), Unfollowed()).spec
    assert replace(found, name=name) == preset(name)  # type: ignore[type-var]


def test_what_is_not_followed_is_listed(tmp_path: Path) -> None:
    def listed(name: str, **fields: Any) -> list[str]:
        taken = read_hugging_face(write(tmp_path, RELEASED[name] | fields))
        assert case_from(taken.case).model.name != ""
        return [line.split(":")[0].split(" ")[0] for line in taken.unmodelled]

    assert listed("mixtral-8x7b") == ["output_router_logits"]
    assert sorted(listed("deepseek-v3")) == ["num_nextn_predict_layers", "quantization_config", "rope_scaling"]
    assert listed("deepseek-v2", new_key=3) == ["output_router_logits", "rope_scaling", "'new_key'"]
    assert listed("bert-base") == ["hidden_dropout_prob", "attention_probs_dropout_prob", "architectures"]
    assert listed("t5-small") == ["dropout_rate"]


@pytest.mark.parametrize(
    ("name", "fields", "words"),
    [
        ("mixtral-8x7b", {"num_experts_per_tok": 9}, "model.experts.top_k: 9 > 8 experts"),
        ("mixtral-8x7b", {"router_jitter_noise": 0.1}, "router_jitter_noise: 0.1 is not modelled (noise"),
        ("deepseek-v2", {"scoring_func": "sigmoid"}, "scoring_func: 'sigmoid' is not modelled"),
        ("deepseek-v2", {"topk_method": "noaux_tc"}, "topk_method: 'noaux_tc' is not modelled; accepted: greedy"),
        ("deepseek-v3", {"n_group": 7}, "model.experts.groups: count(256) % groups(7) != 0"),
        ("deepseek-v3", {"quantization_config": {"quant_method": "awq"}}, "quantized weights"),
        ("deepseek-v3", {"num_key_value_heads": 8}, "num_key_value_heads: 8 beside num_attention_heads(128)"),
        ("deepseek-v3", {"moe_layer_freq": 2}, "moe_layer_freq: 2 is not modelled"),
        ("deepseek-v3", {"first_k_dense_replace": 61}, "model.dense_layers: 61 of layers(61)"),
        ("bert-base", {"architectures": ["BertForSequenceClassification"]}, "another head"),
        ("bert-base", {"position_embedding_type": "relative_key"}, "relative positions"),
        ("bert-base", {"num_attention_heads": 7}, "hidden(768) % heads(7) != 0"),
        ("t5-small", {"is_encoder_decoder": False}, "is_encoder_decoder: False is not modelled"),
        ("t5-small", {"feed_forward_proj": "gated-silu"}, "feed_forward_proj: 'gated-silu' is not modelled"),
        ("t5-small", {"num_layers": 0}, "num_layers: must be at least 1, got 0"),
    ],
)
def test_what_would_make_memory_or_time_wrong_is_refused(
    name: str, fields: dict[str, Any], words: str, tmp_path: Path
) -> None:
    with pytest.raises(SpecError) as caught:
        read_hugging_face(write(tmp_path, RELEASED[name] | fields))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
