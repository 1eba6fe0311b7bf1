"""What a config.json is refused for: in one line, with the field, the value and what would do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from suite.models.hf_config import read_hf_config
from suite.parse import SpecError
from tests.unit.hf_samples import LLAMA31, changed, write


def refusal(folder: Path, data: object) -> str:
    """The one line that `data` is refused with."""
    with pytest.raises(SpecError) as caught:
        read_hf_config(write(folder, data))
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 400
    assert "config.json" in message
    return message


@pytest.mark.unit
@pytest.mark.parametrize(
    "family, fields, words",
    [
        (
            "llama",
            {"model_type": "gemma"},
            "model_type: 'gemma' is not supported; supported: gpt2, llama, mistral, qwen2, mixtral",
        ),
        ("llama", {"model_type": ...}, "model_type: missing; give text"),
        ("llama", {"model_type": 3}, "model_type: expected text, got 3"),
        ("llama", {"hidden_size": ...}, "hidden_size: missing; give a whole number"),
        ("llama", {"hidden_size": "48"}, "hidden_size: expected a whole number, got '48'"),
        ("llama", {"hidden_size": 48.0}, "hidden_size: expected a whole number, got 48.0"),
        ("llama", {"hidden_size": True}, "hidden_size: expected a whole number, got True"),
        ("llama", {"num_hidden_layers": 0}, "num_hidden_layers: must be at least 1, got 0"),
        ("llama", {"head_dim": 0}, "head_dim: must be at least 1, got 0"),
        ("llama", {"num_attention_heads": 5}, "hidden(48) % heads(5) != 0"),
        ("llama", {"num_key_value_heads": 4}, "heads(6) % kv_heads(4) != 0"),
        ("llama", {"rms_norm_eps": "nan"}, "rms_norm_eps: expected a number, got 'nan'"),
        ("llama", {"rms_norm_eps": 0}, "rms_norm_eps: 0 must be positive"),
        (
            "llama",
            {"hidden_act": "gelu"},
            "hidden_act: 'gelu' is not modelled (the gate is SiLU); accepted: 'silu' or 'swish'",
        ),
        ("llama", {"attention_bias": True}, "attention_bias: True with mlp_bias False is not modelled"),
        ("llama", {"mlp_bias": True}, "attention_bias: None with mlp_bias True is not modelled"),
        ("llama", {"tie_word_embeddings": "yes"}, "tie_word_embeddings: expected true or false, got 'yes'"),
        ("llama", {"rope_theta": -1}, "rope_theta: -1 must be positive"),
        (
            "llama",
            {"rope_scaling": {"type": "linear", "factor": 2.0}},
            "rope_scaling: rope_type: 'linear' is not modelled",
        ),
        ("llama", {"rope_scaling": {"rope_type": "yarn"}}, "rope_type: 'yarn' is not modelled"),
        ("llama", {"rope_scaling": {"rope_type": "default", "factor": 2.0}}, "rope_scaling: 'factor': unknown field"),
        ("llama", {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "rope_scaling: low_freq_factor: missing"),
        (
            "llama",
            {"rope_scaling": LLAMA31 | {"high_freq_factor": 1.0}},
            "high_freq_factor: 1.0 must be above low_freq_factor(1.0)",
        ),
        ("llama", {"rope_scaling": 2.0}, "rope_scaling: expected an object with keys, got 2.0"),
        ("llama", {"rope_scaling": LLAMA31, "rope_parameters": LLAMA31}, "rope_scaling: {"),
        (
            "llama",
            {"rope_theta": 1e4, "rope_parameters": {"rope_theta": 5e5}},
            "rope_theta: 10000.0 beside rope_parameters.rope_theta 500000.0",
        ),
        (
            "llama",
            {"rope_parameters": {"full_attention": {"rope_theta": 1e4}}},
            "rope_parameters: 'full_attention': unknown field",
        ),
        (
            "llama",
            {"partial_rotary_factor": 0.5},
            "partial_rotary_factor: 0.5 is not modelled (a head that is rotated in part)",
        ),
        (
            "llama",
            {"rope_parameters": {"partial_rotary_factor": 0.5}},
            "rope_parameters: partial_rotary_factor: 0.5 is not modelled",
        ),
        (
            "llama",
            {"num_key_value_head": 2},
            "'num_key_value_head': unknown field, so what it changes is not modelled; did you mean num_key_value_heads",
        ),
        ("llama", {"qk_norm": True}, "'qk_norm': unknown field, so what it changes is not modelled; remove it"),
        ("llama", {"sliding_window": 8}, "'sliding_window': unknown field"),
        (
            "llama",
            {"quantization_config": {"bits": 4}},
            "quantization_config: {'bits': 4} is not modelled (quantized weights)",
        ),
        (
            "llama",
            {"auto_map": {"AutoModel": "mine.Model"}},
            "auto_map: {'AutoModel': 'mine.Model'} is not modelled (code of its own)",
        ),
        (
            "llama",
            {"architectures": ["LlamaForSequenceClassification"]},
            "architectures: ['LlamaForSequenceClassification'] is not modelled",
        ),
        ("llama", {"architectures": "LlamaForCausalLM"}, "architectures: 'LlamaForCausalLM' is not modelled"),
        (
            "llama",
            {"layer_types": ["full_attention", "chunked_attention"]},
            "layer_types: ['full_attention', 'chunked_attention'] is not modelled",
        ),
        ("llama", {"attention_dropout": "0.1"}, "attention_dropout: expected a number, got '0.1'"),
        (
            "gpt2",
            {"activation_function": "relu"},
            "activation_function: 'relu' is not modelled (GELU is its tanh form here)",
        ),
        ("gpt2", {"activation_function": "gelu"}, "activation_function: 'gelu' is not modelled"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx: True is not modelled"),
        ("gpt2", {"reorder_and_upcast_attn": True}, "reorder_and_upcast_attn: True is not modelled"),
        ("gpt2", {"scale_attn_weights": False}, "scale_attn_weights: False is not modelled"),
        ("gpt2", {"add_cross_attention": True}, "add_cross_attention: True is not modelled"),
        ("gpt2", {"n_embd": 50}, "hidden(50) % heads(4) != 0"),
        ("mistral", {"sliding_window": 0}, "sliding_window: must be at least 1, got 0"),
        (
            "mistral",
            {"sliding_window": 32, "layer_types": ["full_attention"] * 2},
            "layer_types: ['full_attention', 'full_attention'] beside sliding_window(32) is not modelled",
        ),
        (
            "mistral",
            {"layer_types": ["sliding_attention"] * 2},
            "layer_types: ['sliding_attention', 'sliding_attention'] is not modelled",
        ),
        ("mistral", {"num_key_value_heads": ...}, "heads(6) % kv_heads(8) != 0"),
        (
            "qwen2",
            {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1},
            "max_window_layers: 1 of num_hidden_layers(2) is not modelled (layers with a window of 8 beside layers",
        ),
        ("qwen2", {"use_mrope": True}, "use_mrope: True is not modelled"),
        (
            "qwen2",
            {"layer_types": ["full_attention", "sliding_attention"]},
            "layer_types: ['full_attention', 'sliding_attention'] is not modelled",
        ),
    ],
)
def test_a_refusal_names_the_field_the_value_and_what_would_do(
    tmp_path: Path, family: str, fields: dict[str, Any], words: str
) -> None:
    assert words in refusal(tmp_path, changed(family, **fields))


@pytest.mark.unit
@pytest.mark.parametrize(
    "data, words", [([], "expected an object with keys, got []"), ("x" * 999, "got 'xxx"), (7, "got 7")]
)
def test_json_that_is_no_object_is_refused(tmp_path: Path, data: object, words: str) -> None:
    assert words in refusal(tmp_path, data)


@pytest.mark.unit
@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe\x00", b"[" * 100_000, b'{"a": ' + b"9" * 5000 + b"}"])
def test_a_file_that_is_not_json_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(SpecError, match=r"^hf-config '.*config\.json': not JSON \(.*\); give a model's config\.json$"):
        read_hf_config(str(path))


@pytest.mark.unit
def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "absent.json"):
        with pytest.raises(SpecError, match=r"cannot be read \(.*\); give a model's config\.json"):
            read_hf_config(str(path))
