"""Named decoders with experts: published shapes, and tiny ones that a 2-core CPU trains, with every part used."""

from __future__ import annotations

from suite.models.decoder import DecoderSpec
from suite.models.experts import Balance, Experts, Scoring
from suite.models.latent_shape import Latent

#: DeepSeek-V2's and V3's: 512 elements a latent, 64 rotated and 128 other channels a key, 128 a value
WIDE = Latent(kv_rank=512, rope_dim=64, nope_dim=128, v_dim=128, q_rank=1536)
NARROW = Latent(kv_rank=64, rope_dim=16, nope_dim=32, v_dim=32, q_rank=96)


def mixtral(
    name: str,
    layers: int,
    hidden: int,
    heads: int,
    kv_heads: int,
    ffn: int,
    vocab: int,
    positions: int,
    experts: int = 8,
) -> DecoderSpec:
    """Mixtral's form: LLaMA's blocks, each with experts of which a token goes to 2, whose scores are normalized
    (arXiv:2401.04088, section 2). The balance loss and its coefficient: the released router_aux_loss_coef."""
    return DecoderSpec(
        name=name,
        layers=layers,
        hidden=hidden,
        heads=heads,
        kv_heads=kv_heads,
        ffn=ffn,
        vocab=vocab,
        max_positions=positions,
        rope_theta=1e6,
        experts=Experts(count=8, top_k=2, ffn=ffn, balance=Balance.AUXILIARY, rate=0.02),
    )


def deepseek(
    name: str,
    layers: int,
    hidden: int,
    heads: int,
    ffn: int,
    vocab: int,
    latent: Latent,
    experts: Experts,
    dense_layers: int = 1,
    positions: int = 163840,
    theta: float = 10000.0,
    mtp: int = 0,
) -> DecoderSpec:
    """DeepSeek's form: latent attention, first blocks dense, then shared and routed experts. The released checkpoints
    reach their positions by YaRN's rotation, which is not modelled; it changes no size."""
    return DecoderSpec(
        name=name,
        layers=layers,
        hidden=hidden,
        heads=heads,
        ffn=ffn,
        vocab=vocab,
        max_positions=positions,
        rope_theta=theta,
        norm_eps=1e-6,
        latent=latent,
        experts=experts,
        dense_layers=dense_layers,
        mtp=mtp,
    )


def _v2(
    count: int, top_k: int, ffn: int, scale: float = 1.0, groups: int = 1, top_groups: int = 1, rate: float = 0.001
) -> Experts:
    """DeepSeek-V2's experts: softmax over all, not normalized, two shared (arXiv:2405.04434, section 2.2)."""
    return Experts(
        count, top_k, ffn, shared=2, normalized=False, scale=scale, groups=groups, top_groups=top_groups,
        balance=Balance.AUXILIARY, rate=rate,
    )  # fmt: skip


def _v3(count: int, top_k: int, ffn: int, scale: float = 2.5, groups: int = 8, top_groups: int = 4) -> Experts:
    """DeepSeek-V3's experts: sigmoids, normalized, one shared, biases for balance (arXiv:2412.19437, section 2.1.2)."""
    return Experts(
        count, top_k, ffn, shared=1, scoring=Scoring.SIGMOID, scale=scale, groups=groups, top_groups=top_groups,
        balance=Balance.BIAS,
    )  # fmt: skip


EXPERT_PRESETS: tuple[DecoderSpec, ...] = (
    # for a 2-core CPU: about 1 M parameters
    mixtral("mixtral-1m", 4, 128, 4, 2, 48, 1024, 1024),
    deepseek("deepseek-v2-1m", 4, 128, 4, 256, 1024, NARROW, _v2(8, 2, 32, 2.0, 4, 2), positions=1024),
    deepseek("deepseek-v3-1m", 4, 128, 4, 256, 1024, NARROW, _v3(8, 3, 32, 2.5, 4, 2), positions=1024, mtp=1),
    # arXiv:2401.04088, table 1, and the released config.json of Mixtral-8x7B-v0.1 and of Mixtral-8x22B-v0.1 and v0.3
    mixtral("mixtral-8x7b", 32, 4096, 32, 8, 14336, 32000, 32768),
    mixtral("mixtral-8x22b", 56, 6144, 48, 8, 16384, 32000, 65536),
    mixtral("mixtral-8x22b-v0.3", 56, 6144, 48, 8, 16384, 32768, 65536),
    # arXiv:2405.04434, section 3.1.2 and appendix B, and the released config.json
    deepseek("deepseek-v2-lite", 27, 2048, 16, 10944, 102400, Latent(512, 64, 128, 128), _v2(64, 6, 1408)),
    deepseek("deepseek-v2", 60, 5120, 128, 12288, 102400, WIDE, _v2(160, 6, 1536, 16.0, 8, 3)),
    # arXiv:2412.19437, section 4.2, and the released config.json; with mtp 1 as it was trained
    deepseek("deepseek-v3", 61, 7168, 128, 18432, 129280, WIDE, _v3(256, 8, 2048), dense_layers=3),
    # moonshotai/Kimi-K2: config.json
    deepseek("kimi-k2", 61, 7168, 64, 18432, 163840, WIDE, _v3(384, 8, 2048, 2.827, 1, 1), positions=131072, theta=5e4),
)
