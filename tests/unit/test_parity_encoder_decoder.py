"""With the same weights our encoder-decoders and transformers' give the same logits, loss and gradients in fp32."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from suite.models.encoder_decoder import Feed
from suite.models.encoder_decoder_module import T5, EncoderDecoder, Transformer
from suite.models.t5 import T5Spec
from suite.models.transformer import TransformerSpec
from suite.spec import AttentionKernel, LossKernel
from suite.tasks.base import IGNORED

os.environ["HF_HUB_OFFLINE"] = "1"

pytestmark = pytest.mark.unit

TOLERANCE = 1e-4

T5_V1_0 = T5Spec(layers=5, encoder_layers=3, hidden=32, heads=4, head_dim=6, ffn=48, vocab=130)
T5_V1_1 = replace(T5_V1_0, feed=Feed.GATED_GELU, tied=False)
TRANSFORMER = TransformerSpec(layers=5, encoder_layers=2, hidden=32, heads=4, ffn=48, vocab=130, attention_bias=True)

#: our names, a block's part first -> transformers'
T5_PARTS = {"attention_norm": "layer.0.layer_norm", "attention.wq": "layer.0.SelfAttention.q",
            "attention.wk": "layer.0.SelfAttention.k", "attention.wv": "layer.0.SelfAttention.v",
            "attention.wo": "layer.0.SelfAttention.o", "cross_norm": "layer.1.layer_norm",
            "cross.wq": "layer.1.EncDecAttention.q", "cross.wk": "layer.1.EncDecAttention.k",
            "cross.wv": "layer.1.EncDecAttention.v", "cross.wo": "layer.1.EncDecAttention.o"}  # fmt: skip
T5_MLP = {"up": "wi", "down": "wo"}
T5_GATED = {"gate": "wi_0", "up": "wi_1", "down": "wo"}
T5_MODEL = {"embedding": "shared", "head": "lm_head", "encoder_norm": "encoder.final_layer_norm",
            "norm": "decoder.final_layer_norm",
            "encoder_bias.table": "encoder.block.0.layer.0.SelfAttention.relative_attention_bias",
            "decoder_bias.table": "decoder.block.0.layer.0.SelfAttention.relative_attention_bias"}  # fmt: skip
MARIAN_PARTS = {"attention": "self_attn", "attention_norm": "self_attn_layer_norm", "cross": "encoder_attn",
                "cross_norm": "encoder_attn_layer_norm", "mlp_norm": "final_layer_norm",
                "mlp.up": "fc1", "mlp.down": "fc2"}  # fmt: skip
PROJECTIONS = {"wq": "q_proj", "wk": "k_proj", "wv": "v_proj", "wo": "out_proj"}


def t5_name(name: str, spec: T5Spec) -> str:
    """A parameter's name there."""
    module, kind = name.rsplit(".", 1)
    if not module.startswith("blocks."):
        return f"{T5_MODEL[module]}.{kind}"
    _, index, part = module.split(".", 2)
    place = int(index)
    is_decoder = place >= spec.encoder_layers
    stack = f"decoder.block.{place - spec.encoder_layers}" if is_decoder else f"encoder.block.{place}"
    if not part.startswith("mlp"):
        return f"{stack}.{T5_PARTS[part]}.{kind}"
    last = f"{stack}.layer.{1 + is_decoder}"
    names = T5_GATED if spec.feed is Feed.GATED_GELU else T5_MLP
    return f"{last}.layer_norm.{kind}" if part == "mlp_norm" else f"{last}.DenseReluDense.{names[part[4:]]}.{kind}"


def marian_name(name: str, spec: TransformerSpec) -> str:
    """A parameter's name there."""
    module, kind = name.rsplit(".", 1)
    if module == "embedding":
        return "model.shared.weight"
    _, index, part = module.split(".", 2)
    place = int(index)
    is_decoder = place >= spec.encoder_layers
    stack = f"model.decoder.layers.{place - spec.encoder_layers}" if is_decoder else f"model.encoder.layers.{place}"
    if part in MARIAN_PARTS:
        return f"{stack}.{MARIAN_PARTS[part]}.{kind}"
    attention, projection = part.split(".")
    return f"{stack}.{MARIAN_PARTS[attention]}.{PROJECTIONS[projection]}.{kind}"


def t5_reference(spec: T5Spec, kernel: AttentionKernel) -> nn.Module:
    """transformers' T5 of the same sizes."""
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(
        vocab_size=spec.vocab, d_model=spec.hidden, d_kv=spec.head_dim, d_ff=spec.ffn, num_layers=spec.encoder_layers,
        num_decoder_layers=spec.decoder_layers, num_heads=spec.heads, dropout_rate=0.0,
        feed_forward_proj="gated-gelu" if spec.feed is Feed.GATED_GELU else "relu", tie_word_embeddings=spec.tied,
        pad_token_id=spec.pad_id, eos_token_id=spec.end_id,
        decoder_start_token_id=spec.pad_id,
        layer_norm_epsilon=spec.norm_eps,
    )  # fmt: skip
    config.tie_word_embeddings = spec.tied  # the constructor only scales by it, and ties whatever it says
    model = T5ForConditionalGeneration(config).eval()
    model.set_input_embeddings(model.shared)  # untied, the stacks would have embeddings of their own
    return model


def marian_reference(spec: TransformerSpec, kernel: AttentionKernel) -> nn.Module:
    """Marian's Transformer, which is the paper's but for biases in attention and the order of a sinusoid's channels."""
    from transformers import MarianConfig, MarianMTModel

    config = MarianConfig(
        vocab_size=spec.vocab, d_model=spec.hidden, encoder_layers=spec.encoder_layers,
        decoder_layers=spec.decoder_layers, encoder_attention_heads=spec.heads, decoder_attention_heads=spec.heads,
        encoder_ffn_dim=spec.ffn, decoder_ffn_dim=spec.ffn, activation_function="relu", dropout=0.0,
        scale_embedding=True, max_position_embeddings=spec.max_positions, pad_token_id=spec.pad_id,
        eos_token_id=spec.end_id, forced_eos_token_id=None, decoder_start_token_id=spec.pad_id,
        attn_implementation="eager" if kernel is AttentionKernel.EAGER else "sdpa",
    )  # fmt: skip
    return MarianMTModel(config).eval()


FORMS: dict[str, Any] = {
    "t5 v1.0": (T5_V1_0, T5, t5_reference, t5_name),
    "t5 v1.1": (T5_V1_1, T5, t5_reference, t5_name),
    "transformer": (TRANSFORMER, Transformer, marian_reference, marian_name),
}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """The models are tiny: threads would only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def build(form: str, kernel: AttentionKernel) -> tuple[EncoderDecoder, nn.Module, dict[str, str]]:
    """Ours with every parameter random, theirs with the same, and the names there of ours."""
    spec, kind, make, rename = FORMS[form]
    torch.manual_seed(0)
    ours = kind(spec, kernel)
    ours.reset_parameters()
    names = {name: rename(name, spec) for name, _ in ours.named_parameters()}
    theirs = make(spec, kernel)
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
        there = dict(theirs.named_parameters())
        for name, parameter in ours.named_parameters():
            there[names[name]].copy_(parameter)
        if isinstance(ours, Transformer):
            theirs.get_parameter("model.encoder.embed_positions.weight").copy_(ours.positions.table)
            theirs.get_parameter("model.decoder.embed_positions.weight").copy_(ours.positions.table)
    return ours, theirs, names


def batch(vocab: int, source: int, target: int) -> dict[str, Tensor]:
    """Three rows, the second padded in source and target."""
    draw = torch.Generator().manual_seed(1)
    ids = torch.randint(vocab - 2, (3, source), generator=draw)
    labels = torch.randint(vocab - 2, (3, target), generator=draw)
    reads = torch.randint(vocab - 2, (3, target), generator=draw)
    labels[1, target // 2 :] = IGNORED
    lengths = torch.tensor([source, source // 2 + 1, source])
    return {"ids": ids, "labels": labels, "decoder_ids": reads, "source_lengths": lengths}


@pytest.mark.parametrize("kernel", list(AttentionKernel))
@pytest.mark.parametrize("form", FORMS)
def test_logits_loss_and_every_gradient_equal_transformers(form: str, kernel: AttentionKernel) -> None:
    ours, theirs, names = build(form, kernel)
    ours.label_smoothing = 0.0  # transformers' models have none of their own
    for source, target in ((5, 3), (40, 150), (150, 33)):
        given = batch(ours.spec.vocab, source, target)
        is_seen = torch.arange(source) < given["source_lengths"][:, None]
        expected = theirs(
            input_ids=given["ids"], attention_mask=is_seen.long(), decoder_input_ids=given["decoder_ids"],
            labels=given["labels"],
        )  # fmt: skip
        logits = ours(given["ids"], **{name: given[name] for name in ("decoder_ids", "source_lengths")})
        torch.testing.assert_close(logits, expected.logits, atol=TOLERANCE, rtol=0)
        loss = ours(**given)
        torch.testing.assert_close(loss, expected.loss, atol=TOLERANCE, rtol=0)
        ours.zero_grad()
        theirs.zero_grad()
        loss.backward()
        expected.loss.backward()
        there = dict(theirs.named_parameters())
        for name, parameter in ours.named_parameters():
            wanted, found = there[names[name]].grad, parameter.grad
            assert wanted is not None, name
            assert found is not None, name
            # a key's bias adds the same to all scores of a query, which softmax undoes: its gradient is rounding alone
            scale = 1e-3 if name.endswith("wk.bias") else wanted.abs().max()
            assert (found - wanted).abs().max() <= TOLERANCE * scale, name


@pytest.mark.parametrize("loss", list(LossKernel))
def test_label_smoothing_and_weight_are_the_papers(loss: LossKernel) -> None:
    """(1 - 0.1) of the label's, 0.1 of the mean over all tokens', of the labels that count."""
    ours, _, _ = build("transformer", AttentionKernel.FLASH)
    ours.loss = loss
    given = batch(ours.spec.vocab, 9, 11)
    logits = ours(given["ids"], **{name: given[name] for name in ("decoder_ids", "source_lengths")})
    log_probs = logits.log_softmax(-1)
    counted = given["labels"] != IGNORED
    label = log_probs.gather(-1, given["labels"].clamp(min=0).unsqueeze(-1)).squeeze(-1)
    expected = -(0.9 * label + 0.1 * log_probs.mean(-1))[counted].mean()
    torch.testing.assert_close(ours(**given, weight=0.5), 0.5 * expected)


@pytest.mark.parametrize("kernel", list(AttentionKernel))
@pytest.mark.parametrize("form", FORMS)
def test_an_all_padding_row_contributes_nothing(form: str, kernel: AttentionKernel) -> None:
    """Without it the loss and every gradient are the same; alone it makes zeros."""
    ours, _, _ = build(form, kernel)
    given = batch(ours.spec.vocab, 8, 6)
    given["source_lengths"][1], given["labels"][1] = 0, IGNORED
    results = []
    for rows in ([0, 1, 2], [0, 2], [1]):
        ours.zero_grad()
        loss = ours(**{name: tensor[rows] for name, tensor in given.items()})
        loss.backward()
        results.append((loss.detach(), [parameter.grad for parameter in ours.parameters()]))
    with_it, without_it, alone = results
    torch.testing.assert_close(with_it, without_it)
    assert alone[0] == 0
    assert all(gradient is not None and not gradient.any() for gradient in alone[1])
