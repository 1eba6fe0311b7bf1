"""The model's FLOPs of a step, a rank's even share of them, under both conventions of attention."""

from __future__ import annotations

from dataclasses import dataclass

from suite.case import Case
from suite.formats import formats_of
from suite.models.ledgers import ledger_of
from suite.tape import Backend


@dataclass(frozen=True, slots=True)
class StepFlops:
    """FLOPs of one rank in one step: the model's, forward and backward, and those that recomputation adds.

    Counted: matrix products and attention (arXiv:2204.02311, appendix B). Not counted: norms, activation functions,
    softmax, the loss, the update.
    """

    model: float
    recomputed: float

    @property
    def hardware(self) -> float:
        """With what is recomputed: HFU's numerator. The model's alone is MFU's."""
        return self.model + self.recomputed


def step_flops(case: Case) -> tuple[StepFlops, StepFlops]:
    """What a causal model needs, and the same with the masked half of attention counted too, as PaLM's MFU has it."""
    layout, cuda = case.layout, case.cluster.device != "cpu"
    backend = Backend.CUDA if cuda else Backend.CPU
    whole = ledger_of(case.model, case.workload, layout.recompute, formats_of(case).numerics, backend)
    share = case.workload.micro_batches / (layout.tp * layout.cp * layout.pp)
    causal, full = (
        StepFlops(whole.flops(causal=skips) * share, whole.recompute_flops(causal=skips) * share)
        for skips in (True, False)
    )
    return causal, full
