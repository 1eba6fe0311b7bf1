"""Simulation: a step that was simulated, and what a user asks of it: its parts, speed, utilisation, what bounds it."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import cast

from parallelism.simulator.engine import Times, run
from parallelism.simulator.parts import critical_place, parts_of
from parallelism.simulator.plan import COMMUNICATION, Part, StepPlan
from parallelism.simulator.program import STREAMS, Label, Program, Stream, program_of
from parallelism.simulator.step_flops import StepFlops, step_flops
from suite.case import Case
from suite.hardware import device, matmul_dtype
from suite.parse import require
from suite.record import TimeEstimate

TERA = 1e12
#: those on which a rank communicates with its own groups; what a stage sends counts where it arrives
OWN_STREAMS = (Stream.COMPUTE, Stream.GATHER, Stream.REDUCE)

#: what each part is, and what waits for it or what it waits for
MEANING = {
    Part.COMPUTE: "kernels of the forward and backward passes, which wait for the device alone",
    Part.RECOMPUTE: "forward kernels run again, which the backward pass waits for",
    Part.OPTIMIZER: "clipping and the update, which the next step waits for",
    Part.HOST: "the device waits for its host to issue kernels",
    Part.TENSOR: "the next operator waits for tensor-parallel collectives",
    Part.CONTEXT: "attention waits for the sequence's other parts",
    Part.EXPERT: "experts wait for their rows, and tokens for their outputs",
    Part.GATHER: "a block waits for its parameters to be gathered",
    Part.REDUCTION: "the update waits for gradients to be reduced",
    Part.PIPELINE: "a stage waits for activations or gradients on their way from another",
    Part.NORM: "the update waits for what all ranks agree on",
    Part.BUBBLE: "nothing to do: another stage, or another rank, is not ready",
}


@dataclass(frozen=True, slots=True)
class Communication:
    """Seconds of one kind of communication on a rank: all of it, and what the rank had to wait for."""

    total: float
    exposed: float

    @property
    def hidden(self) -> float:
        """What went on beside compute."""
        return max(0.0, self.total - self.exposed)

    @property
    def hidden_share(self) -> float:
        """Of the total; 0 where there is none."""
        return self.hidden / self.total if self.total else 0.0


@dataclass(frozen=True)
class Utilization:
    """Model TFLOP/s of a rank, and the share of the datasheet peak under one convention; None where no peak is known.

    MFU never counts what is recomputed, HFU does (arXiv:2204.02311, appendix B; arXiv:2205.05198, section 6.3).
    """

    tflops_per_gpu: float
    mfu: float | None
    hfu: float | None


@dataclass(frozen=True)
class Simulation:
    """One optimizer step, simulated. Parts and communication are those of one pipeline rank, `place`."""

    case: Case
    plan: StepPlan
    program: Program = field(repr=False)
    times: Times = field(repr=False)
    place: int
    basis: str = ""
    """which rates and links it rests on, in words"""

    @cached_property
    def step_seconds(self) -> float:
        """From the first task of any rank to the last."""
        return self.times.total

    @property
    def tokens_per_second(self) -> float:
        """Over all ranks."""
        return self.case.tokens_per_step / self.step_seconds

    @cached_property
    def parts(self) -> dict[Part, float]:
        """Seconds of each part on the reported rank; they sum to the step."""
        return parts_of(self.program, self.times, self.place)

    @cached_property
    def flops(self) -> tuple[StepFlops, StepFlops]:
        """Of a rank in a step: what a causal model needs, and with attention's masked half."""
        return step_flops(self.case)

    @cached_property
    def peak_flops_per_second(self) -> float | None:
        """The device's dense datasheet peak in the step's format; None where no source states one."""
        return device(self.case.cluster.device).peak(matmul_dtype(self.case.workload.precision)).value

    @property
    def causal(self) -> Utilization:
        """With what a causal model needs."""
        return self._utilization(self.flops[0])

    @property
    def full_attention(self) -> Utilization:
        """With attention's masked half counted too."""
        return self._utilization(self.flops[1])

    @cached_property
    def communication(self) -> dict[Part, Communication]:
        """By kind, those of which there are any: on the reported rank's own streams, and what other stages send it."""
        totals = _communication(self.program, self.times, self.place)
        return {part: Communication(totals[part], self.parts[part]) for part in Part if totals.get(part)}

    @property
    def bottleneck(self) -> Part:
        """The largest part."""
        return max(self.parts, key=self.parts.__getitem__)

    @property
    def overhead(self) -> Part | None:
        """The largest part but compute; None where compute is all there is."""
        largest = max((part for part in self.parts if part is not Part.COMPUTE), key=self.parts.__getitem__)
        return largest if self.parts[largest] else None

    @property
    def estimate(self) -> TimeEstimate:
        """What records and reports keep of it."""
        causal = self.causal
        return TimeEstimate(
            step_seconds=self.step_seconds,
            tokens_per_second=self.tokens_per_second,
            tflops_per_gpu=causal.tflops_per_gpu,
            mfu=causal.mfu,
            hfu=causal.hfu,
            parts_seconds={part.value: seconds for part, seconds in self.parts.items()},
            basis=self.basis,
            mfu_full_attention=self.full_attention.mfu,
        )

    def _utilization(self, flops: StepFlops) -> Utilization:
        peak, seconds = self.peak_flops_per_second, self.step_seconds
        rate, hardware = flops.model / seconds, flops.hardware / seconds
        return Utilization(rate / TERA, peak and rate / peak, peak and hardware / peak)


def simulate(case: Case, plan: StepPlan, basis: str = "", place: int | None = None) -> Simulation:
    """Run a case's plan. The rank reported is `place`, else the pipeline rank that computes longest.

    Raises SpecError for a plan whose step takes no time, or a place that is not there, and Deadlock.
    """
    require(place is None or 0 <= place < len(plan.orders), f"place: {place}, of {len(plan.orders)} pipeline ranks")
    program = program_of(plan)
    times = run(program.graph, program.sharing)
    require(times.total > 0, f"plan: the step takes {times.total} s; it needs a unit that takes time")
    chosen = critical_place(program, times) if place is None else place
    return Simulation(case, plan, program, times, chosen, basis)


def _communication(program: Program, times: Times, place: int) -> dict[Part, float]:
    """Seconds on links by kind: what a rank's own streams do, and each message that it waits for."""
    found: dict[Part, float] = {}
    graph = program.graph
    own = [task for stream in OWN_STREAMS for task in program.tasks_of.get(place * STREAMS + stream, [])]
    computed = program.tasks_of[place * STREAMS + Stream.COMPUTE]
    arrived = [each for task in computed for each in graph.after[task] if graph.queue[each] % STREAMS == Stream.SEND]
    for task in (*own, *arrived):
        part = cast(Label, graph.label[task]).part
        if part in COMMUNICATION:
            found[part] = found.get(part, 0.0) + times.end[task] - times.start[task]
    return found
