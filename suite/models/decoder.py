"""The decoder family's specification: GPT-2's form, LLaMA's form, and what lies between. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from suite.models.base import ModelSpec
from suite.models.experts import Experts
from suite.models.latent_shape import Latent
from suite.parse import require, setting

#: more than any published model by far; beyond it an estimate would take minutes
MAX_LAYERS = 10_000


class Norm(StrEnum):
    """Normalisation of the residual stream before a sub-block."""

    LAYERNORM = "layernorm"
    RMSNORM = "rmsnorm"
    BATCHNORM = "batchnorm"  # over all tokens of a micro-batch, those to come included: no model of text is one


class Activation(StrEnum):
    """The MLP's non-linearity."""

    GELU = "gelu"  # two matrices; tanh form, as GPT-2
    GELU_EXACT = "gelu-exact"  # two matrices; by the error function (arXiv:1606.08415, section 2)
    SWIGLU = "swiglu"  # three matrices: down(silu(gate) * up)


class Position(StrEnum):
    """How a token knows its place."""

    LEARNED = "learned"  # a table added to the embedding
    ROPE = "rope"  # rotation of queries and keys
    ALIBI = "alibi"  # what is further away scores less, by a slope a head (arXiv:2108.12409)
    SINUSOIDAL = "sinusoidal"  # sines added to the embedding, which is scaled (arXiv:1706.03762, sections 3.4 and 3.5)


class Mixing(StrEnum):
    """What a token's query makes of the keys and values before it."""

    SOFTMAX = "softmax"  # weights that are exponentials of products
    LINEAR = "linear"  # weights that are products of features, and so a state of constant size (arXiv:2006.16236)


@dataclass(frozen=True)
class RopeScaling:
    """Llama 3.1's frequency scaling: wavelengths beyond the original context are stretched by `factor`."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_positions: int


@dataclass(frozen=True)
class DecoderSpec(ModelSpec):
    """A decoder-only transformer, pre-norm. h hidden, a heads of d, k key-value heads, f ffn, V vocab.

    Parameters: L (h a d + 2 h k d + a d h + (2 or 3) h f + norms + biases) + final norm + V h (+ V h untied)
    (+ positions h for a learned table).

    With `latent`, attention's part of them is h a d (through a latent of q elements: (h + a d) q + q), + (h + a d_nope
    + a d_v) c + c + h d_rope + a d_v h, c and q the ranks; head_dim d is that of a query or key, d_rope + d_nope, of
    which rope rotates d_rope (rotary_dim); every head has its own keys and values (kv_heads = heads).
    """

    layers: int = setting(2, "blocks")
    hidden: int = setting(128, "width of the residual stream")
    heads: int = setting(4, "query heads")
    ffn: int = setting(512, "width of the MLP")
    vocab: int = setting(2048, "rows of the embedding")
    max_positions: int = setting(1024, "longest sequence")
    kv_heads: int = setting(0, "key-value heads (0: as many as heads)")
    head_dim: int = setting(0, "width of a head (0: hidden / heads)")
    norm: Norm = setting(Norm.RMSNORM, "layernorm, rmsnorm or batchnorm")
    activation: Activation = setting(Activation.SWIGLU, "gelu, gelu-exact or swiglu")
    position: Position = setting(Position.ROPE, "learned, rope, alibi or sinusoidal")
    bias: bool = setting(False, "biases in every linear and norm")
    qkv_bias: bool = setting(False, "biases in the query, key and value projections alone")
    tied: bool = setting(False, "head shares the embedding's weight")
    rope_theta: float = setting(10000.0, "base of the rotation's frequencies")
    rope_fraction: float = setting(1.0, "leading part of each head that is rotated")
    rope_scaling: RopeScaling | None = setting(None, "Llama 3.1's frequency scaling")
    dropout: float = setting(0.0, "share of the embedding's and the sub-blocks' outputs that is dropped in training")
    norm_eps: float = setting(1e-5, "added under the norm's root")
    window: int | None = setting(None, "newest tokens that a query sees, its own included (none: all)")
    latent: Latent | None = setting(None, "multi-head latent attention's sizes (none: keys and values of their own)")
    mixing: Mixing = setting(Mixing.SOFTMAX, "softmax or linear attention")
    experts: Experts | None = setting(None, "a mixture of experts in place of the MLP (none: one MLP)")
    dense_layers: int = setting(0, "with experts: first blocks that have one MLP of width ffn instead")
    mtp: int = setting(0, "with experts: tokens beyond the next that are predicted in training, a block each")
    family: str = setting("decoder", "model family")
    name: str = setting("custom", "what reports call it")

    def __post_init__(self) -> None:
        object.__setattr__(self, "kv_heads", self.kv_heads or self.heads)
        if self.latent is not None:
            self._check_latent(self.latent)
        for name in ("layers", "hidden", "heads", "kv_heads", "ffn", "vocab", "max_positions"):
            size = getattr(self, name)
            require(size >= 1, f"model.{name}: must be at least 1, got {size}")
        require(self.layers <= MAX_LAYERS, f"model.layers: must be at most {MAX_LAYERS}, got {self.layers}")
        for name in ("rope_theta", "norm_eps"):
            value = getattr(self, name)
            require(0 < value < float("inf"), f"model.{name}: must be positive and finite, got {value}")
        require(0 <= self.dropout < 1, f"model.dropout: must be in [0, 1), got {self.dropout}")
        if not self.head_dim:
            require(
                self.hidden % self.heads == 0,
                f"model.heads: hidden({self.hidden}) % heads({self.heads}) != 0; give head_dim or other heads",
            )
            object.__setattr__(self, "head_dim", self.hidden // self.heads)
        require(self.head_dim >= 1, f"model.head_dim: must be at least 1, got {self.head_dim}")
        require(
            self.heads % self.kv_heads == 0,
            f"model.kv_heads: heads({self.heads}) % kv_heads({self.kv_heads}) != 0",
        )
        require(
            self.window is None or self.window >= 1,
            f"model.window: must be at least 1 where it is given, got {self.window}",
        )
        require(0 < self.rope_fraction <= 1, f"model.rope_fraction: must be in (0, 1], got {self.rope_fraction}")
        if self.position is Position.ROPE:
            require(
                self.rotary_dim >= 2 and self.rotary_dim % 2 == 0,
                f"model.head_dim: rope rotates pairs; {self.rotary_dim} rotated of {self.head_dim} is not even",
            )
        self._check_experts()
        self._check_linear()
        require(self.family == "decoder", f"model.family: {self.family!r} is not 'decoder'")

    @property
    def is_causal_decoder(self) -> bool:
        """Always."""
        return True

    def _check_experts(self) -> None:
        """Refuse what speaks of experts where there are none, and counts of blocks that are not there."""
        for name in ("dense_layers", "mtp"):
            count = getattr(self, name)
            require(count >= 0, f"model.{name}: must be at least 0, got {count}")
            require(
                count == 0 or self.experts is not None,
                f"model.{name}: {count} without experts, whose models have it; give experts, or leave it out",
            )
        is_swiglu = self.activation is Activation.SWIGLU and not self.bias
        require(
            self.experts is None or is_swiglu,
            f"model.experts: with model.activation({self.activation}), model.bias({self.bias}); experts are SwiGLUs"
            " without biases, as Mixtral's and DeepSeek's; use swiglu and no bias",
        )
        require(
            self.mtp == 0 or self.position is Position.ROPE,
            f"model.mtp: {self.mtp} with model.position({self.position}); further tokens are predicted with rope alone",
        )
        require(
            self.experts is None or self.dense_layers < self.layers,
            f"model.dense_layers: {self.dense_layers} of layers({self.layers}) leave no block with experts",
        )

    def _check_linear(self) -> None:
        """Refuse what linear attention has no place for."""
        if self.mixing is not Mixing.LINEAR:
            return
        require(
            self.position in (Position.LEARNED, Position.SINUSOIDAL),
            f"model.position: {self.position} with mixing(linear), whose weights are products of positive features that"
            " a rotation would turn negative and a bias cannot reach; use learned or sinusoidal",
        )
        require(
            self.kv_heads == self.heads,
            f"model.kv_heads: {self.kv_heads} with mixing(linear), where each of heads({self.heads}) has its own keys;"
            " leave it out",
        )
        require(
            self.window is None,
            f"model.window: {self.window} with mixing(linear), whose state forgets nothing; leave one of them out",
        )

    def _check_latent(self, latent: Latent) -> None:
        """Settle head_dim, and refuse what latent attention has no place for."""
        require(
            self.head_dim in (0, latent.key_dim),
            f"model.head_dim: {self.head_dim} with latent, whose heads are rope_dim({latent.rope_dim})"
            f" + nope_dim({latent.nope_dim}) = {latent.key_dim} wide; leave it out",
        )
        object.__setattr__(self, "head_dim", latent.key_dim)
        require(
            self.kv_heads == self.heads,
            f"model.kv_heads: {self.kv_heads} with latent, which makes keys and values for each of heads({self.heads});"
            " leave it out",
        )
        require(
            self.position is Position.ROPE,
            f"model.position: {self.position} with latent, whose rope_dim({latent.rope_dim}) is rotated; use rope",
        )
        require(
            self.rope_fraction == 1,
            f"model.rope_fraction: {self.rope_fraction} with latent, whose rope_dim({latent.rope_dim}) is what is"
            " rotated; leave it out",
        )
        require(
            not self.bias and not self.qkv_bias,
            f"model.bias: {self.bias}, model.qkv_bias: {self.qkv_bias} with latent, whose projections have none;"
            " use false",
        )
        require(self.window is None, f"model.window: {self.window} with latent is not modelled; leave one of them out")

    @property
    def q_dim(self) -> int:
        """Width of all queries together: heads x head_dim."""
        return self.heads * self.head_dim

    @property
    def kv_dim(self) -> int:
        """Width of all keys (or values, which a latent makes of a width of their own) together: kv_heads x head_dim."""
        return self.kv_heads * self.head_dim

    @property
    def rotary_dim(self) -> int:
        """Leading channels of each head that rope rotates."""
        return int(self.head_dim * self.rope_fraction) if self.latent is None else self.latent.rope_dim

    @property
    def projection_bias(self) -> bool:
        """Do the query, key and value projections carry a bias?"""
        return self.bias or self.qkv_bias
