"""What a rank's operators take on this machine's CPU: its ledger and a calibration, unit by unit. Seconds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property

from parallelism.data.fsdp import shard_elements, weight_ranks
from parallelism.simulator.cpu_operators import Use, format_of, optimizer_of, uses_of
from parallelism.simulator.plan import Cost, Unit
from suite.case import Case
from suite.formats import formats_of
from suite.hardware.calibration import Calibration
from suite.hardware.operator_times import Crowd, Format, Frame, Seconds, Timed
from suite.operators import Ledger, Operator, Segment, Weight

#: modules that a segment calls beside its norms and linears, whose chains call theirs (suite/models/decoder_module.py):
#: a block, its two halves, the attention core, two dropouts; the decoder, its table of rotary positions, its dropout
BLOCK_CALLS, MODEL_CALLS = 6, 3


@dataclass(frozen=True)
class CpuCosts:
    """Costs of one case's operators. `bases` collects what was not measured at its very shape."""

    case: Case
    calibration: Calibration
    bases: set[str] = field(default_factory=set, compare=False)

    @cached_property
    def crowd(self) -> Crowd:
        """How the case's ranks share the machine."""
        return self.calibration.crowd(self.case.cluster.per_node)

    @cached_property
    def format(self) -> Format:
        """In what they compute."""
        return format_of(self.case)

    def unit(self, segment: Segment) -> Unit:
        """A segment's passes for one micro-batch.

        Counted: every operator of the ledger, where gradients meet, what modules' calls cost, and adding a weight's
        gradient to that of the micro-batches before, spread evenly over all. Not counted: communication.
        """
        operators, recomputed = tuple(segment.operators()), segment.recomputed
        passes = self._passes(uses_of(self.case, operators))
        is_block = segment.name == "block"
        calls = BLOCK_CALLS if is_block else MODEL_CALLS if segment.name == "embedding" else 0
        frames = calls * self.calibration.overhead(Frame.MODULE)
        rerun = self._passes(uses_of(self.case, recomputed)).forward
        return Unit(
            name=segment.name,
            forward=Cost(passes.forward + frames),
            inputs=Cost(passes.inputs),
            weights=Cost(passes.weights + self._accumulation(segment.weights)),
            rerun=Cost(rerun + frames * _share(recomputed, operators)),
        )

    def micro_batch(self) -> float:
        """The trainer's frame of one micro-batch without a pipeline, the engine's start included."""
        return self.calibration.overhead(Frame.MICRO_BATCH)

    def finish(self, ledger: Ledger) -> Cost:
        """Clipping and updating what a rank holds, tensor by tensor, and the step's own frame."""
        seconds = self.calibration.overhead(Frame.STEP)
        for elements, count in updated_sizes(self.case, ledger).items():
            for timed in (Timed.CLIP, optimizer_of(self.case)):
                seconds += count * self._seconds(Use(timed, (elements,)), stored_format(self.case)).forward
        return Cost(seconds)

    def _accumulation(self, weights: Iterable[Weight]) -> float:
        """A step's first micro-batch leaves its gradients as they are made; a tied weight's second one is added
        too."""
        count = self.case.workload.micro_batches
        return sum(
            self._seconds(Use(Timed.ACCUMULATE, (weight.elements,)), stored_format(self.case)).forward
            * (1.0 if weight.tied_to else (count - 1) / count)
            for weight in weights
        )

    def _passes(self, uses: Iterable[Use]) -> Seconds:
        forward = inputs = weights = 0.0
        for use, count in Counter(uses).items():
            each = self._seconds(use, self.format)
            forward += count * each.forward
            inputs += count * each.inputs
            weights += count * each.weights
        return Seconds(forward, inputs, weights)

    def _seconds(self, use: Use, format: Format) -> Seconds:
        found = self.calibration.operator_times.seconds(use.operator, use.shape, format, self.crowd)
        if found.basis:
            self.bases.add(found.basis)
        return found


def _share(some: tuple[Operator, ...], operators: tuple[Operator, ...]) -> float:
    """How much of a segment's run is run again."""
    return len(some) / len(operators) if operators else 0.0


def stored_format(case: Case) -> Format:
    """In what parameters and the gradients that the update reads are."""
    return Format(formats_of(case).parameters.label)


def items_of(case: Case, ledger: Ledger) -> set[tuple[Use, Format]]:
    """Everything that a rank's costs look up: what a calibration measures to be exact on it."""
    found = {
        (use, format_of(case))
        for segment in ledger.counts
        for operators in (segment.operators(), segment.recomputed)
        for use in uses_of(case, operators)
    }
    made = {weight.elements for segment in ledger.counts for weight in segment.weights}
    kept = updated_sizes(case, ledger)
    finish = [(Timed.ACCUMULATE, made), (Timed.CLIP, kept), (optimizer_of(case), kept)]
    return found | {(Use(timed, (size,)), stored_format(case)) for timed, sizes in finish for size in sizes}


def updated_sizes(case: Case, ledger: Ledger) -> Counter[int]:
    """How many tensors of each size a rank clips and updates: whole, or its shards (parallelism/data/fsdp.py)."""
    weights = [weight for placed in ledger.segments for weight in placed.segment.weights if not weight.tied_to]
    return Counter(shard_elements(weight.values, weight_ranks(weight, case.layout), 0) for weight in weights)
