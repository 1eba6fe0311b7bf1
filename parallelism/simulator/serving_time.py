"""How long a served case's prompts take to read, and one token more of every sequence to make."""

from __future__ import annotations

from dataclasses import dataclass

from parallelism.simulator.roofline import Roofline
from parallelism.simulator.serving_cpu import CpuServing
from parallelism.simulator.serving_gpu import GpuRates, gpu_message_seconds
from parallelism.simulator.serving_work import decode_parts, prefill_parts
from suite.case import Case
from suite.hardware.calibration import Calibration
from suite.parse import require
from suite.record import CacheTerm


@dataclass(frozen=True)
class ServingTime:
    """Seconds until every sequence has its first token, and from one token to the next of all of them."""

    prefill_seconds: float
    decode_seconds: float
    basis: str  # where the rates come from, in words


def serving_time(case: Case, cache: tuple[CacheTerm, ...], calibration: Calibration | None = None) -> ServingTime:
    """Times of a served case whose decode steps read that cache, of one rank: the last token of the answers
    (`serving_work.middle_of` gives the case of the middle one). SpecError where a rate is not known."""
    if case.cluster.device == "cpu":
        require(
            calibration is not None,
            "cluster.device: 'cpu': times rest on a calibration: `kv --measure` measures one, and `bench` of served"
            " cases keeps one in its folder",
        )
        assert calibration is not None
        here = CpuServing(case, calibration)
        return ServingTime(here.prefill_seconds, here.decode_seconds, here.basis)
    rates, prompt = GpuRates(case), case.workload.seq_len
    chunk = min(case.serving.prefill_tokens or prompt, prompt)
    passes, rest = divmod(prompt, chunk)
    said = passes * gpu_message_seconds(case, chunk) + (gpu_message_seconds(case, rest) if rest else 0.0)
    return ServingTime(
        rates.seconds(prefill_parts(case)) + said,
        rates.seconds(decode_parts(case, cache)) + gpu_message_seconds(case, 1),
        rates.basis,
    )


def roofline_of(case: Case) -> Roofline:
    """The rates that bound a case's kernels on its device. SpecError where one is not known, and for the CPU, whose
    operators are timed whole."""
    require(
        case.cluster.device != "cpu",
        "cluster.device: 'cpu' has no roofline: its operators are timed whole; name a GPU",
    )
    return GpuRates(case).roofline


def tokens_per_second(case: Case, time: ServingTime) -> float:
    """Of all answers while they are made, on all replicas; a beam's copies make one answer."""
    return case.workload.micro_batch * case.layout.data_ranks / time.decode_seconds
