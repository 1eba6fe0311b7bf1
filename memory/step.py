"""A whole training step on one rank: the segments' walks end to end, with what the strategy adds between them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from memory.events import Chain, Event, Label, Phase, gradient_label, phase_of
from memory.leftovers import leftovers
from memory.micro_batch import Gathering, MicroScripts, plain_scripts, sharded_scripts
from memory.scripts import Form, form_of
from memory.units import Unit, exchange_of, micro_of, shards_of, unit_of
from memory.walk import SegmentWalk, WalkRules, walk_segment
from memory.zero_walk import Acts, acts_of
from parallelism.data import replicate
from suite.case import Case
from suite.formats import formats_of
from suite.memo import Memo
from suite.operators import Ledger, Segment
from suite.record import Component, Moment
from suite.tape import Backend, Numerics

#: which moment is the highest instant of a stretch
FORWARD, LOSS, BACKWARD = Moment.FORWARD_PEAK, Moment.LOSS, Moment.BACKWARD_PEAK


@dataclass(frozen=True)
class Stretch:
    """Events of one phase; `level` names the moment that is read at its end, if one is."""

    phase: Phase | Chain
    window: Moment
    level: Moment | None = None


@dataclass(frozen=True)
class Instant:
    """Where a moment is: after so many stretches."""

    stretches: int
    is_inside: bool  # at the highest instant of the next one, else where it begins
    nbytes: int  # above what is held between steps


@dataclass(frozen=True)
class StepWalk:
    """The stretches of a step. Bytes are relative to what the rank holds between steps."""

    stretches: tuple[Stretch, ...]

    @cached_property
    def instants(self) -> dict[Moment, Instant]:
        """Each moment's place and height: the highest of its window, or the last such level."""
        found: dict[Moment, Instant] = {}
        height = 0
        for index, stretch in enumerate(self.stretches):
            top = height + stretch.phase.peak
            best = found.get(stretch.window)
            if best is None or top > best.nbytes:
                found[stretch.window] = Instant(index, True, top)
            height += stretch.phase.net
            if stretch.level is not None:
                found[stretch.level] = Instant(index + 1, False, height)
        return found

    @property
    def highest(self) -> int:
        """Bytes at the highest instant."""
        return max(instant.nbytes for instant in self.instants.values())

    @property
    def after_backward(self) -> int:
        """Bytes when the backward pass is over."""
        return self.instants[Moment.AFTER_BACKWARD].nbytes

    def compositions(self) -> Iterator[tuple[Moment, Mapping[Label, int]]]:
        """What is alive at each moment, by label."""
        places = sorted(self.instants.items(), key=lambda item: item[1].stretches)
        sums: dict[Label, int] = {}
        done = 0
        for moment, instant in places:
            for phase, times in _counted(self.stretches[done : instant.stretches]):
                _add(sums, phase.change, times)
            done = instant.stretches
            here = dict(sums)
            if instant.is_inside:
                phase = self.stretches[done].phase
                _add(here, phase.composition(phase.peak_at))
            yield moment, here


def _counted(stretches: Iterable[Stretch]) -> Iterator[tuple[Phase | Chain, int]]:
    """Each phase and how often it comes: a pipeline's micro-batches share theirs."""
    counts: dict[int, tuple[Phase | Chain, int]] = {}
    for stretch in stretches:
        key = id(stretch.phase)
        counts[key] = (stretch.phase, counts[key][1] + 1 if key in counts else 1)
    return iter(counts.values())


def _add(sums: dict[Label, int], change: Mapping[Label, int], times: int = 1) -> None:
    for label, nbytes in change.items():
        sums[label] = sums.get(label, 0) + nbytes * times


def walk_step(
    case: Case, ledgers: Sequence[Ledger], numerics: Numerics, backend: Backend, rank: int = 0, memo: Memo | None = None
) -> StepWalk:
    """One optimizer step. `ledgers`: of every micro-batch, or the one of all; then micro-batches between the second and
    the last are like the second, and three are walked at most."""
    last = case.workload.micro_batches - 1
    stretches: list[Stretch] = []
    engine, memo = acts_of(case, ledgers[0], rank, backend), memo or Memo()
    for index in sorted({0, min(1, last), last}) if len(ledgers) == 1 else range(len(ledgers)):
        ledger = ledgers[0] if len(ledgers) == 1 else ledgers[index]
        stretches += _MicroBatch(case, ledger, numerics, backend, index, engine, memo).walk()
    if engine is not None:
        stretches.append(Stretch(engine.update(), Moment.OPTIMIZER_PEAK))
    return StepWalk(tuple(stretches))


def reduced_gradients(numerics: Numerics) -> Label:
    """What autograd makes where a strategy reduces gradients and frees them."""
    return gradient_label(Component.TRANSIENTS, "gradients before they are reduced", numerics.weights.nbytes)


class _MicroBatch:
    def __init__(
        self, case: Case, ledger: Ledger, numerics: Numerics, backend: Backend, index: int, engine: Acts | None,
        memo: Memo,
    ) -> None:  # fmt: skip
        self.case = case
        self.engine = engine
        self.memo = memo
        self.ledger = ledger
        self.layout = case.layout
        self.is_first, self.is_last = index == 0, index == case.workload.micro_batches - 1
        self.is_sharded = case.layout.fsdp > 1
        self.gradient = reduced_gradients(numerics)
        self.exchange = exchange_of(case, numerics, backend)
        self.micro = micro_of(case.layout, index, case.workload.micro_batches)
        # autograd adds to the whole gradients that it finds; those that were converted FSDP2 adds to itself
        finds_whole = self.micro.has_whole and not self.exchange.converts
        self.accumulate = finds_whole if self.is_sharded else index > 0 and (engine is None or engine.accumulates)

    def walk(self) -> list[Stretch]:
        """Its stretches."""
        walks = self._walks()
        if self.engine is None:
            form, slots = self.memo.once(("form", self.memo.name(self.ledger)), self._form), self._slots(walks)
        else:
            form, slots = self._form(tuple(range(len(self.ledger.segments)))), self._woven(walks, self.engine)
        scripts = self._scripts(form)
        stretches = [
            Stretch(Chain(scripts.forward, slots), FORWARD, Moment.AFTER_FORWARD),
            Stretch(Chain(scripts.loss, slots), LOSS),
            Stretch(Chain(scripts.backward, slots), BACKWARD),
        ]
        if self.engine is not None:
            stretches.append(Stretch(self.engine.end_backward(self.is_first, self.is_last), BACKWARD))
        return [*stretches, Stretch(self._leftovers(), BACKWARD, Moment.AFTER_BACKWARD)]

    # --- segments ---------------------------------------------------------------------------------------

    def _form(self, kinds: Sequence[object] = ()) -> Form:
        return self.memo.same(form_of(self.ledger, kinds or [placed.segment for placed in self.ledger.segments]))

    def _walks(self) -> dict[Segment, SegmentWalk]:
        keeps_whole = self.engine is None or self.engine.keeps_whole
        gradient = self.gradient if self.is_sharded or not keeps_whole else None
        key = "walks", self.memo.name(self.ledger), gradient, self.accumulate
        return self.memo.once(key, lambda: self._segment_walks(gradient))

    def _segment_walks(self, gradient: Label | None) -> dict[Segment, SegmentWalk]:
        """Each distinct segment once, the last first: a tied weight's gradient waits for its owner."""
        walks: dict[Segment, SegmentWalk] = {}
        awaiting: dict[str, bool] = {}
        for placed in reversed(self.ledger.segments):
            segment = placed.segment
            if segment not in walks:
                walks[segment] = walk_segment(segment, self._rules(segment, gradient, dict(awaiting)))
                awaiting |= walks[segment].waiting
        return {segment: walks[segment] for segment in self.ledger.counts}

    def _rules(self, segment: Segment, gradient: Label | None, awaiting: Mapping[str, bool]) -> WalkRules:
        kept = Component.LOSS if segment.name in self.ledger.loss else Component.ACTIVATIONS
        if gradient is not None:
            return WalkRules(kept, gradient.component, gradient.name, self.accumulate, awaiting)
        return WalkRules(kept, accumulate=self.accumulate, awaiting=awaiting)

    def _slots(self, walks: Mapping[Segment, SegmentWalk]) -> list[Phase]:
        """What fills a script's slots: of every distinct segment, each stretch."""
        key = "slots", self.memo.name(walks)
        return self.memo.once(key, lambda: self._filled(
            part for walk in walks.values() for part in (walk.forward, walk.uncache, walk.backward)
        ))  # fmt: skip

    def _woven(self, walks: Mapping[Segment, SegmentWalk], engine: Acts) -> list[Phase]:
        """The same of every placed segment, with what an engine does in between: each differs, and order matters."""
        placed = self.ledger.segments
        forward = [engine.weave(walks[each.segment].forward, each) for each in placed]
        backward = [engine.weave(walks[each.segment].backward, each) for each in reversed(placed)]
        uncache = [walks[each.segment].uncache for each in placed]
        triples = zip(forward, uncache, reversed(backward), strict=True)
        return self._filled(part for triple in triples for part in triple)

    def _filled(self, parts: Iterable[Phase]) -> list[Phase]:
        return [_shared(self.ledger, 1), _shared(self.ledger, -1), *parts]

    # --- the strategy's ---------------------------------------------------------------------------------

    def _scripts(self, form: Form) -> MicroScripts:
        if not self.is_sharded:
            return self.memo.once(("scripts", self.memo.name(form)), lambda: plain_scripts(form))
        layout = self.layout
        gathering = Gathering(
            self.exchange, self.micro, self.gradient, layout.forward_prefetch, layout.backward_prefetch,
            layout.reshard_after_forward is not False,
        )  # fmt: skip
        key = "units", self.memo.name(self.ledger), shards_of(layout)
        units, root = self.memo.once(key, lambda: self.memo.same(self._units(form)))
        key_of_scripts = "sharded scripts", self.memo.name(form), self.memo.name(units), self.memo.name(root), gathering
        return self.memo.once(key_of_scripts, lambda: sharded_scripts(form, dict(units), root, gathering))

    def _units(self, form: Form) -> tuple[tuple[tuple[int, Unit], ...], Unit]:
        """The unit of each kind of block, and the root's: everything else."""
        placed, ranks = self.ledger.segments, shards_of(self.layout)
        blocks = {form.pattern[place]: placed[place].segment for place in form.blocks if form.is_block(place)}
        rest = [weight for each in placed if not each.prefix for weight in each.segment.weights]
        return tuple((kind, unit_of(each.weights, *ranks)) for kind, each in blocks.items()), unit_of(rest, *ranks)

    def _leftovers(self) -> Phase:
        layout = self.layout
        key = (
            "leftovers", self.memo.name(self.ledger), self.is_last, layout.shard_ranks, layout.expert_replica_ranks,
            layout.tp, layout.reduction,
            layout.sequence_parallel, layout.bucket_mib, replicate.is_used(layout), formats_of(self.case),
        )  # fmt: skip
        return self.memo.once(key, lambda: leftovers(self.case, self.ledger, self.is_last))


def _shared(ledger: Ledger, sign: int) -> Phase:
    """What is made once a micro-batch comes (1) or goes (-1)."""
    source = "made once a micro-batch, read by every block"
    return phase_of(
        Event(sign * array.nbytes, Label(Component.ACTIVATIONS, array.name, array.formula, array.nbytes, source))
        for array in ledger.shared
    )
