"""config.json -> specification: the fields one by one, and what transformers' own configurations mean."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from suite.layout import Recompute
from suite.models import preset
from suite.models.decoder import DecoderSpec, RopeScaling
from suite.models.hf_config import load_hf_config, read_hf_config
from suite.models.ledgers import ledger_of
from suite.models.presets import gpt, llama
from suite.parse import SpecError
from suite.spec import Workload
from suite.tape import FP32, Backend
from tests.unit.hf_samples import FILES, LLAMA31, changed, write

os.environ["HF_HUB_OFFLINE"] = "1"


def parameters(spec: DecoderSpec) -> int:
    """The ledger's count."""
    return ledger_of(spec, Workload(seq_len=8), Recompute(), FP32, Backend.CPU, 1).parameters


# --- what is read -------------------------------------------------------------------------------------------------


@pytest.mark.unit
def test_the_hand_written_files_give_these_specifications(tmp_path: Path) -> None:
    form = llama("", 2, 48, 6, 80, 97, positions=64)
    expected = {
        "gpt2": replace(gpt("", 2, 48, 4, 97, 64), name="gpt2-l2-h48"),
        "llama": replace(form, name="llama-l2-h48"),
        "mistral": replace(form, kv_heads=2, norm_eps=1e-6, name="mistral-l2-h48"),
        "qwen2": replace(form, kv_heads=2, norm_eps=1e-6, qkv_bias=True, name="qwen2-l2-h48"),
    }
    assert {family: read_hf_config(write(tmp_path, data)) for family, data in FILES.items()} == expected


@pytest.mark.unit
@pytest.mark.parametrize(
    "family, fields, spec",
    [
        ("gpt2", {"n_inner": 100}, {"ffn": 100}),
        ("gpt2", {"tie_word_embeddings": False}, {"tied": False}),
        ("gpt2", {"layer_norm_epsilon": 1e-6, "activation_function": "gelu_pytorch_tanh"}, {"norm_eps": 1e-6}),
        ("llama", {"num_key_value_heads": 2}, {"kv_heads": 2}),
        ("llama", {"num_key_value_heads": None}, {"kv_heads": 6}),
        ("llama", {"head_dim": 16}, {"head_dim": 16}),
        ("llama", {"tie_word_embeddings": True}, {"tied": True}),
        ("llama", {"rms_norm_eps": ...}, {"norm_eps": 1e-6}),
        ("llama", {"attention_bias": True, "mlp_bias": True}, {"bias": True}),
        ("llama", {"rope_theta": 500000}, {"rope_theta": 5e5}),
        (
            "llama",
            {"rope_theta": 5e5, "rope_scaling": LLAMA31},
            {"rope_theta": 5e5, "rope_scaling": RopeScaling(8.0, 1.0, 4.0, 8192)},
        ),
        (
            "llama",
            {"rope_parameters": LLAMA31 | {"rope_theta": 5e5}},
            {"rope_theta": 5e5, "rope_scaling": RopeScaling(8.0, 1.0, 4.0, 8192)},
        ),
        ("llama", {"rope_scaling": {"type": "default"}}, {}),
        ("mistral", {"num_key_value_heads": None}, {"kv_heads": 6}),
        ("mistral", {"num_key_value_heads": ..., "num_attention_heads": 8}, {"heads": 8, "head_dim": 6, "kv_heads": 8}),
        ("mistral", {"sliding_window": 64}, {}),
        ("mistral", {"sliding_window": 63}, {"window": 63}),
        ("mistral", {"sliding_window": 8, "layer_types": ["sliding_attention"] * 2}, {"window": 8}),
        (
            "mistral",
            {"sliding_window": ..., "max_position_embeddings": 32768},
            {"window": 4096, "max_positions": 32768},
        ),
        ("mistral", {"sliding_window": ...}, {}),
        ("qwen2", {"use_sliding_window": False, "sliding_window": 8}, {}),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 2}, {}),
        ("qwen2", {"use_sliding_window": True, "sliding_window": None, "max_window_layers": 0}, {}),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 0}, {"window": 8}),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 64, "max_window_layers": 1}, {}),
        ("qwen2", {"layer_types": ["full_attention"] * 2}, {}),
        ("qwen2", {"_name_or_path": "Qwen/Qwen2-tiny"}, {"name": "Qwen/Qwen2-tiny"}),
        ("qwen2", {"name_or_path": "/srv/models/mine\n"}, {"name": "mine"}),
    ],
)
def test_a_field_is_mapped(tmp_path: Path, family: str, fields: dict[str, Any], spec: dict[str, Any]) -> None:
    expected = replace(read_hf_config(write(tmp_path, FILES[family])), **spec)
    assert read_hf_config(write(tmp_path, changed(family, **fields))) == expected


@pytest.mark.unit
def test_dropout_is_left_out_and_said(tmp_path: Path) -> None:
    read = load_hf_config(write(tmp_path, changed("gpt2", resid_pdrop=0.1, embd_pdrop=0.0)))
    assert read.spec == read_hf_config(write(tmp_path, FILES["gpt2"]))
    assert read.notices == ("resid_pdrop 0.1: training here has no dropout",)


@pytest.mark.unit
def test_published_files_give_the_presets(tmp_path: Path) -> None:
    files: dict[str, dict[str, Any]] = {
        "llama-7b": {
            "architectures": ["LlamaForCausalLM"], "bos_token_id": 1, "eos_token_id": 2, "hidden_act": "silu",
            "hidden_size": 4096, "initializer_range": 0.02, "intermediate_size": 11008,
            "max_position_embeddings": 2048, "model_type": "llama", "num_attention_heads": 32,
            "num_hidden_layers": 32, "num_key_value_heads": 32, "pad_token_id": 0, "pretraining_tp": 1,
            "rms_norm_eps": 1e-06, "rope_scaling": None, "tie_word_embeddings": False, "torch_dtype": "float16",
            "transformers_version": "4.31.0", "use_cache": True, "vocab_size": 32000,
        },
        "llama3-405b": {
            "architectures": ["LlamaForCausalLM"], "attention_bias": False, "attention_dropout": 0.0,
            "bos_token_id": 128000, "eos_token_id": [128001, 128008], "hidden_act": "silu", "hidden_size": 16384,
            "initializer_range": 0.02, "intermediate_size": 53248, "max_position_embeddings": 131072,
            "mlp_bias": False, "model_type": "llama", "num_attention_heads": 128, "num_hidden_layers": 126,
            "num_key_value_heads": 8, "pretraining_tp": 1, "rms_norm_eps": 1e-05, "rope_theta": 500000.0,
            "rope_scaling": LLAMA31, "tie_word_embeddings": False, "torch_dtype": "bfloat16", "vocab_size": 128256,
        },
        "mistral-7b": {
            "architectures": ["MistralForCausalLM"], "bos_token_id": 1, "eos_token_id": 2, "hidden_act": "silu",
            "hidden_size": 4096, "initializer_range": 0.02, "intermediate_size": 14336,
            "max_position_embeddings": 32768, "model_type": "mistral", "num_attention_heads": 32,
            "num_hidden_layers": 32, "num_key_value_heads": 8, "rms_norm_eps": 1e-05, "rope_theta": 10000.0,
            "sliding_window": 4096, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
            "transformers_version": "4.34.0.dev0", "use_cache": True, "vocab_size": 32000,
        },
        "gpt2": {
            "activation_function": "gelu_new", "architectures": ["GPT2LMHeadModel"], "attn_pdrop": 0.1,
            "bos_token_id": 50256, "embd_pdrop": 0.1, "eos_token_id": 50256, "initializer_range": 0.02,
            "layer_norm_epsilon": 1e-05, "model_type": "gpt2", "n_ctx": 1024, "n_embd": 768, "n_head": 12,
            "n_layer": 12, "n_positions": 1024, "resid_pdrop": 0.1, "summary_activation": None,
            "summary_first_dropout": 0.1, "summary_proj_to_labels": True, "summary_type": "cls_index",
            "summary_use_proj": True, "vocab_size": 50257,
            "task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50}},
        },
    }  # fmt: skip
    for name, data in files.items():
        assert replace(read_hf_config(write(tmp_path, data)), name=name) == preset(name)


# --- transformers' own configurations -----------------------------------------------------------------------------

OURS = {
    "gpt2": gpt("", 2, 48, 4, 97, 64),
    "llama": llama("", 2, 48, 6, 80, 97, kv_heads=2, positions=64, theta=5e5, eps=1e-5),
    "mistral": llama("", 2, 48, 6, 80, 97, kv_heads=2, positions=64, eps=1e-6, window=16),
    "qwen2": replace(llama("", 2, 48, 6, 80, 97, kv_heads=3, positions=64, theta=1e6, tied=True), qkv_bias=True),
}  # fmt: skip


def transformers_config(family: str) -> Any:
    """The same model in transformers' configuration class."""
    import transformers

    if family == "gpt2":
        return transformers.GPT2Config(vocab_size=97, n_positions=64, n_embd=48, n_layer=2, n_head=4)
    spec = OURS[family]
    sizes = {
        "vocab_size": 97, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 2, "num_attention_heads": 6,
        "num_key_value_heads": spec.kv_heads, "max_position_embeddings": 64, "rms_norm_eps": spec.norm_eps,
        "tie_word_embeddings": spec.tied, "rope_parameters": {"rope_type": "default", "rope_theta": spec.rope_theta},
    }  # fmt: skip
    if family == "mistral":
        return transformers.MistralConfig(**sizes, sliding_window=16)
    return {"llama": transformers.LlamaConfig, "qwen2": transformers.Qwen2Config}[family](**sizes)


@pytest.mark.unit
@pytest.mark.parametrize("family", FILES)
def test_transformers_own_files_are_read(tmp_path: Path, family: str) -> None:
    config = transformers_config(family)
    for use_diff in (True, False):
        config.to_json_file(tmp_path / "config.json", use_diff=use_diff)
        spec = read_hf_config(str(tmp_path / "config.json"))
        assert replace(spec, name="") == replace(OURS[family], name="")
    assert replace(read_hf_config(write(tmp_path, config.to_dict())), name="") == replace(OURS[family], name="")


@pytest.mark.unit
@pytest.mark.parametrize("family", FILES)
def test_the_ledger_counts_the_parameters_of_transformers_model(tmp_path: Path, family: str) -> None:
    import torch
    import transformers

    config = transformers_config(family)
    config.to_json_file(tmp_path / "config.json")
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    spec = read_hf_config(str(tmp_path / "config.json"))
    assert parameters(spec) == sum(item.numel() for item in model.parameters())


#: without these there is no model
SIZES = {
    "gpt2": {"vocab_size", "n_positions", "n_embd", "n_layer", "n_head"},
    "llama": {
        "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
        "max_position_embeddings",
    },
}  # fmt: skip


@pytest.mark.unit
@pytest.mark.parametrize("family", FILES)
def test_a_left_out_field_means_what_it_means_in_transformers(tmp_path: Path, family: str) -> None:
    """Every field is taken out of the file, one at a time; ours is read beside what transformers makes of the rest."""
    import transformers

    sizes = SIZES["gpt2" if family == "gpt2" else "llama"]
    config = transformers_config(family)
    if family != "gpt2":
        config.num_attention_heads = config.num_key_value_heads = 32  # the classes' own number of key-value heads fits
        config.hidden_size, config.head_dim = 64, 2
    full = json.loads(config.to_json_string())
    for name in set(full) - {"model_type"}:
        data = {key: value for key, value in full.items() if key != name}
        if name in sizes:
            with pytest.raises(SpecError, match=f": {name}: missing; give a whole number"):
                read_hf_config(write(tmp_path, data))
            continue
        read = read_hf_config(write(tmp_path, data))
        completed = transformers.AutoConfig.for_model(**data).to_dict()
        assert read == read_hf_config(write(tmp_path, completed)), name


@pytest.mark.unit
def test_reading_needs_neither_torch_nor_transformers(tmp_path: Path) -> None:
    path = write(tmp_path, FILES["llama"])
    code = (
        f"import sys; from suite.models.hf_config import read_hf_config; read_hf_config({path!r});"
        "sys.exit(bool({'torch', 'transformers'} & set(sys.modules)))"
    )
    root = Path(__file__).resolve().parents[2]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0
