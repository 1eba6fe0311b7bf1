"""Parameters, counted by the ledger, by the module on the meta device, and by whoever published the model."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from suite.layout import Recompute
from suite.models.decoder import Activation, DecoderSpec, Norm, Position
from suite.models.decoder_module import Decoder
from suite.models.ledgers import ledger_of
from suite.models.presets import LLAMA3_VOCAB, PRESETS, gpt, llama
from suite.operators import DType, Ledger
from suite.spec import Workload
from suite.tape import BF16_AUTOCAST, FP32, Backend, Numerics

TORCH = {DType.FP32: torch.float32, DType.BF16: torch.bfloat16}

#: exact figures and where they stand
PUBLISHED = {
    "gpt2": 124_439_808,  # keras-hub's preset metadata; transformers' gpt2
    "gpt2-medium": 354_823_168,  # keras-hub's preset metadata
    "gpt2-large": 774_030_080,  # transformers' gpt2-large
    "gpt2-xl": 1_557_611_200,  # transformers' gpt2-xl
    "llama-7b": 6_738_415_616,  # the model's safetensors index on the Hub
    "llama-13b": 13_015_864_320,
    "llama-65b": 65_285_660_672,
    "llama2-7b": 6_738_415_616,  # the same shape as llama-7b
    "llama2-13b": 13_015_864_320,
    "llama2-70b": 68_976_648_192,
    "llama3-8b": 8_030_261_248,
    "llama3-70b": 70_553_706_496,
    "llama3-405b": 405_853_388_800,  # the re-released checkpoint, with 8 key-value heads
    "llama3.2-1b": 1_235_814_400,  # the model's safetensors on the Hub
    "llama3.2-3b": 3_212_749_824,  # tests/published/params.csv, as the next two
    "qwen2.5-7b": 7_615_616_512,
    "qwen2.5-14b": 14_770_033_664,
    "qwen2.5-32b": 32_763_876_352,  # the models' safetensors indexes on the Hub
    "qwen2.5-72b": 72_706_203_648,
    "mistral-7b": 7_241_732_096,  # keras-hub's preset metadata; the shape: arXiv:2310.06825, table 1
    "chatglm2-6b": 6_243_584_000,  # THUDM/chatglm2-6b
}
#: figures that are published in rounded form: (value, unit)
ROUNDED = {
    "megatron-145b": (145.6, 1e9),  # arXiv:2104.04473, table 1
    "megatron-530b": (529.6, 1e9),
    "megatron-1t": (1008.0, 1e9),
    "minimind-small": (25.8, 1e6),  # jingyaogong/minimind, README: 25.83 M
    "minimind": (104.0, 1e6),
}
#: a stated size that the published shape does not round to: what the shape gives instead
BY_SHAPE = {
    # arXiv:2005.14165, table 2.1, says 175.0 B; 12 L h^2 + 13 L h + (V + 2048) h + 2 h is
    "gpt3-175b": 174_604_259_328,
}


def ledger(spec: DecoderSpec, numerics: Numerics = FP32) -> Ledger:
    """The ledger of a short step; its weights do not depend on the workload."""
    return ledger_of(spec, Workload(seq_len=8), Recompute(), numerics, Backend.CPU, 1)


def on_meta(spec: DecoderSpec) -> Decoder:
    """The module without storage."""
    with torch.device("meta"):
        return Decoder(spec)


def count(module: nn.Module) -> int:
    """Elements of its parameters, a shared one once."""
    return sum(item.numel() for item in module.parameters())


def latent_by_hand(spec: DecoderSpec) -> int:
    """arXiv:2405.04434, equations 9 to 19: queries' down- and up-projection, the latent's, the shared rotated key, the
    keys' and values' up-projections, the output, and the norms of both latents."""
    assert spec.latent is not None
    h, a, c, cq = spec.hidden, spec.heads, spec.latent.kv_rank, spec.latent.q_rank
    key, value = spec.latent.nope_dim + spec.latent.rope_dim, spec.latent.v_dim
    queries = h * cq + cq + cq * a * key if cq else h * a * key
    return queries + h * c + c + h * spec.latent.rope_dim + c * a * (spec.latent.nope_dim + value) + a * value * h


def by_hand(spec: DecoderSpec) -> int:
    """L (h a d + 2 h k d + a d h + 2 or 3 h f + biases + norms) + final norm + V h (+ V h untied) (+ P h)."""
    h, f, q, k = spec.hidden, spec.ffn, spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim
    wide = 1 if spec.activation is Activation.GELU else 2
    norm = h * (2 if spec.norm is Norm.LAYERNORM and spec.bias else 1)
    block = (h * q + 2 * h * k + q * h if spec.latent is None else latent_by_hand(spec)) + (wide + 1) * h * f + 2 * norm
    block += (q + 2 * k) * (spec.bias or spec.qkv_bias) + (h + wide * f + h) * spec.bias
    tables = spec.vocab * h * (1 if spec.tied else 2) + spec.max_positions * h * (spec.position is Position.LEARNED)
    return spec.layers * block + experts_by_hand(spec, block) + norm + tables


def experts_by_hand(spec: DecoderSpec, block: int) -> int:
    """Beyond dense blocks: a router and (count + shared) MLPs of their own width in place of the MLP, but for the first
    blocks; each further token's block has a mixture too, two norms and a projection of 2 h to h."""
    if spec.experts is None:
        return 0
    h, e = spec.hidden, spec.experts
    more = h * e.count + (e.count + e.shared) * 3 * h * e.ffn - 3 * h * spec.ffn
    return (spec.layers - spec.dense_layers) * more + spec.mtp * (block + more + 2 * h + 2 * h * h)


@pytest.mark.unit
@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_counts_the_same_by_ledger_module_and_hand(name: str) -> None:
    spec = PRESETS[name]
    assert ledger(spec).parameters == count(on_meta(spec)) == by_hand(spec)


@pytest.mark.unit
def test_every_preset_counts_what_was_published() -> None:
    assert {name: ledger(PRESETS[name]).parameters for name in PUBLISHED} == PUBLISHED
    for name, (value, unit) in ROUNDED.items():
        assert round(ledger(PRESETS[name]).parameters / unit, 1) == value, name
    assert {name: ledger(PRESETS[name]).parameters for name in BY_SHAPE} == BY_SHAPE


@pytest.mark.unit
def test_the_tiny_presets_are_about_as_large_as_their_names_say() -> None:
    for name, spec in PRESETS.items():
        form, _, size = name.partition("-")
        if form in ("gpt", "llama", "mla") and size in ("1m", "10m", "50m"):
            assert ledger(spec).parameters == pytest.approx(float(size[:-1]) * 1e6, rel=0.2), name


# --- published shapes that are no presets -------------------------------------------------------------------------


def qwen(layers: int, hidden: int, heads: int, ffn: int, vocab: int, kv_heads: int, tied: bool) -> DecoderSpec:
    """Qwen2's form: LLaMA's with biases in the query, key and value projections."""
    return replace(llama("", layers, hidden, heads, ffn, vocab, kv_heads, tied=tied), qkv_bias=True)


#: model cards and checkpoints' own counts
CARDS = {
    "distilgpt2": (gpt("", 6, 768, 12, 50257), 81_912_576),
    "llama3.2-3b": (llama("", 28, 3072, 24, 8192, LLAMA3_VOCAB, kv_heads=8, tied=True), 3_212_749_824),
    "tinyllama-1.1b": (llama("", 22, 2048, 32, 5632, kv_heads=4), 1_100_048_384),
    "mistral-7b-v0.3": (replace(PRESETS["mistral-7b"], vocab=32768, window=None), 7_248_023_552),
    "mistral-small-24b": (
        replace(llama("", 40, 5120, 32, 32768, 131072, kv_heads=8), head_dim=128),
        23_572_403_200,
    ),
    "qwen2.5-1.5b": (qwen(28, 1536, 12, 8960, 151936, 2, tied=True), 1_543_714_304),
    "qwen2.5-3b": (qwen(36, 2048, 16, 11008, 151936, 2, tied=True), 3_085_938_688),
    "qwen2.5-7b": (qwen(28, 3584, 28, 18944, 152064, 4, tied=False), 7_615_616_512),
    "qwen2.5-14b": (qwen(48, 5120, 40, 13824, 152064, 8, tied=False), 14_770_033_664),
}

#: mosaicml/llm-foundry, scripts/train/benchmarking/README.md, NumParams: size -> (L, h, a), then positions -> count.
#: GPT-2's form with V = 50368 (their GELU is the erf form; it has no parameters)
MPT = {
    "125m": (12, 768, 12, {512: 124_131_840, 2048: 125_311_488, 16384: 136_321_536, 32768: 148_904_448}),
    "350m": (
        24, 1024, 16,
        {512: 354_412_544, 2048: 355_985_408, 16384: 370_665_472, 32768: 387_442_688, 65536: 420_997_120},
    ),
    "760m": (24, 1536, 12, {512: 758_111_232, 4096: 763_616_256, 8192: 769_907_712}),
    "1b": (
        24, 2048, 16,
        {
            512: 1_312_804_864, 1024: 1_313_853_440, 2048: 1_315_950_592, 16384: 1_345_310_720,
            32768: 1_378_865_152, 65536: 1_445_974_016,
        },
    ),
    "3b": (
        32, 2560, 20,
        {
            512: 2_647_905_280, 1024: 2_649_216_000, 4096: 2_657_080_320, 8192: 2_667_566_080,
            32768: 2_730_480_640, 65536: 2_814_366_720,
        },
    ),
    "7b": (
        32, 4096, 32,
        {
            512: 6_652_567_552, 1024: 6_654_664_704, 2048: 6_658_859_008, 8192: 6_684_024_832,
            16384: 6_717_579_264, 65536: 6_918_905_856,
        },
    ),
    "13b": (
        40, 5120, 40,
        {512: 12_846_090_240, 1024: 12_848_711_680, 8192: 12_885_411_840, 16384: 12_927_354_880, 32768: 13_011_240_960},
    ),
    "30b": (48, 7168, 56, {512: 29_964_204_032, 2048: 29_975_214_080, 4096: 29_989_894_144, 8192: 30_019_254_272}),
    "70b": (80, 8192, 64, {2048: 64_862_437_376}),
}  # fmt: skip


@pytest.mark.unit
@pytest.mark.parametrize("name", CARDS)
def test_published_shapes_give_the_published_count(name: str) -> None:
    spec, expected = CARDS[name]
    assert ledger(spec).parameters == count(on_meta(spec)) == expected


@pytest.mark.unit
@pytest.mark.parametrize("size", MPT)
def test_mosaics_benchmark_table_gives_the_published_count(size: str) -> None:
    layers, hidden, heads, counts = MPT[size]
    found = {length: ledger(gpt("", layers, hidden, heads, 50368, length)).parameters for length in counts}
    assert found == counts


# --- the ledger's weights are the module's ------------------------------------------------------------------------

GPT = gpt("tiny", 2, 48, 4, 101, 64)
LLAMA = llama("tiny", 2, 48, 6, 80, 101, kv_heads=2, positions=64)
FORMS = {
    "gpt": GPT,
    "gpt untied": replace(GPT, tied=False),
    "gpt without biases": replace(GPT, bias=False),
    "llama": LLAMA,
    "llama tied": replace(LLAMA, tied=True),
    "llama, head_dim of its own": replace(LLAMA, head_dim=12),
    "llama with biases": replace(LLAMA, bias=True),
    "chatglm2": replace(LLAMA, qkv_bias=True, rope_fraction=0.5),
}


@pytest.mark.unit
@pytest.mark.parametrize("numerics", [FP32, BF16_AUTOCAST])
@pytest.mark.parametrize("form", FORMS)
def test_names_shapes_and_types_are_the_modules(form: str, numerics: Numerics) -> None:
    spec = FORMS[form]
    module = on_meta(spec)
    expected = {name: (tuple(item.shape), item.dtype) for name, item in module.named_parameters()}
    weights = [
        (placed.weight_name(weight), weight)
        for placed in ledger(spec, numerics).segments
        for weight in placed.segment.weights
    ]
    own = {
        name: (tuple(size.value for size in weight.shape), TORCH[weight.dtype])
        for name, weight in weights
        if not weight.tied_to
    }
    assert own == expected
    assert len(own) == sum(not weight.tied_to for _, weight in weights)  # no name stands twice
    for name, weight in weights:
        if weight.tied_to:
            assert module.get_parameter(name) is module.get_parameter(weight.tied_to)
    assert spec.tied == any(weight.tied_to for _, weight in weights)


@pytest.mark.unit
@pytest.mark.parametrize("form", FORMS)
def test_buffers_are_the_modules(form: str) -> None:
    expected = sum(item.numel() * item.element_size() for item in on_meta(FORMS[form]).buffers())
    assert sum(array.nbytes for array in ledger(FORMS[form]).buffers) == expected
