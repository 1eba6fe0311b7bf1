"""Named decoders: published shapes, and tiny ones that a 2-core CPU trains. A preset is a name and numbers."""

from __future__ import annotations

from dataclasses import replace

from suite.models.decoder import Activation, DecoderSpec, Mixing, Norm, Position, RopeScaling
from suite.models.expert_presets import EXPERT_PRESETS
from suite.models.latent_shape import Latent

GPT2_VOCAB, MEGATRON_VOCAB = 50257, 51200
LLAMA_VOCAB, LLAMA3_VOCAB, QWEN2_VOCAB = 32000, 128256, 152064


def gpt(name: str, layers: int, hidden: int, heads: int, vocab: int, positions: int = 1024) -> DecoderSpec:
    """GPT-2's form: learned positions, LayerNorm, GELU, f = 4h, biases, tied head (Radford et al. 2019)."""
    return DecoderSpec(
        name=name,
        layers=layers,
        hidden=hidden,
        heads=heads,
        ffn=4 * hidden,
        vocab=vocab,
        max_positions=positions,
        norm=Norm.LAYERNORM,
        activation=Activation.GELU,
        position=Position.LEARNED,
        bias=True,
        tied=True,
    )


def llama(
    name: str,
    layers: int,
    hidden: int,
    heads: int,
    ffn: int,
    vocab: int = LLAMA_VOCAB,
    kv_heads: int = 0,
    positions: int = 2048,
    theta: float = 10000.0,
    tied: bool = False,
    eps: float = 1e-5,
    rope_scaling: RopeScaling | None = None,
    window: int | None = None,
    latent: Latent | None = None,
) -> DecoderSpec:
    """LLaMA's form: rotary positions, RMSNorm, SwiGLU, no biases, untied head (arXiv:2302.13971)."""
    return DecoderSpec(
        name=name,
        layers=layers,
        hidden=hidden,
        heads=heads,
        kv_heads=kv_heads,
        ffn=ffn,
        vocab=vocab,
        max_positions=positions,
        rope_theta=theta,
        tied=tied,
        norm_eps=eps,
        rope_scaling=rope_scaling,
        window=window,
        latent=latent,
    )


def _chatglm2() -> DecoderSpec:
    """ChatGLM2-6B: two key-value heads, biases in the projections only, half of each head rotated."""
    return DecoderSpec(
        name="chatglm2-6b",
        layers=28,
        hidden=4096,
        heads=32,
        kv_heads=2,
        ffn=13696,
        vocab=65024,
        max_positions=32768,
        qkv_bias=True,
        rope_fraction=0.5,
    )


def _llama3(
    name: str, layers: int, hidden: int, heads: int, ffn: int, tied: bool = False, factor: float = 8.0
) -> DecoderSpec:
    """Llama 3.1's and 3.2's form: 8 key-value heads, 131,072 positions reached by scaled rotation."""
    scaling = RopeScaling(factor=factor, low_freq_factor=1.0, high_freq_factor=4.0, original_max_positions=8192)
    return llama(
        name, layers, hidden, heads, ffn, LLAMA3_VOCAB, kv_heads=8, positions=131072, theta=5e5, tied=tied,
        rope_scaling=scaling,
    )  # fmt: skip


def _qwen2(name: str, layers: int, hidden: int, heads: int, ffn: int, kv_heads: int) -> DecoderSpec:
    """Qwen2.5's form: LLaMA's with biases in the query, key and value projections (arXiv:2412.15115, section 2)."""
    spec = llama(name, layers, hidden, heads, ffn, QWEN2_VOCAB, kv_heads, 131072, theta=1e6, eps=1e-6)
    return replace(spec, qkv_bias=True)


def mpt(name: str, layers: int, hidden: int, heads: int, vocab: int, positions: int) -> DecoderSpec:
    """MPT's form: GPT's without biases, ALiBi in place of learned positions, exact GELU, tied head."""
    return replace(
        gpt(name, layers, hidden, heads, vocab, positions), position=Position.ALIBI, activation=Activation.GELU_EXACT,
        bias=False,
    )  # fmt: skip


_PRESETS: tuple[DecoderSpec, ...] = (
    # for a 2-core CPU: about 1 M, 10 M and 50 M parameters
    gpt("gpt-1m", 4, 128, 4, 2048),
    gpt("gpt-10m", 6, 320, 5, 4096),
    gpt("gpt-50m", 12, 576, 9, 4096),
    llama("llama-1m", 4, 128, 4, 256, 1024, kv_heads=2, positions=1024),
    # the same with latent attention (arXiv:2405.04434, section 2.1), every part of it used
    llama("mla-1m", 4, 128, 4, 256, 1024, positions=1024, latent=Latent(64, 16, 32, 32, q_rank=96)),
    # llama-1m and gpt-1m in other forms: arXiv:2108.12409, arXiv:1706.03762, arXiv:2006.16236, arXiv:1502.03167
    mpt("alibi-1m", 4, 128, 4, 2048, 1024),
    replace(gpt("sinusoidal-1m", 4, 128, 4, 2048), position=Position.SINUSOIDAL),
    replace(gpt("linear-1m", 4, 128, 4, 2048), mixing=Mixing.LINEAR),
    replace(gpt("batchnorm-1m", 4, 128, 4, 2048), norm=Norm.BATCHNORM),
    llama("llama-10m", 6, 320, 5, 896, 2048, kv_heads=5, positions=1024),
    llama("llama-50m", 12, 576, 9, 1536, 4096, kv_heads=3, positions=1024),
    # arXiv:1910.02054's contemporaries: Radford et al. 2019, table 2
    gpt("gpt2", 12, 768, 12, GPT2_VOCAB),
    gpt("gpt2-medium", 24, 1024, 16, GPT2_VOCAB),
    gpt("gpt2-large", 36, 1280, 20, GPT2_VOCAB),
    gpt("gpt2-xl", 48, 1600, 25, GPT2_VOCAB),
    # arXiv:2005.14165, table 2.1
    gpt("gpt3-175b", 96, 12288, 96, GPT2_VOCAB, 2048),
    # arXiv:2205.05198, table 3 (the 145 B shape: arXiv:2104.04473, table 1)
    gpt("megatron-22b", 48, 6144, 64, MEGATRON_VOCAB, 2048),
    gpt("megatron-145b", 80, 12288, 96, MEGATRON_VOCAB, 2048),
    gpt("megatron-530b", 105, 20480, 128, MEGATRON_VOCAB, 2048),
    gpt("megatron-1t", 128, 25600, 160, MEGATRON_VOCAB, 2048),
    # arXiv:2302.13971, table 2; arXiv:2307.09288
    llama("llama-7b", 32, 4096, 32, 11008, eps=1e-6),
    llama("llama-13b", 40, 5120, 40, 13824, eps=1e-6),
    llama("llama-65b", 80, 8192, 64, 22016),
    llama("llama2-7b", 32, 4096, 32, 11008, positions=4096),
    llama("llama2-13b", 40, 5120, 40, 13824, positions=4096),
    llama("llama2-70b", 80, 8192, 64, 28672, kv_heads=8, positions=4096),
    # arXiv:2407.21783, table 3, with the context of its section 3.4.2 and the released checkpoints' rotation
    _llama3("llama3-8b", 32, 4096, 32, 14336),
    _llama3("llama3-70b", 80, 8192, 64, 28672),
    _llama3("llama3-405b", 126, 16384, 128, 53248),
    # the released checkpoints' config.json: meta-llama/Llama-3.2-1B, Llama-3.2-3B
    _llama3("llama3.2-1b", 16, 2048, 32, 8192, tied=True, factor=32.0),
    _llama3("llama3.2-3b", 28, 3072, 24, 8192, tied=True, factor=32.0),
    # arXiv:2310.06825, table 1; positions and eps: the published v0.1 configuration
    llama("mistral-7b", 32, 4096, 32, 14336, kv_heads=8, positions=32768, window=4096),
    # arXiv:2412.15115, table 1, and the released checkpoints' config.json
    _qwen2("qwen2.5-7b", 28, 3584, 28, 18944, 4),
    _qwen2("qwen2.5-14b", 48, 5120, 40, 13824, 8),
    _qwen2("qwen2.5-32b", 64, 5120, 40, 27648, 8),
    _qwen2("qwen2.5-72b", 80, 8192, 64, 29568, 8),
    _chatglm2(),
    # the released checkpoints' config.json: mosaicml/mpt-7b, mosaicml/mpt-30b
    mpt("mpt-7b", 32, 4096, 32, 50432, 2048),
    mpt("mpt-30b", 48, 7168, 64, 50432, 8192),
    # jingyaogong/minimind: MiniMind2-Small and MiniMind2
    llama("minimind-small", 8, 512, 8, 1408, 6400, kv_heads=2, positions=32768, theta=1e6, tied=True),
    llama("minimind", 16, 768, 8, 2048, 6400, kv_heads=2, positions=32768, theta=1e6, tied=True),
)

PRESETS: dict[str, DecoderSpec] = {spec.name: spec for spec in (*_PRESETS, *EXPERT_PRESETS)}
