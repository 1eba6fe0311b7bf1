"""The model's shape as Megatron-LM's arguments."""

from __future__ import annotations

from reports.handover.megatron.part import Part, given
from suite.case import Case
from suite.models.decoder import Activation, DecoderSpec, Mixing, Norm, Position, RopeScaling
from suite.models.latent_shape import Latent
from suite.parse import require

#: rows that the vocabulary of a tensor-parallel rank is padded to a multiple of, by default; and the fewest that keep
#: its products' rows on 16 bytes in 16 bits
PADDING, LEAST_PADDING = 128, 8
#: what --use-rope-scaling fixes of Llama 3.1's rule: low_freq_factor, high_freq_factor, original_max_positions
ROPE_SCALING = (1.0, 4.0, 8192)


def model_part(case: Case) -> Part:
    """Every size of the model; SpecError where Megatron-LM has no such form or rotation."""
    model = case.decoder
    _check_form(model)
    grouped = model.latent is None and model.kv_heads != model.heads
    wide = model.latent is None and model.head_dim * model.heads != model.hidden
    arguments = given(
        f"--num-layers {model.layers}",
        f"--hidden-size {model.hidden}",
        f"--ffn-hidden-size {model.ffn}",
        f"--num-attention-heads {model.heads}",
        f"--group-query-attention --num-query-groups {model.kv_heads}" if grouped else None,
        f"--kv-channels {model.head_dim}" if wide else None,
        *_latent(model.latent),
        "--swiglu" if model.activation is Activation.SWIGLU else None,
        f"--normalization {'RMSNorm' if model.norm is Norm.RMSNORM else 'LayerNorm'}",
        f"--norm-epsilon {model.norm_eps!r}",
        *_positions(model),
        f"--window-size {model.window - 1},0" if model.window is not None else None,
        None if model.bias else "--disable-bias-linear",
        "--add-qkv-bias" if model.qkv_bias and not model.bias else None,
        None if model.tied else "--untie-embeddings-and-output-weights",
        f"--hidden-dropout {model.dropout!r}",
        "--attention-dropout 0.0",
    )
    return Part("model", arguments, _unsaid(model))


def _check_form(model: DecoderSpec) -> None:
    """Refuse forms that the arguments cannot say, of which Megatron-LM would train another model."""
    foreign = [
        *([f"{model.position} positions"] if model.position not in (Position.LEARNED, Position.ROPE) else []),
        *([f"{model.mixing} attention"] if model.mixing is not Mixing.SOFTMAX else []),
        *([str(model.norm)] if model.norm is Norm.BATCHNORM else []),
    ]
    require(
        not foreign,
        f"model: {model.name} has {', '.join(foreign)}; handed to Megatron-LM are rope or learned positions, softmax"
        " attention, layernorm or rmsnorm: take such a model, or another target",
    )


def vocabulary_part(case: Case) -> Part:
    """The vocabulary: mock data of its size, so that the script runs as it stands, and the padding of its rows."""
    model, tp, recipe = case.decoder, case.layout.tp, case.recipe
    multiple = padding(model.vocab, tp)
    rows = padded_rows(model.vocab, tp)
    arguments = (
        "--mock-data",
        "--tokenizer-type NullTokenizer",
        f"--vocab-size {model.vocab}",
        f"--make-vocab-size-divisible-by {multiple}",
    )
    data = recipe.data or "Python's documentation"
    unsaid = [f"recipe.data, tokenizer: {data} as {recipe.tokenizer} tokens: mock data; give --data-path and yours"]
    if rows != model.vocab:
        unsaid.append(
            f"model.vocab {model.vocab}: embedding and head are padded to {rows} rows, {rows - model.vocab} more than"
            " the estimate has"
        )
    return Part("vocabulary and data", arguments, tuple(unsaid))


def padding(vocab: int, tp: int) -> int:
    """--make-vocab-size-divisible-by: the largest power of two up to PADDING that pads nothing, else PADDING where
    what is left would be slow to multiply."""
    exact = (step for step in (128, 64, 32, 16, LEAST_PADDING) if vocab % (step * tp) == 0)
    return next(exact, PADDING)


def padded_rows(vocab: int, tp: int) -> int:
    """Rows of embedding and head, over all tensor-parallel ranks."""
    multiple = padding(vocab, tp) * tp
    return -(-vocab // multiple) * multiple


def _latent(latent: Latent | None) -> tuple[str, ...]:
    """Multi-head latent attention. Its latents have norms only with --qk-layernorm; the rotation is YaRN's unless it is
    said, which alone can be fused."""
    if latent is None:
        return ()
    return given(
        "--multi-latent-attention",
        f"--q-lora-rank {latent.q_rank}" if latent.q_rank else None,
        f"--kv-lora-rank {latent.kv_rank}",
        f"--qk-head-dim {latent.nope_dim}",
        f"--qk-pos-emb-head-dim {latent.rope_dim}",
        f"--v-head-dim {latent.v_dim}",
        "--qk-layernorm",
        "--rope-type rope",
        "--no-rope-fusion",
    )


def _positions(model: DecoderSpec) -> tuple[str, ...]:
    longest = f"--max-position-embeddings {model.max_positions}"
    if model.position is Position.LEARNED:
        return ("--position-embedding-type learned_absolute", longest)
    require(
        model.rope_theta == int(model.rope_theta),
        f"model.rope_theta: {model.rope_theta} to megatron, whose --rotary-base is a whole number; round it",
    )
    return given(
        "--position-embedding-type rope",
        longest,
        f"--rotary-base {int(model.rope_theta)}",
        f"--rotary-percent {model.rope_fraction!r}" if model.rope_fraction != 1 else None,
        *_scaling(model.rope_scaling),
    )


def _scaling(scaling: RopeScaling | None) -> tuple[str, ...]:
    return () if scaling is None else ("--use-rope-scaling", f"--rope-scaling-factor {scaling.factor!r}")


def _unsaid(model: DecoderSpec) -> tuple[str, ...]:
    """What of the model is another one under Megatron-LM."""
    lines = []
    scaling = model.rope_scaling
    if scaling is not None:
        said = (scaling.low_freq_factor, scaling.high_freq_factor, scaling.original_max_positions)
        if said != ROPE_SCALING:
            lines.append(
                f"model.rope_scaling: low_freq_factor, high_freq_factor, original_max_positions {said}: Megatron-LM"
                f" fixes them at {ROPE_SCALING}"
            )
        if model.latent is not None:
            lines.append("model.rope_scaling with latent: Megatron-LM rotates latent attention's keys unscaled")
    if model.norm is Norm.LAYERNORM and not model.bias:
        lines.append(
            f"model.bias False with layernorm: Megatron-LM's LayerNorm has a bias, {model.hidden} parameters a norm"
        )
    if model.activation is Activation.GELU and not model.bias:
        lines.append("model.activation gelu (its tanh form): without biases Megatron-LM computes it exactly")
    if model.activation is Activation.GELU_EXACT and model.bias:
        lines.append("model.activation gelu-exact: with biases Megatron-LM computes its tanh form")
    return tuple(lines)
