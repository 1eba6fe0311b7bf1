"""How large a model is and what a token of it costs: parameters and FLOPs, in all and those that a token uses."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from suite.case import Case
from suite.layout import Recompute
from suite.models import DecoderSpec, ModelSpec
from suite.models.experts_layers import active_parameters, idle_parameters
from suite.models.ledgers import ledger_of
from suite.operators import Ledger
from suite.spec import Workload
from suite.tape import FP32, Backend

#: forward, and twice as much backward: a multiply-add is two
FLOPS_A_WEIGHT = 6


@dataclass(frozen=True)
class Counts:
    """Of a whole model, on no matter how many ranks."""

    parameters: int
    """all that are trained, multi-token prediction's included"""
    active: int
    """those that one token's forward pass uses"""
    flops: float
    """model FLOPs of one token in training, of the experts that it goes to, half of attention masked"""
    flops_full_attention: float
    """with attention's masked half"""
    flops_all_experts: float
    """were every routed expert computed for every token"""

    def to_mapping(self) -> dict[str, Any]:
        """Two entries of `estimate --json`, beside `parameters`."""
        return {
            "active_parameters": self.active,
            "flops_per_token": {
                "active": self.flops,
                "active_full_attention": self.flops_full_attention,
                "all_experts": self.flops_all_experts,
            },
        }


def counts_of(case: Case, ledger: Ledger) -> Counts:
    """A case's counts; `ledger` is of the whole model. Of an encoder-decoder a token is one of the source.

    FLOPs: matrix products and attention, forward and backward, recomputation not counted (arXiv:2204.02311, appendix
    B). A router's product is one of them; with capacity, empty places of experts are computed and counted.
    """
    work, spec = case.workload, case.model
    tokens = work.micro_batch * work.seq_len
    flops = ledger.flops(causal=True) / tokens
    return Counts(
        ledger.parameters, active_of(spec, ledger.parameters), flops, ledger.flops() / tokens,
        flops + FLOPS_A_WEIGHT * idle_parameters(spec),
    )  # fmt: skip


def active_of(spec: ModelSpec, parameters: int) -> int:
    """Of a model's parameters those that one token's forward pass uses: without experts all of them, and never what
    predicts tokens beyond the next, which only training has."""
    if isinstance(spec, DecoderSpec) and spec.mtp:
        parameters = parameters_of(replace(spec, mtp=0))
    return active_parameters(spec, parameters)


def parameters_of(spec: ModelSpec) -> int:
    """Parameters of a model, by its operator ledger."""
    return ledger_of(spec, Workload(seq_len=8), Recompute(), FP32, Backend.CUDA).parameters
