"""`import config.json --from hf`: every family read, what is not followed listed, what would be wrong refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from reports.intake.hugging_face import read_hugging_face, recognises_hugging_face
from suite.case import case_from
from suite.models.hf_config import read_hf_config
from suite.parse import SpecError
from tests.unit.hf_samples import FILES, changed, write

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("family", FILES)
def test_every_family_becomes_the_model_that_hf_config_gives(family: str, tmp_path: Path) -> None:
    path = write(tmp_path, FILES[family])
    taken = read_hugging_face(path)
    assert case_from(taken.case).model == read_hf_config(path)
    assert taken.unmodelled == ()
    assert recognises_hugging_face(Path(path).read_text())


@pytest.mark.parametrize(
    "family, fields, line",
    [
        ("llama", {"mup_scale": 2.0}, "'mup_scale' 2.0: not known, so what it changes is not modelled"),
        ("llama", {"hidden_act": "gelu"}, "hidden_act 'gelu': the gate is SiLU; sizes and work are the same"),
        ("gpt2", {"activation_function": "gelu"}, "activation_function 'gelu': GELU is its tanh form here"),
        ("gpt2", {"scale_attn_weights": False}, "scale_attn_weights False: scores are divided"),
        ("gpt2", {"resid_pdrop": 0.1}, "resid_pdrop 0.1: training here has no dropout"),
        (
            "qwen2",
            {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "beta_fast": 32}},
            "rope_scaling {'rope_type': 'yarn', 'factor': 4.0, 'beta_fast': 32}: rotation has the default frequencies",
        ),
    ],
)
def test_what_is_not_followed_is_listed(family: str, fields: dict[str, Any], line: str, tmp_path: Path) -> None:
    plain, path = read_hf_config(write(tmp_path, FILES[family])), write(tmp_path, changed(family, **fields))
    taken = read_hugging_face(path)
    assert [listed.startswith(line) for listed in taken.unmodelled] == [True]
    assert case_from(taken.case).model == plain


def test_what_is_left_out_and_what_changes_nothing_is_listed(tmp_path: Path) -> None:
    fields = changed("qwen2", num_attention_heads=32, hidden_size=64, num_key_value_heads=..., torch_dtype="bfloat16")
    taken = read_hugging_face(write(tmp_path, fields))
    assert "num_key_value_heads 32: left out, transformers' own default" in taken.assumed
    assert taken.ignored == ("torch_dtype 'bfloat16'",)


def test_a_model_shorter_than_the_usual_sequence_gets_its_longest(tmp_path: Path) -> None:
    short, long = (read_hugging_face(write(tmp_path, changed("llama", max_position_embeddings=n))) for n in (64, 4096))
    assert case_from(short.case).workload.seq_len == 64
    assert "workload.seq_len 64: the model's longest, below the usual 1024" in short.assumed
    assert "workload" not in long.case


@pytest.mark.parametrize(
    "family, fields, words",
    [
        ("llama", {"model_type": "gemma"}, "model_type: 'gemma' is not supported"),
        ("llama", {"hidden_act": "relu"}, "hidden_act: 'relu' is not modelled"),
        ("llama", {"attention_bias": True}, "biases in a part of the linears"),
        ("gpt2", {"reorder_and_upcast_attn": True}, "scores computed in fp32"),
        ("llama", {"quantization_config": {"bits": 4}}, "quantized weights"),
        ("llama", {"rope_scaling": {"rope_type": "su"}}, "rope_type: 'su' is not modelled"),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}, "layers without"),
        ("llama", {"hidden_size": -3}, "hidden_size: must be at least 1"),
    ],
)
def test_what_would_make_memory_or_time_wrong_is_refused(
    family: str, fields: dict[str, Any], words: str, tmp_path: Path
) -> None:
    with pytest.raises(SpecError) as caught:
        read_hugging_face(write(tmp_path, changed(family, **fields)))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_hf_config_itself_refuses_what_an_import_lists(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="unknown field"):
        read_hf_config(write(tmp_path, changed("llama", mup_scale=2.0)))
