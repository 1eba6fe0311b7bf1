"""A mixture of experts in place of a block's MLP: how many, who is chosen, how the load is kept even. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from suite.parse import require


class Scoring(StrEnum):
    """What a router makes of its logits."""

    SOFTMAX = "softmax"  # over all experts (arXiv:2401.04088, section 2.1; arXiv:2405.04434, section 2.2)
    SIGMOID = "sigmoid"  # of each alone (arXiv:2412.19437, equation 15)


class Balance(StrEnum):
    """What keeps experts evenly used."""

    NONE = "none"
    AUXILIARY = "auxiliary"  # a loss of each sequence's own balance (arXiv:2405.04434, equation 23)
    BIAS = "bias"  # added to scores when choosing, moved after every step by the load (arXiv:2408.15664)


class Dispatch(StrEnum):
    """What becomes of a token whose expert is full."""

    DROPLESS = "dropless"  # no expert is ever full
    CAPACITY = "capacity"  # an expert takes so many of each sequence's tokens, in their order; the rest are dropped


@dataclass(frozen=True)
class Experts:
    """Experts of a block, each an MLP of its own width; a token goes to its top_k by score.

    With groups, a token's experts come from its best top_groups groups of consecutive experts: a group's score is its
    best expert's where experts compete in a softmax (arXiv:2405.04434, section 2.2.2), the sum of its best two's under
    a sigmoid (arXiv:2412.19437, section 2.1.2).
    """

    count: int  # routed experts
    top_k: int  # of them a token goes to
    ffn: int  # width of each routed expert
    shared: int = 0  # experts that every token goes to, as one MLP of shared x ffn
    scoring: Scoring = Scoring.SOFTMAX
    normalized: bool = True  # are the chosen scores made to sum to one?
    scale: float = 1.0  # of what the routed experts add
    groups: int = 1
    top_groups: int = 1
    balance: Balance = Balance.NONE
    rate: float = 0.001  # coefficient of the auxiliary loss, or a step of the bias
    dispatch: Dispatch = Dispatch.DROPLESS
    capacity_factor: float = 1.25  # with capacity: an expert takes ceil(factor x top_k x seq_len / count) of a sequence

    def __post_init__(self) -> None:
        for name in ("count", "top_k", "ffn", "groups", "top_groups"):
            require(getattr(self, name) >= 1, f"model.experts.{name}: must be at least 1, got {getattr(self, name)}")
        require(self.shared >= 0, f"model.experts.shared: must be at least 0, got {self.shared}")
        require(
            self.count % self.groups == 0,
            f"model.experts.groups: count({self.count}) % groups({self.groups}) != 0",
        )
        require(
            self.top_groups <= self.groups,
            f"model.experts.top_groups: {self.top_groups} > groups({self.groups})",
        )
        most = self.count // self.groups * self.top_groups
        require(
            self.top_k <= most,
            f"model.experts.top_k: {self.top_k} > {most} experts that a token may go to"
            f" (count({self.count}) / groups({self.groups}) * top_groups({self.top_groups}))",
        )
        for name in ("scale", "rate", "capacity_factor"):
            value = getattr(self, name)
            require(0 < value < float("inf"), f"model.experts.{name}: must be positive and finite, got {value}")

    def capacity(self, seq_len: int) -> int:
        """Tokens of one sequence that an expert takes: ceil(capacity_factor x top_k x seq_len / count), at most all."""
        return min(seq_len, -int(-self.capacity_factor * self.top_k * seq_len // self.count))
