"""How long a model's operators take on this machine: measured in processes of their own, looked up by shape.

A figure is what one call costs inside a chain of calls, so it holds the framework's dispatch and autograd's bookkeeping
beside the kernel, as a step does. Seconds a rank, medians over repetitions and ranks. Nothing here imports torch.
"""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property

from suite.hardware.curve import Curve
from suite.parse import SpecError
from suite.stats import NOISY_SPREAD


class Timed(StrEnum):
    """The operators that are timed; beside each, its shape."""

    LINEAR = "linear"  # tokens, inputs, outputs
    LINEAR_BIAS = "linear-bias"  # the same
    RMS_NORM = "rms-norm"  # tokens, width
    LAYER_NORM = "layer-norm"  # tokens, width; with a bias
    ROTARY = "rotary"  # sequences, tokens of each, heads, rotated width, width; queries or keys
    FLASH = "flash-attention"  # sequences, tokens of each, heads, key-value heads, width; causal
    PADDED_FLASH = "padded-flash-attention"  # the same in both directions, with a bias on padding
    EAGER = "eager-attention"  # as either; the copy of its output into one run of memory included
    RECURRENCE = "recurrence"  # gates, sequences, tokens of each, width: a layer of three gates (GRU) or four (LSTM)
    MIXTURE = "mixture"  # suite.models.experts_sizes: router, gathered rows, experts, shared ones, weighted sums
    GELU = "gelu"  # tokens, width
    SWIGLU = "swiglu"  # tokens, width: silu(gate) * up
    ADD = "add"  # tokens, width: the residual stream
    CAST = "cast"  # tokens, width: autocast's copy of an input, its gradient widened again
    EMBEDDING = "embedding"  # sequences, tokens of each, rows, width
    POSITIONS = "positions"  # sequences, tokens of each, rows, width: places, their rows, the sum
    CROSS_ENTROPY = "cross-entropy"  # tokens, vocabulary; the head's product apart
    MEET = "meet"  # tokens, width: gradients of one tensor that two operators read, added up
    ACCUMULATE = "accumulate"  # elements: a weight's gradient added to that of earlier micro-batches
    CLIP = "clip"  # elements: one tensor's part of the norm, and scaling it
    ADAMW = "adamw"  # elements: one tensor's part of an update; fused
    ADAMW_FOREACH = "adamw-foreach"
    ADAMW_LOOP = "adamw-loop"
    SGD = "sgd"  # with momentum; fused


class Frame(StrEnum):
    """What a step does around its operators; seconds, each a key of a calibration's overheads."""

    STEP = "step.frame"  # a step of a model without operators: the learning rate, the losses' mean, an empty update
    MICRO_BATCH = "micro-batch.frame"  # its contexts, the engine's start, the division of its loss
    MODULE = "module.call"  # a module's call that does nothing
    BACKWARD = "backward.start"  # starting autograd's engine, which chains of operators pay once


class Format(StrEnum):
    """In what an operator computes: a type for everything, or autocast over fp32."""

    FP32 = "fp32"
    BF16 = "bf16"
    FP16 = "fp16"
    BF16_AUTOCAST = "bf16-autocast"
    FP16_AUTOCAST = "fp16-autocast"


@dataclass(frozen=True, slots=True, order=True)
class Crowd:
    """How the machine's cores are shared: so many ranks at once, each with so many threads."""

    ranks: int
    threads: int

    @classmethod
    def of(cls, ranks: int, cores: int) -> Crowd:
        """What ranks of one machine get. More ranks than cores take turns: what one needs alone is that of as many as
        there are cores, and the engine shares them out (`engine.Cores`)."""
        return cls(min(ranks, cores), max(1, cores // ranks))

    def __str__(self) -> str:
        ranks, threads = ("" if count == 1 else "s" for count in (self.ranks, self.threads))
        return f"{self.ranks} rank{ranks} at once with {self.threads} thread{threads} each"


@dataclass(frozen=True, slots=True)
class OperatorTime:
    """Seconds of one call. `inputs` and `weights` are the two parts of its backward pass: the first as it is where no
    weight wants a gradient, the second what is left of the whole."""

    operator: Timed
    shape: tuple[int, ...]
    format: Format
    ranks: int
    threads: int
    forward: float
    inputs: float
    weights: float
    iqr: float
    """of forward and backward together"""
    readings: int
    """of all ranks together"""

    @property
    def crowd(self) -> Crowd:
        """Beside whom it was measured."""
        return Crowd(self.ranks, self.threads)

    @property
    def seconds(self) -> float:
        """Forward and backward."""
        return self.forward + self.inputs + self.weights

    @property
    def is_noisy(self) -> bool:
        """Is the IQR more than suite.stats.NOISY_SPREAD of the median?"""
        return self.iqr > NOISY_SPREAD * self.seconds


@dataclass(frozen=True, slots=True)
class Seconds:
    """What one call takes, and in words what that rests on; empty where that very shape was measured."""

    forward: float
    inputs: float
    weights: float
    basis: str = ""


def work_of(operator: Timed, shape: tuple[int, ...]) -> float:
    """What an operator's time grows with: multiply-adds of products and attention, else elements."""
    if operator in (Timed.FLASH, Timed.PADDED_FLASH, Timed.EAGER):
        sequences, tokens, heads, _, width = shape
        return float(sequences * heads * tokens * tokens * width)
    if operator in (Timed.EMBEDDING, Timed.POSITIONS):
        sequences, tokens, rows, width = shape
        return float((sequences * tokens + rows) * width)  # its gradient is as large as the table
    if operator is Timed.RECURRENCE:
        return float(math.prod(shape) * shape[-1])
    if operator is Timed.MIXTURE:
        sequences, tokens, hidden, ffn, count, top_k, shared, *_, room = shape
        rows = sequences * (count * room if room else tokens * top_k)
        return float(((rows + sequences * tokens * shared) * 3 * ffn + sequences * tokens * count) * hidden)
    if operator is Timed.ROTARY:
        return float(math.prod(shape[:3]) * shape[-1])
    return float(math.prod(shape))


@dataclass(frozen=True)
class OperatorTimes:
    """Looks operators up."""

    times: tuple[OperatorTime, ...]

    @cached_property
    def _exact(self) -> dict[tuple[Timed, Format, Crowd, tuple[int, ...]], OperatorTime]:
        return {(time.operator, time.format, time.crowd, time.shape): time for time in self.times}

    @cached_property
    def _kinds(self) -> dict[tuple[Timed, Format, Crowd], list[OperatorTime]]:
        found: dict[tuple[Timed, Format, Crowd], list[OperatorTime]] = defaultdict(list)
        for time in self.times:
            found[time.operator, time.format, time.crowd].append(time)
        return dict(found)

    def seconds(self, operator: Timed, shape: tuple[int, ...], format: Format, crowd: Crowd) -> Seconds:
        """Of one call: as measured at that very shape, else on the straight line in the logs of work and time between
        the sizes around it; above the largest, the largest's rate; below the smallest, its time.

        Raises SpecError for an operator that was not measured in that format beside so many ranks.
        """
        found = self._exact.get((operator, format, crowd, shape))
        if found is not None:
            return Seconds(found.forward, found.inputs, found.weights)
        near = self._kinds.get((operator, format, crowd))
        if not near:
            raise SpecError(f"calibration.operators: {operator} in {format} for {crowd} was not measured; calibrate it")
        work = work_of(operator, shape)
        forward, inputs, weights = (
            _at(near, work, part) for part in (lambda t: t.forward, lambda t: t.inputs, lambda t: t.weights)
        )
        sizes = sorted(work_of(operator, time.shape) for time in near)
        how = "interpolated" if sizes[0] <= work <= sizes[-1] else "beyond what was measured"
        return Seconds(forward, inputs, weights, f"{operator} {'x'.join(map(str, shape))} {how}")


def _at(near: Iterable[OperatorTime], work: float, part: Callable[[OperatorTime], float]) -> float:
    """A part's seconds at so much work, from operators of one kind; 0 where some had none."""
    points: dict[float, list[float]] = defaultdict(list)
    for time in near:
        points[work_of(time.operator, time.shape)].append(part(time))
    middle = [(size, statistics.median(seconds)) for size, seconds in points.items()]
    if min(seconds for _, seconds in middle) <= 0:
        return 0.0
    curve = Curve.of(middle, "calibration")
    return curve.at(work) * max(1.0, work / curve.sizes[-1])
