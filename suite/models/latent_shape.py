"""The sizes of multi-head latent attention. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass

from suite.parse import require


@dataclass(frozen=True)
class Latent:
    """Multi-head latent attention (arXiv:2405.04434, section 2.1.2): keys and values of all heads come from one
    compressed latent a token, beside a rotated key that all heads share. Elements, a token or a head."""

    kv_rank: int  # d_c: the latent that is cached
    rope_dim: int  # d_h^R: of the shared rotated key, which is cached too
    nope_dim: int  # of each head's key that is not rotated
    v_dim: int  # of each head's value
    q_rank: int = 0  # d_c': of the queries' own latent; 0: queries are projected directly

    def __post_init__(self) -> None:
        for name in ("kv_rank", "rope_dim", "nope_dim", "v_dim"):
            require(getattr(self, name) >= 1, f"model.latent.{name}: must be at least 1, got {getattr(self, name)}")
        require(self.q_rank >= 0, f"model.latent.q_rank: must be at least 0, got {self.q_rank}")
        require(self.rope_dim % 2 == 0, f"model.latent.rope_dim: rope rotates pairs; {self.rope_dim} is odd")
        require(
            self.v_dim <= self.key_dim,
            f"model.latent.v_dim: {self.v_dim} > rope_dim({self.rope_dim}) + nope_dim({self.nope_dim}); fused attention"
            " pads values to the width of keys, never the reverse",
        )

    @property
    def key_dim(self) -> int:
        """Width of each head's query and key, the rotated part and the other."""
        return self.rope_dim + self.nope_dim
