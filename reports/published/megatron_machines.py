"""Machines that published Megatron-LM runs were timed on: datasheets, microbenchmarks, and what was fitted on rows."""

from __future__ import annotations

from dataclasses import dataclass, replace

from parallelism.simulator.megatron.plan import Options, Sends
from parallelism.simulator.megatron.rates import KernelRates
from parallelism.simulator.megatron.ring_links import RingLinks
from parallelism.simulator.megatron.timed import Machine, TensorOverlap
from reports.published.answers import CannotModel
from reports.published.fitted import Fitted


@dataclass(frozen=True)
class Source:
    """A source's machine, what its runs were launched with, what was assumed of them, and the rows behind it."""

    machine: Machine
    options: Options
    assumed: tuple[str, ...]
    fitted: tuple[Fitted, ...]

    @property
    def rows(self) -> tuple[str, ...]:
        """Every row that a constant of it was fitted on."""
        return tuple(row for constant in self.fitted for row in constant.rows)


#: shares of the peak that large products reach in a run, which holds a device's power limit longer than a benchmark
#: does. One a cluster: clocks, cooling and what runs beside the products differ.
_A100_SHARE = Fitted(
    0.84,
    ("vtrain_multi-0018", "vtrain_multi-0019", "vtrain_multi-0037", "vtrain_multi-0067", "vtrain_multi-0070",
     "vtrain_multi-0097", "vtrain_multi-0109"),
    "matrix_share of an A100 in runs of 8 tensor-parallel ranks: least squares (vtrain-m015, 64 sequences at once, is left"
    " out)",
)  # fmt: skip
_ZERO_BUBBLE_SHARE = Fitted(
    0.715,
    ("zero_bubble-0033", "zero_bubble-0058", "zero_bubble-0251", "zero_bubble-0259"),
    "matrix_share of zero-bubble's A100s, without tensor parallelism: least squares",
)
_BIGSCIENCE = ("bigscience-0007", "bigscience-0058", "bigscience-0326")
_BIGSCIENCE_SHARE = Fitted(0.66, _BIGSCIENCE, "matrix_share of bigscience's A100s under DeepSpeed, least squares")
_UNALIGNED_SHARE = Fitted(0.64, _BIGSCIENCE, "unaligned_share of an A100, least squares with the share above")
_SIMUMAX = ("simumax_b200-0001", "simumax_b200-0006", "simumax_b200-0009", "simumax_b200-0012")
_B200_SHARE = Fitted(0.56, _SIMUMAX, "matrix_share of a B200 in a run, least squares with the two below")
_B200_WAVES = Fitted(4.0, _SIMUMAX, "half_waves of a B200")
_B200_LATENCY = Fitted(60e-6, _SIMUMAX, "inner_latency_s of a B200's collectives: a ring's one way round")

#: half_waves: swiglu and geglu products of hw-0198 and hw-0363..0366, 254 to 262 TFLOP/s; half_depth: one tile's fill;
#: memory_share and launch_s: layer norms of hw-0217..0221, 0.03 to 0.32 ms; beside_collective: 24 of NCCL's channels,
#: a processor each, of 108; attention_share: no row of these sources but fused ones depends on it
A100 = KernelRates(
    peak_flops_per_second=312e12, bytes_per_second=2.039e12, processors=108, matrix_share=_A100_SHARE.value,
    half_waves=0.45, half_depth=128.0, attention_share=0.5, memory_share=0.82, launch_s=4e-6,
    beside_collective=108 / 84,
)  # fmt: skip
#: NVLink as hw-0045..0053 have it, 1 to 256 MiB within 15 %: 200 GB/s and 45 us once round
_A100_INNER = 200e9
_A100_LATENCY = 45e-6
#: of a network card's rate, what messages of many megabytes reach
_NETWORK_SHARE = 0.85
_GBIT = 1e9 / 8
B200 = KernelRates(
    peak_flops_per_second=2250e12, bytes_per_second=7.672e12, processors=148, matrix_share=_B200_SHARE.value,
    half_waves=_B200_WAVES.value, half_depth=128.0, attention_share=0.45, memory_share=0.85, launch_s=3e-6,
)  # fmt: skip


def _a100_links(node_bits_per_second: float) -> RingLinks:
    return RingLinks(
        per_node=8, inner_bytes_per_second=_A100_INNER, outer_bytes_per_second=_NETWORK_SHARE * node_bits_per_second,
        inner_latency_s=_A100_LATENCY, outer_latency_s=_A100_LATENCY,
    )  # fmt: skip


SELENE = Machine(A100, _a100_links(8 * 200 * _GBIT))
ROCE = Machine(replace(A100, matrix_share=_ZERO_BUBBLE_SHARE.value), _a100_links(4 * 200 * _GBIT))
JEAN_ZAY = Machine(
    replace(A100, matrix_share=_BIGSCIENCE_SHARE.value, unaligned_share=_UNALIGNED_SHARE.value),
    _a100_links(4 * 100 * _GBIT),
)
#: hw-0090: 673 GB/s within four devices
B200_NODE = Machine(B200, RingLinks(8, 673e9, 8 * 400 * _GBIT * _NETWORK_SHARE, _B200_LATENCY.value))

_BLOCKING = Options(sends=Sends.BLOCKING)
_OVERLAPPED = Options(sends=Sends.BLOCKING, tensor=TensorOverlap.BACKWARD)

SOURCES = {
    "korthikanti": Source(
        SELENE, _OVERLAPPED, ("gradients' all-reduces beside weight gradients, as its section 6 says",), (_A100_SHARE,)
    ),
    "sc21": Source(SELENE, _BLOCKING, (), (_A100_SHARE,)),
    "zero_bubble": Source(ROCE, _BLOCKING, ("four 200 Gb/s cards a node",), (_ZERO_BUBBLE_SHARE,)),
    "bigscience": Source(
        JEAN_ZAY, _BLOCKING, ("four 100 Gb/s Omni-Path links a node",), (_BIGSCIENCE_SHARE, _UNALIGNED_SHARE)
    ),
    "simumax_b200": Source(B200_NODE, _BLOCKING, (), (_B200_SHARE, _B200_WAVES, _B200_LATENCY)),
}


def source_of(family: str) -> Source:
    """The machine of a source of rows. CannotModel where none is described."""
    if family not in SOURCES:
        raise CannotModel(f"{family}: its machine is not described")
    return SOURCES[family]
