"""A model in torchtitan's terms: the flavor of its llama3 that it is, or its shape written out. Facts of 0.3.0."""

from __future__ import annotations

from dataclasses import replace

from reports.handover.python_call import Call
from suite.models.decoder import Activation, DecoderSpec, Norm, Position, RopeScaling
from suite.models.presets import PRESETS, llama
from suite.parse import require

#: torchtitan/models/llama3/__init__.py: the flavors that are a shape here. Its 1B and 3B rotate with a factor of 8, the
#: released Llama 3.2 with 32, so those two are written out.
FLAVORS: dict[str, DecoderSpec] = {
    "debugmodel": llama(
        "debugmodel", 6, 256, 16, 768, 2048, positions=131072, theta=5e5, rope_scaling=RopeScaling(8.0, 1.0, 4.0, 8192)
    ),
    "8B": PRESETS["llama3-8b"],
    "70B": PRESETS["llama3-70b"],
    "405B": PRESETS["llama3-405b"],
}
#: what the written-out shape imports from torchtitan, and of models.common.config_utils
SHAPE_IMPORTS = {
    "models.common": ["ComplexRoPE", "Embedding", "Linear", "RMSNorm"],
    "models.llama3.model": ["Llama3Model", "Llama3TransformerBlock"],
}
HELPERS = ["get_attention_config", "make_ffn_config", "make_gqa_config"]


def check_form(model: DecoderSpec) -> None:
    """SpecError where torchtitan has no model of this form: its dense decoder rotates, and has RMSNorm, SwiGLU and no
    biases; every head is rotated whole. (No case here trains within a window, so one has no effect.)"""
    odd = [
        *(["layernorm"] if model.norm is not Norm.RMSNORM else []),
        *([str(model.activation)] if model.activation is not Activation.SWIGLU else []),
        *([f"{model.position} positions"] if model.position is not Position.ROPE else []),
        *(["biases"] if model.bias or model.qkv_bias else []),
        *([f"rope_fraction({model.rope_fraction:g})"] if model.rope_fraction != 1 else []),
        *(["experts"] if model.experts is not None else []),
        *(["latent attention"] if model.latent is not None else []),
    ]
    require(
        not odd,
        f"model: {model.name} has {', '.join(odd)}; torchtitan's dense decoder is LLaMA's (rope, RMSNorm, SwiGLU,"
        " no biases): take such a model, or another target",
    )


def flavor_of(model: DecoderSpec) -> str | None:
    """The llama3 flavor that is this model, whatever it is called; None where none is."""
    plain = replace(model, dropout=0.0, window=None)
    return next((name for name, spec in FLAVORS.items() if replace(plain, name=spec.name) == spec), None)


def shape_lines(model: DecoderSpec) -> list[str]:
    """Functions for the file: a norm, a block, and the whole model, as torchtitan's Llama3Model.Config."""
    norm = f"normalized_shape={model.hidden}, eps={model.norm_eps!r}"
    embedding = Call(
        "Embedding.Config",
        {
            "num_embeddings": f"{model.vocab}",
            "embedding_dim": f"{model.hidden}",
            # tied: the weight is the head's, which is initialised there
            "param_init": '{"weight": skip_param_init}' if model.tied else "INIT",
        },
    )
    head = Call(
        "Linear.Config", {"in_features": f"{model.hidden}", "out_features": f"{model.vocab}", "param_init": "INIT"}
    )
    whole = Call(
        "Llama3Model.Config",
        {
            "dim": f"{model.hidden}",
            "vocab_size": f"{model.vocab}",
            "enable_weight_tying": f"{model.tied}",
            "tok_embeddings": embedding,
            "norm": "norm()",
            "lm_head": head,
            "layers": f"[block() for _ in range({model.layers})]",
        },
    )
    return [
        "",
        'INIT = {"weight": partial(nn.init.trunc_normal_, std=0.02)}',
        *("", "", "def norm() -> RMSNorm.Config:", '    ones = {"weight": nn.init.ones_}'),
        f"    return RMSNorm.Config({norm}, param_init=ones)",
        *("", "", "def block() -> Llama3TransformerBlock.Config:", f"    return {_block(model).source(4, 7)}"),
        *("", "", "def model() -> Llama3Model.Config:", f"    return {whole.source(4, 7)}"),
    ]


def _block(model: DecoderSpec) -> Call:
    attention: dict[str, str | Call] = {
        "dim": f"{model.hidden}",
        "n_heads": f"{model.heads}",
        "n_kv_heads": f"{model.kv_heads}",
        "head_dim": f"{model.head_dim}",
        "fuse_qkv": "True",
        "wqkv_param_init": "INIT",
        "wo_param_init": "INIT",
        "inner_attention": 'get_attention_config("flex")',
        "rope": _rope(model),
    }
    mlp = {
        "dim": f"{model.hidden}",
        "hidden_dim": f"{model.ffn}",
        "w1_param_init": "INIT",
        "w2w3_param_init": "INIT",
    }
    return Call(
        "Llama3TransformerBlock.Config",
        {
            "attention_norm": "norm()",
            "ffn_norm": "norm()",
            "attention": Call("make_gqa_config", attention),
            "feed_forward": Call("make_ffn_config", mlp),
        },
    )


def _rope(model: DecoderSpec) -> Call:
    """Pairs of neighbouring channels are rotated, as complex numbers."""
    words = {"dim": f"{model.head_dim}", "max_seq_len": f"{model.max_positions}", "theta": f"{model.rope_theta!r}"}
    if (scaling := model.rope_scaling) is not None:
        words |= {
            "scaling": '"llama"',
            "scaling_factor": f"{scaling.factor!r}",
            "low_freq_factor": f"{scaling.low_freq_factor!r}",
            "high_freq_factor": f"{scaling.high_freq_factor!r}",
            "original_max_position_embeddings": f"{scaling.original_max_positions}",
        }
    return Call("ComplexRoPE.Config", words)
