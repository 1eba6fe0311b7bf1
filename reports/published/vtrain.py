"""vTrain's rows: Megatron-DeepSpeed on A100s, one node of 40 GB parts, many nodes of 80 GB parts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from parallelism.megatron.run import AttentionCore, MegatronRun
from parallelism.simulator.megatron.links import NodeLinks
from parallelism.simulator.megatron.rates import KernelRates
from parallelism.simulator.megatron.step import megatron_step_seconds
from parallelism.simulator.megatron.timed import Machine
from reports.published.answers import CannotModel
from reports.published.megatron_runs import megatron_run
from reports.published.step_time import StepTime
from reports.published.time_constants import FittedSet
from suite.hardware import device
from suite.layout import RecomputeKind
from suite.published import PublishedRow

FITTED = "megatron_a100"
FAMILIES = ("vtrain_single", "vtrain_multi")
#: where the search for the constants starts
START = {
    "matrix_share": 0.7, "memory_share": 0.8, "launch_s": 1e-5, "host_s": 5e-5, "host_batch_s": 1e-3,
    "latency_s": 5e-5, "network_share": 0.8,
}  # fmt: skip
WHAT = {
    "matrix_share": "of the datasheet's 16-bit peak, reached by matrix products",
    "memory_share": "of the datasheet's memory bandwidth, reached by the other kernels",
    "launch_s": "seconds of a kernel on the device beside its arithmetic or traffic",
    "host_s": "seconds of the host to issue a kernel or a collective",
    "host_batch_s": "seconds of the host before a micro-batch's first kernel",
    "latency_s": "seconds of a collective or a send beside its bytes, waiting for each other included",
    "network_share": "of 800 Gb/s a node, reached by collectives over nodes",
}
PROCESSORS = 108  # SMs of an A100: its whitepaper, table 4
#: bus bandwidth of an all-reduce of 17 GB among the 8 GPUs of a node, nccl-tests: hw_micro.csv hw-0059
INNER_BYTES_PER_SECOND = 234.89e9
NODE_BYTES_PER_SECOND = 800e9 / 8  # published/README.md, note 6
#: 175B parameters on tp 8 x pp 8 need 2.7e9 x 18 bytes a GPU: more than 40 GB
BIG = "a100-sxm-80gb"


def vtrain_step(row: PublishedRow, constants: Mapping[str, FittedSet]) -> StepTime:
    """The step of one of vTrain's rows."""
    fitted = constants[FITTED]
    described = megatron_run(row)
    run, name, assumed = _as_run(row, described.run)
    seconds = megatron_step_seconds(run, a100_machine(name, fitted.values))
    return StepTime(
        seconds, run.micro_batch * run.micro_batches * run.dp, run.seq_len, run.tp * run.pp * run.dp,
        "Megatron step, kernel by kernel", assumed=(*described.assumed, *assumed), fitted_on=fitted.rows,
    )  # fmt: skip


def a100_machine(name: str, values: Mapping[str, float], per_node: int = 8) -> Machine:
    """An A100 and its links by fitted constants; the part's datasheet gives peak and bandwidth."""
    part = device(name)
    peak, bandwidth = part.peak("fp16").value, part.memory_bandwidth_bytes_per_second.value
    if peak is None or bandwidth is None:
        raise CannotModel(f"{name}: its peak or its memory bandwidth is not known")
    rates = KernelRates(
        peak, bandwidth, PROCESSORS, matrix_share=values["matrix_share"], attention_share=values["matrix_share"],
        memory_share=values["memory_share"], launch_s=values["launch_s"], host_s=values["host_s"],
        host_batch_s=values["host_batch_s"],
    )  # fmt: skip
    links = NodeLinks(
        per_node, INNER_BYTES_PER_SECOND, NODE_BYTES_PER_SECOND * values["network_share"], values["latency_s"],
        values["latency_s"],
    )  # fmt: skip
    return Machine(rates, links)


def _as_run(row: PublishedRow, run: MegatronRun) -> tuple[MegatronRun, str, tuple[str, ...]]:
    """(run, device, what was assumed). One node: its fit rows are up to 225 TFLOP/s a GPU if forward passes are
    counted twice, unfused attention's traffic aside: no A100 does that, so they did not recompute."""
    run = replace(run, attention=AttentionCore.UNFUSED)
    if row.family == "vtrain_single":
        said = "no recomputation: with it the fit rows' matrix products would be faster than the device's peak"
        return replace(run, recompute=RecomputeKind.NONE), row.text("device"), (said,)
    return run, BIG, ("80 GB parts: 175B does not fit others",)
