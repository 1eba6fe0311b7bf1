"""With the same weights, our decoder and transformers' give the same logits, loss and gradients in fp32.

transformers' models are built from configurations; nothing is downloaded. ChatGLM2's form, which transformers has
not, is held to a reference written here.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from suite.models.decoder import DecoderSpec, RopeScaling
from suite.models.decoder_module import Decoder
from suite.models.experts import Balance, Experts, Scoring
from suite.models.experts_module import mixtures
from suite.models.hf_family import reference_family
from suite.models.latent_shape import Latent
from suite.models.presets import gpt, llama
from suite.parse import SpecError
from suite.spec import AttentionKernel, LossKernel

os.environ["HF_HUB_OFFLINE"] = "1"

from parallelism.hf_reference import reference_model, under_reference_names

TOLERANCE = 1e-4
#: of a gradient's largest entry
GRADIENT_TOLERANCE = 1e-4

GPT = gpt("tiny", layers=2, hidden=48, heads=4, vocab=101, positions=64)
LLAMA = llama("tiny", layers=2, hidden=48, heads=6, ffn=80, vocab=101, positions=64)
# of the tiny model's four wavelengths one must be short enough to be kept and one must be blended
SCALING = RopeScaling(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_positions=256)
# its inner norms add 1e-6 whatever the configuration says
LATENT_SIZES = Latent(kv_rank=24, rope_dim=8, nope_dim=10, v_dim=12)
LATENT = llama("tiny", layers=2, hidden=48, heads=6, ffn=80, vocab=101, positions=64, eps=1e-6, latent=LATENT_SIZES)
V3_EXPERTS = Experts(
    8, 3, 16, shared=1, scoring=Scoring.SIGMOID, scale=2.5, groups=4, top_groups=2, balance=Balance.BIAS
)

FORMS = {
    "gpt": GPT,
    "gpt untied": replace(GPT, tied=False),
    "gpt, ffn of its own": replace(GPT, ffn=100),
    "mha": LLAMA,
    "gqa": replace(LLAMA, kv_heads=2),
    "mqa": replace(LLAMA, kv_heads=1),
    "tied": replace(LLAMA, tied=True),
    "theta": replace(LLAMA, rope_theta=5e5),
    "llama 3.1 scaling": replace(LLAMA, kv_heads=2, rope_theta=5e5, rope_scaling=SCALING),
    "head_dim of its own": replace(LLAMA, head_dim=12, norm_eps=1e-6),
    "biases": replace(LLAMA, bias=True),
    "window": replace(LLAMA, kv_heads=2, window=16),
    "qkv biases, window": replace(LLAMA, kv_heads=2, qkv_bias=True, window=16),
    "qkv biases": replace(LLAMA, kv_heads=2, qkv_bias=True, tied=True),
    "latent": LATENT,
    "latent, queries too": replace(LATENT, latent=replace(LATENT_SIZES, q_rank=20), rope_theta=5e5),
    "latent, values as wide as keys": replace(LATENT, latent=replace(LATENT_SIZES, v_dim=18), tied=True),
}
FORMS |= {
    "mixtral": replace(LLAMA, kv_heads=2, ffn=32, experts=Experts(6, 2, 32)),
    "mixtral, window": replace(LLAMA, window=16, ffn=40, experts=Experts(5, 3, 40)),
    "deepseek-v2": replace(LATENT, dense_layers=1, experts=Experts(6, 3, 24, shared=2, normalized=False, scale=4.0)),
    "deepseek-v2, groups": replace(
        LATENT, experts=Experts(8, 3, 16, shared=1, normalized=False, scale=2.0, groups=4, top_groups=2)
    ),
    "deepseek-v3": replace(LATENT, dense_layers=1, experts=V3_EXPERTS),
    "deepseek-v3, one group": replace(LATENT, experts=replace(V3_EXPERTS, groups=1, top_groups=1, normalized=False)),
}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """The models are tiny: threads would only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def build(spec: DecoderSpec, kernel: AttentionKernel, loss: LossKernel = LossKernel.PLAIN) -> Decoder:
    """A decoder whose every parameter is random: a zero bias or a unit norm would hide a mistake."""
    torch.manual_seed(0)
    model = Decoder(spec, kernel, loss)
    model.reset_parameters()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
        for mixture in mixtures(model):
            if mixture.router.bias is not None:  # large enough to change who is chosen
                mixture.router.bias.copy_(torch.randn(mixture.spec.count) * 0.3)
    return model


def tokens(spec: DecoderSpec, seq_len: int, batch: int = 3) -> tuple[Tensor, Tensor]:
    """Random ids and labels, [batch, seq_len]."""
    drawn = torch.randint(spec.vocab, (batch, seq_len + 1), generator=torch.Generator().manual_seed(1))
    return drawn[:, :-1].contiguous(), drawn[:, 1:].contiguous()


@pytest.mark.unit
@pytest.mark.parametrize("kernel", list(AttentionKernel))
@pytest.mark.parametrize("form", FORMS)
def test_logits_and_loss_equal_transformers(form: str, kernel: AttentionKernel) -> None:
    spec = FORMS[form]
    ours = build(spec, kernel)
    reference = reference_model(spec, kernel, ours.state_dict())
    for seq_len in (1, 2, 17, 64):
        ids, labels = tokens(spec, seq_len)
        with torch.no_grad():
            expected = reference(input_ids=ids, labels=labels, shift_labels=labels)
            torch.testing.assert_close(ours(ids), expected.logits, atol=TOLERANCE, rtol=0)
            torch.testing.assert_close(ours(ids, labels), expected.loss, atol=TOLERANCE, rtol=0)


@pytest.mark.unit
@pytest.mark.parametrize("kernel", list(AttentionKernel))
@pytest.mark.parametrize("form", FORMS)
def test_every_gradient_equals_transformers(form: str, kernel: AttentionKernel) -> None:
    spec = FORMS[form]
    ours = build(spec, kernel)
    reference = reference_model(spec, kernel, ours.state_dict())
    ids, labels = tokens(spec, 33)
    ours(ids, labels).backward()
    reference(input_ids=ids, labels=labels, shift_labels=labels).loss.backward()
    mine = under_reference_names(
        spec, {name: item.grad for name, item in ours.named_parameters() if item.grad is not None}
    )
    theirs = {name: item.grad for name, item in reference.named_parameters()}
    assert mine.keys() == theirs.keys()
    for name, expected in theirs.items():
        assert expected is not None, name
        worst = (mine[name] - expected).abs().max() / expected.abs().max()
        assert worst <= GRADIENT_TOLERANCE, f"{name}: {worst:.2e} of the largest entry"


@pytest.mark.unit
@pytest.mark.parametrize("form", ["latent", "latent, queries too"])
def test_deepseek_v2_is_latent_attentions_other_equal(form: str) -> None:
    """V3's model interleaves the rotated pairs by slices, V2's by complex products: two implementations of one rule."""
    spec = FORMS[form]
    ours = build(spec, AttentionKernel.FLASH)
    reference = reference_model(spec, AttentionKernel.EAGER, ours.state_dict(), family="deepseek_v2")
    ids, labels = tokens(spec, 33)
    expected = reference(input_ids=ids, labels=labels, shift_labels=labels)
    torch.testing.assert_close(ours(ids), expected.logits, atol=TOLERANCE, rtol=0)
    torch.testing.assert_close(ours(ids, labels), expected.loss, atol=TOLERANCE, rtol=0)


@pytest.mark.unit
def test_gpt2s_two_spellings_of_gelu_are_ours() -> None:
    ours = build(GPT, AttentionKernel.FLASH)
    ids, _ = tokens(GPT, 17)
    for fused, name in ((False, "gelu_new"), (True, "gelu_pytorch_tanh")):
        reference = reference_model(GPT, AttentionKernel.FLASH, ours.state_dict(), fused_gelu=fused)
        assert reference.config.activation_function == name
        with torch.no_grad():
            torch.testing.assert_close(ours(ids), reference(input_ids=ids).logits, atol=TOLERANCE, rtol=0)
    with pytest.raises(SpecError, match="is llama's form, which has no GELU to fuse"):
        reference_model(LLAMA, fused_gelu=True)


@pytest.mark.unit
@pytest.mark.parametrize("form", ["gpt", "gqa"])
def test_the_loss_that_transformers_shifts_itself_is_ours_with_the_last_label_ignored(form: str) -> None:
    spec = FORMS[form]
    ours = build(spec, AttentionKernel.FLASH)
    reference = reference_model(spec, AttentionKernel.FLASH, ours.state_dict())
    ids, labels = tokens(spec, 17)
    labels[:, -1] = -100
    with torch.no_grad():
        torch.testing.assert_close(ours(ids, labels), reference(input_ids=ids, labels=ids).loss, atol=1e-5, rtol=0)


@pytest.mark.unit
@pytest.mark.parametrize("form", ["gpt", "llama 3.1 scaling"])
def test_the_chunked_loss_equals_transformers(form: str) -> None:
    spec = FORMS[form]
    ours = build(spec, AttentionKernel.FLASH, LossKernel.CHUNKED)
    reference = reference_model(spec, AttentionKernel.FLASH, ours.state_dict())
    ids, labels = tokens(spec, 64)
    expected = reference(input_ids=ids, labels=labels, shift_labels=labels).loss
    torch.testing.assert_close(ours(ids, labels), expected, atol=TOLERANCE, rtol=0)


@pytest.mark.unit
def test_scaled_frequencies_lie_in_all_three_bands() -> None:
    """Else the Llama 3.1 case above would not test the rule: some kept, some blended, some divided by the factor."""
    model = Decoder(FORMS["llama 3.1 scaling"])
    plain = Decoder(replace(FORMS["llama 3.1 scaling"], rope_scaling=None))
    assert model.rope is not None
    assert plain.rope is not None
    # position 1 turns by the frequency itself; all are below pi
    ratio = torch.atan2(model.rope.sin[1], model.rope.cos[1]) / torch.atan2(plain.rope.sin[1], plain.rope.cos[1])
    kept, divided = (ratio - 1).abs() < 1e-5, (ratio - 1 / SCALING.factor).abs() < 1e-5
    assert kept.any()
    assert divided.any()
    assert (~kept & ~divided).any()


@pytest.mark.unit
def test_a_form_without_an_equal_is_refused_in_one_line() -> None:
    for spec in (
        replace(LLAMA, rope_fraction=0.5), replace(GPT, bias=False), replace(LLAMA, position=GPT.position),
        replace(GPT, window=16), replace(LLAMA, bias=True, window=16),
        replace(FORMS["mixtral"], dense_layers=1), replace(FORMS["deepseek-v3"], mtp=1),
    ):  # fmt: skip
        with pytest.raises(
            SpecError, match=r"no equal in transformers; use the form of gpt2, llama, mistral, qwen2, mixtral"
        ):
            reference_family(spec)


# --- ChatGLM2's form ----------------------------------------------------------------------------------------------

CHATGLM = replace(LLAMA, heads=4, kv_heads=2, qkv_bias=True, rope_fraction=0.5)


def chatglm_logits(weights: dict[str, Tensor], spec: DecoderSpec, ids: Tensor) -> Tensor:
    """ChatGLM2's equations (arXiv:2406.12793; THUDM/chatglm2-6b), a token and a head at a time, in fp64.

    Written from the definitions, without torch's layers: RMSNorm, biased projections, the leading half of each head
    turned as complex numbers, key-value heads shared by consecutive queries, SwiGLU. A turned pair is channels
    (i, i + r/2), as in every preset here; ChatGLM2's own code pairs (2i, 2i + 1), which is the same model with the
    rows of wq and wk in another order.
    """
    w = {name: tensor.double() for name, tensor in weights.items()}
    half, group = spec.rotary_dim // 2, spec.heads // spec.kv_heads

    def norm(x: Tensor, name: str) -> Tensor:
        return x / (x.square().mean(-1, keepdim=True) + spec.norm_eps).sqrt() * w[f"{name}.weight"]

    def turn(x: Tensor, place: int) -> Tensor:
        rates = torch.tensor([spec.rope_theta ** (-i / half) for i in range(half)], dtype=torch.float64)
        pairs = torch.complex(x[:half], x[half : 2 * half]) * torch.exp(1j * rates * place)
        return torch.cat((pairs.real, pairs.imag, x[2 * half :]))

    def project(x: Tensor, name: str) -> Tensor:
        return w[f"{name}.weight"] @ x + w.get(f"{name}.bias", 0)

    def attend(rows: list[Tensor], name: str) -> list[Tensor]:
        d = spec.head_dim
        q, k, v = ([project(row, f"{name}.{part}").split(d) for row in rows] for part in ("wq", "wk", "wv"))
        out = []
        for place in range(len(rows)):
            heads = []
            for head in range(spec.heads):
                query = turn(q[place][head], place)
                keys = torch.stack([turn(k[past][head // group], past) for past in range(place + 1)])
                values = torch.stack([v[past][head // group] for past in range(place + 1)])
                heads.append(torch.softmax(keys @ query / d**0.5, 0) @ values)
            out.append(project(torch.cat(heads), f"{name}.wo"))
        return out

    def sequence(row: Tensor) -> Tensor:
        xs = [w["embedding.weight"][token] for token in row]
        for block in (f"blocks.{index}" for index in range(spec.layers)):
            mixed = attend([norm(x, f"{block}.attention_norm") for x in xs], f"{block}.attention")
            xs = [x + change for x, change in zip(xs, mixed, strict=True)]
            for place, x in enumerate(xs):
                y = norm(x, f"{block}.mlp_norm")
                gate, up = project(y, f"{block}.mlp.gate"), project(y, f"{block}.mlp.up")
                xs[place] = x + project(gate * torch.sigmoid(gate) * up, f"{block}.mlp.down")
        return torch.stack([project(norm(x, "norm"), "head") for x in xs])

    return torch.stack([sequence(row) for row in ids])


@pytest.mark.unit
@pytest.mark.parametrize("kernel", list(AttentionKernel))
def test_chatglm2_form_equals_its_equations(kernel: AttentionKernel) -> None:
    ours = build(CHATGLM, kernel)
    ids, labels = tokens(CHATGLM, 9, batch=2)
    with torch.no_grad():
        expected = chatglm_logits(ours.state_dict(), CHATGLM, ids)
        torch.testing.assert_close(ours(ids).double(), expected, atol=TOLERANCE, rtol=0)
        loss = -expected.log_softmax(-1).gather(-1, labels[..., None]).mean()
        torch.testing.assert_close(ours(ids, labels).double(), loss, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("form", ["gpt", "gqa"])
def test_logits_in_pure_bf16_agree_within_its_rounding(form: str) -> None:
    """Rounded weights, and rotary tables in fp32 in both. Each of a block's ten or so roundings is 2^-9 of a number."""
    spec = FORMS[form]
    torch.manual_seed(0)
    ours = Decoder(spec)
    ours.reset_parameters()
    theirs = reference_model(spec, AttentionKernel.FLASH, ours.state_dict()).to(torch.bfloat16).eval()
    for parameter in ours.parameters():
        parameter.data = parameter.data.to(torch.bfloat16)
    ids = torch.randint(spec.vocab, (2, 48))
    with torch.no_grad():
        mine, its = ours(ids), theirs(ids).logits
    assert mine.dtype is its.dtype is torch.bfloat16
    assert (mine.float() - its.float()).norm() / its.float().norm() < 2**-9 * (10 * spec.layers + 3) ** 0.5
