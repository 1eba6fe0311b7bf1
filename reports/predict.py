"""Case -> what the formulas say of it: memory and traffic of every rank and time of a step, as a run records it."""

from __future__ import annotations

from dataclasses import dataclass, replace

from memory.estimate import MemoryModel, representative_ranks
from memory.timeline import timeline_of
from parallelism.simulator.roofline import bubble_share, estimate_time
from parallelism.traffic import estimate_traffic
from suite.case import Case
from suite.hardware import MatmulDtype, device, matmul_dtype
from suite.hardware.matrix_rate import MatrixRates
from suite.operators import Ledger, OperatorKind
from suite.passes import ON_RANKS, Pass, on_ranks
from suite.record import TimeEstimate
from suite.spec import AttentionKernel
from suite.store import EstimateRow

#: why there is no time
FP8_BASIS = "fp8: attention and the head run in bf16 beside it, and a step of two rates is not modelled"


@dataclass(frozen=True)
class Predictor:
    """Predicts cases. `rates` are this machine's measured matrix rates, None where nothing was measured."""

    rates: MatrixRates | None = None
    passes: tuple[Pass, ...] = ON_RANKS
    """what is measured, and so what is predicted; of memory alone the sums are kept, neither terms nor timeline"""

    def __call__(self, case: Case) -> EstimateRow:
        """The row of a case: memory, its timeline and traffic of its ranks, time of its step."""
        model = MemoryModel(case)
        ranks = representative_ranks(case.layout)
        keeps_terms = Pass.MEMORY in self.passes and on_ranks(self.passes) != (Pass.MEMORY,)
        memory = [model.estimate(rank) for rank in ranks if Pass.MEMORY in self.passes]
        traffic = [
            estimate_traffic(case, model.ledger_of_share(rank), rank) for rank in ranks if Pass.TRAFFIC in self.passes
        ]
        return EstimateRow(
            case_id=case.case_id,
            case=case.to_mapping(),
            memory=tuple(memory) if keeps_terms else tuple(found.summed() for found in memory),
            time=self.time(case, model) if Pass.TRAIN in self.passes else None,
            traffic=tuple(traffic),
            timelines=tuple(timeline_of(model, rank) for rank in ranks if keeps_terms),
        )

    def time(self, case: Case, memory: MemoryModel) -> TimeEstimate:
        """Time of a step: the FLOPs of the rank that computes most, over the device's matrix rate, and the pipeline's
        bubble. Utilisation counts a rank's even share of the model's FLOPs."""
        layout, steps = case.layout, case.workload.micro_batches
        dtype, hardware, whole = matmul_dtype(case.workload.precision), device(case.cluster.device), memory.ledger
        share = steps / (layout.tp * layout.cp * layout.pp)
        busiest = max(map(memory.ledger_of_rank, representative_ranks(layout)), key=lambda own: _executed(case, own))
        rate, basis = self._rate(case, busiest, dtype)
        if dtype is MatmulDtype.FP8:
            rate, basis = None, FP8_BASIS
        elif rate is None:
            achieved = hardware.achieved(dtype)
            rate, basis = achieved.value, f"{hardware.product}: {achieved.source}"
        model = whole.flops(causal=True) * share
        time = estimate_time(
            case,
            flops_model=model,
            flops_hardware=model + whole.recompute_flops(causal=True) * share,
            flops_executed=_executed(case, busiest) * steps,
            rate_flops_per_second=rate,
            peak_flops_per_second=hardware.peak(dtype).value,
            basis=basis if rate is not None or dtype is MatmulDtype.FP8 else hardware.product,
            bubble=bubble_share(layout, steps),
        )
        if time.mfu is None:
            return time
        return replace(time, mfu_full_attention=time.mfu * whole.flops() / whole.flops(causal=True))

    def _rate(self, case: Case, ledger: Ledger, dtype: MatmulDtype) -> tuple[float | None, str]:
        """The rate at which this case's products run here: each at the rate of its own shape."""
        if self.rates is None or case.cluster.device != "cpu":
            return None, ""
        ranks = case.cluster.per_node  # those that share a machine
        if not any((rate.dtype, rate.ranks) == (dtype, ranks) for rate in self.rates.rates):
            return None, ""
        flops = seconds = 0.0
        basis = ""
        for m, n, k, count in _products(ledger):
            found = self.rates.rate(dtype, ranks, m, n, k)
            work = 6.0 * m * n * k * count
            flops, seconds = flops + work, seconds + work / found.flops_per_second
            basis = basis or found.basis
        return (flops / seconds, basis) if seconds else (None, "")


def _executed(case: Case, own: Ledger) -> float:
    """FLOPs of a micro-batch that a rank's kernels really do: flash attention skips the masked half."""
    skips = case.workload.attention is AttentionKernel.FLASH
    return own.flops(causal=skips) + own.recompute_flops(causal=skips)


def _products(ledger: Ledger) -> list[tuple[int, int, int, int]]:
    """(tokens, outputs, inputs, how often) of every matrix product of the forward pass."""
    products = []
    for segment, count in ledger.counts.items():
        for operator in segment.operators():
            if operator.kind is OperatorKind.MATMUL:
                n, k = (size.value for size in operator.weights[0].shape)
                products.append((operator.flops.forward // (2 * n * k), n, k, count))
    return products


def product_shapes(cases: list[Case]) -> tuple[tuple[int, int, int], ...]:
    """The distinct (m, n, k) that these cases multiply, for a measurement that is exact on them."""
    shapes = {(m, n, k) for case in cases for m, n, k, _ in _products(MemoryModel(case).ledger_of_rank(0))}
    return tuple(sorted(shapes))
