"""Published models that are served but not built here yet: shapes of their attention, and how large their weights are.

A ledger of these models (norms of queries and keys, OPT's activation) is still to come; until then what a cache needs
is here, and weights are the published total.
"""

from __future__ import annotations

from dataclasses import dataclass

from suite.models.base import ModelSpec
from suite.models.decoder import Activation, DecoderSpec, Norm, Position
from suite.models.expert_presets import EXPERT_PRESETS


@dataclass(frozen=True)
class ServedModel:
    """A model whose cache is known and whose operators are not. `spec` says what attention is, and how wide the dense
    layers are; its count of parameters is not the model's."""

    spec: DecoderSpec
    parameters: int  # all that a checkpoint holds and answers need
    active_parameters: int | None  # those that one token meets; None: all of them
    weight_bytes: float  # a parameter, as released
    source: str
    why: str  # no ledger yet

    @property
    def name(self) -> str:
        """What --model says."""
        return self.spec.name


def _opt(name: str, layers: int, hidden: int, heads: int) -> DecoderSpec:
    """OPT's form (arXiv:2205.01068, table 1): GPT-2's with ReLU, which the cache does not see."""
    return DecoderSpec(
        name=name, layers=layers, hidden=hidden, heads=heads, ffn=4 * hidden, vocab=50272, max_positions=2048,
        norm=Norm.LAYERNORM, activation=Activation.GELU, position=Position.LEARNED, bias=True, tied=True,
    )  # fmt: skip


_RELU = "its ReLU and the two unused rows of its positions are not modelled yet"

_SERVED: tuple[ServedModel, ...] = (
    ServedModel(
        DecoderSpec(
            name="qwen3-235b-a22b", layers=94, hidden=4096, heads=64, kv_heads=4, head_dim=128, ffn=12288,
            vocab=151936, max_positions=40960, rope_theta=1e6, norm_eps=1e-6,
        ),
        235_093_634_560, 22_190_763_520, 2, "arXiv:2505.09388, table 2; totals: params.csv, params-0048",
        "its norms of queries and keys are not modelled yet",
    ),
    ServedModel(
        _opt("opt-125m", 12, 768, 12), 125_239_296, None, 2, "arXiv:2205.01068, table 1; params.csv, params-0005",
        _RELU,
    ),
    ServedModel(
        _opt("opt-13b", 40, 5120, 40), 12_853_473_280, None, 2, "arXiv:2205.01068, table 1; total: by its shape",
        _RELU,
    ),
    ServedModel(
        _opt("opt-30b", 48, 7168, 56), 29_974_540_288, None, 2, "arXiv:2205.01068, table 1; params.csv, params-0010",
        _RELU,
    ),
)  # fmt: skip

EXPERTS = {spec.name: spec for spec in EXPERT_PRESETS}
SERVED_MODELS: dict[str, ServedModel] = {model.name: model for model in _SERVED}


#: bytes a parameter of checkpoints that are released in fewer than 16 bits. Counted for all alike: fp8's scales, and
#: the embedding, head, norms and routers, which stay in 16 bits, add less than 1 % (arXiv:2412.19437, section 3.3)
_RELEASED_BYTES = {"deepseek-v3": 1, "kimi-k2": 1}


def weight_bytes(spec: ModelSpec, loaded: int) -> int:
    """Bytes of each weight when a model answers: those of its released checkpoint, or `loaded` where it has more."""
    preset = EXPERTS.get(spec.name)
    is_released = preset is not None and _trunk(preset) == _trunk(spec)
    return min(loaded, _RELEASED_BYTES.get(spec.name, loaded)) if is_released else loaded


def served_model_of(spec: ModelSpec) -> ServedModel | None:
    """The model of this table that the decoder is, whatever its attention was changed to; None for one that is none."""
    found = SERVED_MODELS.get(spec.name)
    return found if found is not None and _trunk(found.spec) == _trunk(spec) else None


def _trunk(spec: ModelSpec) -> tuple[int, ...]:
    return spec.layers, spec.hidden, spec.heads, spec.ffn, spec.vocab
