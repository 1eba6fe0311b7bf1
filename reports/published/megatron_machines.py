"""Machines that published Megatron-LM runs were timed on: datasheets, microbenchmarks, and what was fitted on rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from parallelism.simulator.megatron.plan import Options, Reduction, Sends
from parallelism.simulator.megatron.rates import KernelRates
from parallelism.simulator.megatron.ring_links import RingLinks
from parallelism.simulator.megatron.timed import Machine, TensorOverlap
from reports.published.answers import CannotModel
from reports.published.time_constants import FittedSet

Values = Mapping[str, float]

#: of a network card's rate, what messages of many megabytes reach
NETWORK_SHARE = 0.85
GBIT = 1e9 / 8
#: once round a ring of eight A100s beside the bytes: all-reduces of hw-0045..0053, 1 to 256 MiB, are 200 GB/s and twice
#: this within 20 %
RING_LATENCY_S = 45e-6

#: names of the fitted constants, and what they are
SHARE = {
    "matrix_share": "of the datasheet's 16-bit peak, reached by large matrix products in a run, which holds the power"
    " limit longer than a benchmark does"
}
JEAN_ZAY = SHARE | {"unaligned_share": "of that, by products with a width that is no multiple of 64"}
B200 = SHARE | {
    "half_waves": "waves of tiles at which a product reaches half of that",
}


@dataclass(frozen=True)
class Source:
    """A source's machine by its fitted set of constants, what its runs were launched with, and what is assumed."""

    fitted: str
    machine: Callable[[Values], Machine]
    options: Options
    assumed: tuple[str, ...] = ()


def _a100(values: Values, node_gigabits_per_second: float) -> Machine:
    """An A100-SXM-80GB in nodes of eight.

    half_waves: swiglu and geglu products of hw-0198 and hw-0363..0366, 254 to 262 TFLOP/s. half_depth: one tile's fill.
    memory_share and launch_s: layer norms of hw-0217..0221, 0.03 to 0.32 ms. beside_collective: 24 of NCCL's channels,
    a processor each, of 108. attention_share: the first flash attention's 25 to 50 % of the peak (arXiv:2307.08691,
    section 1); it tells for InternEvo and Megatron's golden run alone.
    """
    rates = KernelRates(
        peak_flops_per_second=312e12, bytes_per_second=2.039e12, processors=108, matrix_share=values["matrix_share"],
        half_waves=0.45, half_depth=128.0, unaligned_share=values.get("unaligned_share", 1.0), memory_share=0.82,
        attention_share=0.35, launch_s=4e-6, beside_collective=108 / 84,
    )  # fmt: skip
    outer = NETWORK_SHARE * node_gigabits_per_second * GBIT
    return Machine(rates, RingLinks(8, 200e9, outer, inner_latency_s=RING_LATENCY_S, outer_latency_s=RING_LATENCY_S))


def _b200(values: Values) -> Machine:
    """A node of B200s. NVLink: hw-0090, 673 GB/s among four. Its ring's latency, launches and shares of the memory's
    bandwidth and, for attention, of the peak are taken as an A100's or a little better: no microbenchmark tells."""
    rates = KernelRates(
        peak_flops_per_second=2250e12, bytes_per_second=7.672e12, processors=148, matrix_share=values["matrix_share"],
        half_waves=values["half_waves"], half_depth=128.0, attention_share=0.45, memory_share=0.85, launch_s=3e-6,
    )  # fmt: skip
    return Machine(rates, RingLinks(8, 673e9, 8 * 400 * GBIT * NETWORK_SHARE, inner_latency_s=RING_LATENCY_S))


_BLOCKING = Options(sends=Sends.BLOCKING)
_BUCKETS = Options(sends=Sends.BLOCKING, reduction=Reduction.OVERLAPPED)
_OVERLAPPED = Options(sends=Sends.BLOCKING, tensor=TensorOverlap.BACKWARD)

#: by the row's `family`. Selene's constant is fitted on another source's runs of eight tensor-parallel A100s, for its
#: own have no fit rows.
SOURCES = {
    "korthikanti": Source(
        "megatron_selene", lambda values: _a100(values, 8 * 200), _OVERLAPPED,
        ("tensor-parallel collectives of backward products beside the other half of them",),
    ),
    "sc21": Source("megatron_selene", lambda values: _a100(values, 8 * 200), _BLOCKING),
    "zero_bubble": Source(
        "megatron_zero_bubble", lambda values: _a100(values, 4 * 200), _BLOCKING, ("four 200 Gb/s cards a node",)
    ),
    "bigscience": Source("megatron_jean_zay", lambda values: _a100(values, 4 * 100), _BLOCKING),
    "internevo": Source(
        "megatron_internevo", lambda values: _a100(values, 4 * 100), _BUCKETS,
        ("InternEvo as Megatron with gradients reduced beside the backward pass", "weights gathered over all replicas"),
    ),
    "megatron_golden": Source("megatron_selene", lambda values: _a100(values, 8 * 200), _OVERLAPPED),
    "simumax_b200": Source("megatron_b200", _b200, _BLOCKING),
}  # fmt: skip


def machine_of(source: Source, sets: Mapping[str, FittedSet]) -> Machine:
    """With the values of its fitted set. CannotModel where the set is not recorded."""
    if source.fitted not in sets:
        raise CannotModel(f"{source.fitted}: no set of constants of that name is recorded")
    return source.machine(sets[source.fitted].values)
