"""What the engine is told of a step: stages of units, what each costs and sends. Frameworks differ in nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum, auto
from functools import cached_property

from parallelism.schedules.orders import Action
from suite.parse import require


class Part(StrEnum):
    """What a second of a step is spent on. On the rank that is reported they sum to the step's time."""

    COMPUTE = "compute"
    RECOMPUTE = "recompute"  # forward work run again for the backward pass
    OPTIMIZER = "optimizer"  # clipping, the update
    HOST = "host"  # the device waits for kernels to be issued
    TENSOR = "tensor_communication"  # the rest of what is exposed: nothing hides it
    CONTEXT = "context_communication"
    EXPERT = "expert_communication"  # rows to experts and their outputs back
    GATHER = "gather_communication"  # parameters, FSDP and ZeRO
    REDUCTION = "reduction_communication"  # gradients
    PIPELINE = "pipeline_communication"  # activations between stages
    NORM = "norm_communication"  # clipping's norm, and what else the ranks agree on once a step
    BUBBLE = "bubble"  # nothing to do: another stage, or another rank, is not ready

    @property
    def is_communication(self) -> bool:
        """Is it time on a link?"""
        return self in COMMUNICATION


COMMUNICATION = frozenset(
    {Part.TENSOR, Part.CONTEXT, Part.EXPERT, Part.GATHER, Part.REDUCTION, Part.PIPELINE, Part.NORM}
)


@dataclass(frozen=True, slots=True)
class Cost:
    """What a run of operators takes on one rank, in seconds, each kind alone.

    `compute` is the device's kernels; `host` what the host needs to issue them, ahead of the device where it can be;
    `blocking` is communication that those very operators wait for, by what it is for.
    """

    compute: float = 0.0
    host: float = 0.0
    blocking: tuple[tuple[Part, float], ...] = ()

    def __add__(self, other: Cost) -> Cost:
        sums = dict(self.blocking)
        for part, seconds in other.blocking:
            sums[part] = sums.get(part, 0.0) + seconds
        return Cost(self.compute + other.compute, self.host + other.host, tuple(sums.items()))

    def times(self, count: float) -> Cost:
        """So often."""
        blocking = tuple((part, seconds * count) for part, seconds in self.blocking)
        return Cost(self.compute * count, self.host * count, blocking)

    @property
    def seconds(self) -> float:
        """On the device, with what it waits for; the host's time is beside it."""
        return self.compute + sum(seconds for _, seconds in self.blocking)


NOTHING = Cost()


@dataclass(frozen=True, slots=True)
class Unit:
    """A run of operators that is gathered and reduced together: a block, the embedding, the head with the loss.

    `inputs` and `weights` are the two halves of its backward pass, `rerun` what is recomputed before it. `gather`: one
    all-gather of its parameters; `reduce`: the reduction that can start once its backward pass is over (of its own
    gradients, or of the buckets that they complete).
    """

    name: str
    forward: Cost
    inputs: Cost
    weights: Cost
    rerun: Cost = NOTHING
    gather: float = 0.0
    reduce: float = 0.0
    is_kept: bool = False
    """stays gathered from its forward to its backward pass; in a pipeline to the end of the step"""
    apart: tuple[Cost, Cost] = (NOTHING, NOTHING)
    """what the halves, inputs and weights, take on top where they are run apart"""

    @property
    def backward(self) -> Cost:
        """Both halves, without what is rerun."""
        return self.inputs + self.weights


@dataclass(frozen=True)
class StagePlan:
    """A pipeline stage: its units in forward order; `send`: seconds that its output needs to the next stage, and the
    gradient of its input to the one before."""

    units: tuple[Unit, ...]
    send: float = 0.0

    @cached_property
    def is_sharded(self) -> bool:
        """Does anything have to be gathered?"""
        return any(unit.gather for unit in self.units)


class Issue(StrEnum):
    """How communication of parameters and gradients meets compute."""

    BLOCKING = auto()  # the rank waits for each at once: one queue does all
    STREAMS = auto()  # streams of their own: hidden as far as there is compute to hide it
    AT_END = auto()  # reductions after the last backward pass, gathers before the first forward pass


@dataclass(frozen=True)
class StepPlan:
    """One optimizer step. `orders`: what each pipeline rank runs; stage numbers index `stages`.

    `finish` is each pipeline rank's clipping and update, once all gradients are reduced; `agree` a collective of all
    pipeline ranks before it (the norm), in seconds, where 0 means that none waits for another.
    """

    orders: tuple[tuple[Action, ...], ...]
    stages: tuple[StagePlan, ...]
    finish: tuple[Cost, ...]
    agree: float = 0.0
    gathers: Issue = Issue.STREAMS
    reductions: Issue = Issue.STREAMS
    gathers_ahead: tuple[int, int] = (1, 1)
    """units whose gather may start before the unit before them is done: forward, backward"""
    keeps_after_forward: bool = False
    reduces_each: bool = False
    """gradients are reduced after every micro-batch, not once"""
    slowdown: float = 1.0
    """time of compute beside communication over its time alone"""
    cores: tuple[float, float] | None = None
    """cores of the machine, and how many each rank can use: ranks that share a machine's CPU"""
    ranks_a_place: int = 1
    """ranks on that machine that do the same as each pipeline rank here"""

    def __post_init__(self) -> None:
        require(len(self.finish) == len(self.orders), f"finish: {len(self.finish)} for {len(self.orders)} ranks")
        require(self.slowdown >= 1, f"slowdown: must be at least 1, got {self.slowdown}")

    @cached_property
    def place_of_stage(self) -> dict[int, int]:
        """The pipeline rank that holds a stage."""
        return {action.stage: place for place, order in enumerate(self.orders) for action in order}
