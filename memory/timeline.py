"""The walk of a step as a timeline: what a rank holds, by component, through every stretch and at its top."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from memory.estimate import MemoryModel
from memory.optimizer import optimizer_transient
from memory.state import Holding
from memory.step import StepWalk
from suite.record import Component, Moment
from suite.timeline import Span, Timeline

#: more points than a figure has units of width show nothing more
MOST_POINTS = 300
#: of a stretch, which may be all blocks of a model
STRETCH_POINTS = 128
#: micro-batches that the walk of a step goes through where they are alike and there is no pipeline
WALKED = 3


@dataclass
class _Points:
    """Points as they are met: place, bytes by component, and the moments among them."""

    held: Mapping[Component, int]
    in_optimizer: Mapping[Component, int]  # what its step needs in passing
    places: list[int] = field(default_factory=list)
    levels: list[dict[Component, int]] = field(default_factory=list)
    spans: list[Span] = field(default_factory=list)
    moments: dict[Moment, int] = field(default_factory=dict)

    def add(self, place: int, alive: Mapping[Component, int], moments: Sequence[Moment] = ()) -> None:
        self.places.append(place)
        parts = [self.held, alive, self.in_optimizer if Moment.OPTIMIZER_PEAK in moments else {}]
        self.levels.append({name: sum(part.get(name, 0) for part in parts) for part in parts for name in part})
        self.moments |= dict.fromkeys(moments, len(self.places) - 1)

    def end(self, window: Moment, until: int) -> None:
        if self.spans and self.spans[-1].window is window:
            self.spans.pop()
        if until > (self.spans[-1].until if self.spans else 0):
            self.spans.append(Span(window, until))


def timeline_of(model: MemoryModel, rank: int = 0) -> Timeline:
    """The timeline of a rank's step.

    Counted: what `MemoryModel.estimate` counts, but for `init`, which is before a steady step. At every moment the
    two are equal, component by component.
    """
    passing = optimizer_transient(model.case, model.ledger_of_rank(rank), rank)
    points = _Points(_sums(model.held(rank)), {passing.component: passing.nbytes} if passing else {})
    walk = model.step(rank)
    stops = _stops(walk)
    alive: Counter[Component] = Counter()
    points.add(0, alive, stops.get((0, 0), ()))
    start = 0
    for index, stretch in enumerate(walk.stretches):
        events = stretch.phase.events
        every = -(-len(events) // STRETCH_POINTS)
        for number, event in enumerate(events, start=1):
            alive[event.label.component] += event.nbytes
            if number in (stretch.phase.peak_at, len(events)) or not number % every or (index, number) in stops:
                points.add(start + number, alive, stops.get((index, number), ()))
        if not events:
            points.add(start, alive, stops.get((index, 0), ()) if index else ())
        start += len(events)
        points.end(stretch.window, start)
    margin = max(1, start // 8)
    if Moment.OPTIMIZER_PEAK not in points.moments:
        points.add(start + margin, alive, [Moment.OPTIMIZER_PEAK])
    points.add(start + 2 * margin, {}, [Moment.STEADY])
    points.end(Moment.OPTIMIZER_PEAK, points.places[-1])
    steps = model.case.workload.micro_batches
    walks_all = model.case.layout.pp > 1 or len(model.received.get(rank, ())) > 1
    return _thinned(points, rank, steps if walks_all else min(WALKED, steps))


def _sums(held: Iterable[Holding]) -> Counter[Component]:
    sums: Counter[Component] = Counter()
    for item in held:
        sums[item.component] += item.nbytes
    return sums


def _stops(walk: StepWalk) -> dict[tuple[int, int], list[Moment]]:
    """The moments by stretch and by events of it before them; the beginning of a stretch is the end of the last."""
    stops: dict[tuple[int, int], list[Moment]] = defaultdict(list)
    for moment, instant in walk.instants.items():
        index = instant.stretches
        events = walk.stretches[index].phase.peak_at if instant.is_inside else 0
        if index and not events:
            index, events = index - 1, len(walk.stretches[index - 1].phase.events)
        stops[index, events].append(moment)
    return stops


def _thinned(points: _Points, rank: int, micro_batches: int) -> Timeline:
    """The points that are kept: of every few the highest, and all the moments, the first and the last."""
    totals = [sum(level.values()) for level in points.levels]
    every = -(-len(totals) // MOST_POINTS)
    kept = {0, len(totals) - 1, *points.moments.values()}
    kept |= {max(range(start, min(start + every, len(totals))), key=totals.__getitem__)
             for start in range(0, len(totals), every)}  # fmt: skip
    order = sorted(kept)
    renamed = {old: new for new, old in enumerate(order)}
    parts = [part for part in Component if any(level.get(part) for level in points.levels)]
    return Timeline(
        rank,
        tuple(points.places[index] for index in order),
        {part: tuple(points.levels[index].get(part, 0) for index in order) for part in parts},
        {moment: renamed[index] for moment, index in points.moments.items()},
        tuple(points.spans),
        micro_batches,
    )
