"""When the steps of many plans of one shape end, worked out together: an action at a time, each number a row of lanes.

It is `program_of`'s longest path with the tasks of a run of units taken together: on a rank with nothing to gather or
reduce, a run ends when the device is through with it, or when the last kernel that its host issues is. Units that
gather or reduce are taken one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from parallelism.schedules.orders import Action, Pass
from parallelism.simulator.plan import Issue, StepPlan
from parallelism.simulator.program import reducing
from parallelism.simulator.stage_sums import GATHER, KINDS, REDUCE, RUN, RUNS, StageSums, UnitKind
from parallelism.simulator.turns import Turn

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Lanes = NDArray[np.float64]
else:
    Lanes = Any

#: where a kind of pass has its numbers
PLACE_OF_KIND = {kind: place for place, kind in enumerate(KINDS)}


@dataclass(frozen=True, eq=False)
class Ends:
    """Lanes of steps' seconds; of each pipeline rank, those before its first and after its last task on the device,
    and those that the device is busy."""

    total: Lanes
    idle: list[Lanes]
    busy: list[Lanes]


@dataclass(frozen=True, eq=False)
class Shape:
    """All that decides which tasks there are and what they wait for: a plan that is like all of them, the turns of its
    orders, and each stage's units where it gathers or reduces."""

    plan: StepPlan
    turns: Sequence[Turn]
    units: Sequence[tuple[UnitKind, ...]]


def ends_of(shape: Shape, sums: Sequence[Sequence[StageSums]], finish: Lanes, agree: Lanes) -> Ends:
    """Of plans of that shape; `finish` has a row for each pipeline rank, `agree` one, both a column for each plan."""
    import numpy as np

    numbers = _columns(sums)
    ranks = [_Rank(shape, numbers, place, np.maximum) for place in range(len(shape.plan.orders))]
    done: list[Lanes] = []
    for turn in shape.turns:
        arrived = None if turn.waits_for is None else done[turn.waits_for]
        done.append(ranks[turn.place].act(turn, arrived))
    return _finished(shape.plan, ranks, finish, agree)


def _columns(sums: Sequence[Sequence[StageSums]]) -> list[Lanes]:
    """Of each stage: a row of lanes for each of its numbers; stages that are the same in every plan share them."""
    import numpy as np

    known: dict[tuple[int, ...], Lanes] = {}
    found = []
    for stages in zip(*sums, strict=True):
        key = tuple(map(id, stages))
        if key not in known:
            known[key] = np.array([stage.row for stage in stages]).T.copy()
        found.append(known[key])
    return found


def _finished(plan: StepPlan, ranks: Sequence[_Rank], finish: Lanes, agree: Lanes) -> Ends:
    """Once everything is reduced: what the ranks agree on, then each rank's update."""
    import numpy as np

    ready = [rank.ready() for rank in ranks]
    if plan.agree:
        ready = [np.maximum.reduce(ready)] * len(ranks)
    starts = [np.maximum(start, rank.device) for start, rank in zip(ready, ranks, strict=True)]
    ends = [start + agree + finish[place] for place, start in enumerate(starts)]
    total = np.maximum.reduce(ends)
    idle = [total - end + rank.first for end, rank in zip(ends, ranks, strict=True)]
    busy = [rank.busy + agree + finish[place] for place, rank in enumerate(ranks)]
    return Ends(total, idle, busy)


@dataclass(eq=False)
class _Rank:
    """What a pipeline rank's queues are through with: the device, the host, gathers, reductions, sends."""

    shape: Shape
    numbers: Sequence[Lanes]
    place: int
    later: Callable[[Any, Any], Any]
    """The larger of two, lane by lane"""
    device: Any = 0.0
    host: Any = 0.0
    gathers: Any = 0.0
    reductions: Any = 0.0
    sends: Any = 0.0
    busy: Any = 0.0
    put_off: Any = 0.0  # reductions that wait for the end
    first: Any = None  # the device's first task starts
    recent: list[Any] = field(default_factory=list)  # ends of what the device ran
    acted: int = 0

    def __post_init__(self) -> None:
        plan = self.shape.plan
        order = plan.orders[self.place]
        self.reduces = reducing(order, plan.reduces_each)
        if plan.gathers is Issue.AT_END:
            for stage in dict.fromkeys(action.stage for action in order):
                for unit in self.shape.units[stage]:
                    if unit.gathers:
                        self._on_device(self.numbers[stage][unit.column + GATHER])
        streams = plan.gathers is not Issue.AT_END
        self.sharded = [streams and any(unit.gathers for unit in units) for units in self.shape.units]
        self.gathered = _gathering(plan, order, self.shape.units, self.reduces, self.sharded)

    def act(self, turn: Turn, arrived: Any) -> Lanes:
        """Run an action once its input is there; when its result is where it is used."""
        gathered, reduces = self.gathered[self.acted], self.reduces[self.acted]
        if gathered is None:
            self._whole(turn.action, arrived, reduces or self.sharded[turn.action.stage])
        else:
            self._by_unit(turn.action, arrived, gathered, reduces)
        self.acted += 1
        made = self.recent[-1]  # reduced or not
        if turn.sends_on is None:
            return made
        self.sends = self.later(self.sends, made) + self.numbers[turn.sends_on][0]
        return self.sends

    def _whole(self, action: Action, arrived: Any, is_by_unit: bool) -> None:
        rows, at = self.numbers[action.stage], RUNS + RUN * PLACE_OF_KIND[action.kind]
        issued = rows[at + 2] if is_by_unit else rows[at]
        start = self.device if arrived is None else self.later(self.device, arrived)
        if self.first is None:
            self.first = self.later(start, self.host)
        self.device = self.later(start + rows[at], self.host + issued)
        self.host = self.host + rows[at + 1]
        self.busy = self.busy + rows[at]
        self.recent.append(self.device)

    def _by_unit(self, action: Action, arrived: Any, gathered: frozenset[int], reduces: bool) -> None:
        plan, rows, units = self.shape.plan, self.numbers[action.stage], self.shape.units[action.stage]
        is_forward = action.kind is Pass.FORWARD
        at = 2 * PLACE_OF_KIND[action.kind]
        waits = arrived
        for index in range(len(units)) if is_forward else reversed(range(len(units))):
            unit = units[index]
            if index in gathered:
                there = self._gather(rows[unit.column + GATHER], plan.gathers_ahead[not is_forward])
                waits = there if waits is None else self.later(waits, there)
            self._on_device(rows[unit.column + at], self.host if waits is None else self.later(self.host, waits))
            self.host = self.host + rows[unit.column + at + 1]
            self.recent.append(self.device)
            waits = None
            if reduces and unit.reduces:
                self._reduce(rows[unit.column + REDUCE])

    def _gather(self, seconds: Lanes, ahead: int) -> Any:
        if self.shape.plan.gathers is Issue.BLOCKING and not ahead:
            self._on_device(seconds)
            return self.device
        after = self.recent[-1 - ahead] if len(self.recent) > ahead else 0.0
        self.gathers = self.later(self.gathers, after) + seconds
        return self.gathers

    def _reduce(self, seconds: Lanes) -> None:
        match self.shape.plan.reductions:
            case Issue.AT_END:
                self.put_off = self.put_off + seconds
            case Issue.BLOCKING:
                self._on_device(seconds)
            case Issue.STREAMS:
                self.reductions = self.later(self.reductions, self.device) + seconds

    def _on_device(self, seconds: Lanes, ready: Any = 0.0) -> None:
        start = self.later(self.device, ready)
        if self.first is None:
            self.first = start
        self.device, self.busy = start + seconds, self.busy + seconds

    def ready(self) -> Any:
        """When what the update waits for is done, but for what the device still reduces at once."""
        self._on_device(self.put_off)
        last = self.recent[-1] if self.shape.plan.reductions is Issue.BLOCKING else self.device
        return self.later(self.later(last, self.reductions), self.host)


def _gathering(
    plan: StepPlan,
    order: Sequence[Action],
    units: Sequence[tuple[UnitKind, ...]],
    reduces: Sequence[bool],
    sharded: Sequence[bool],
) -> list[frozenset[int] | None]:
    """Of each action that is taken unit by unit, the units that are gathered for it; None for those that are not: they
    neither gather nor reduce, nor come right before one that does, whose gathers may wait for the end of a unit."""
    found: list[frozenset[int] | None] = [None] * len(order)
    whole: list[set[int]] = [set() for _ in units]
    for place, action in enumerate(order):
        if not (sharded[action.stage] or (reduces[place] and units[action.stage])):
            continue
        is_forward, there = action.kind is Pass.FORWARD, whole[action.stage]
        missing = [index for index, unit in enumerate(units[action.stage]) if unit.gathers and index not in there]
        if missing or reduces[place]:
            found[place] = frozenset(missing)
        for back in range(max(0, place - 1 - max(plan.gathers_ahead)), place if missing else 0):
            if found[back] is None and sharded[order[back].stage]:
                found[back] = frozenset()
        stays = len(plan.orders) > 1 if not is_forward else plan.keeps_after_forward
        whole[action.stage] = {
            index for index, unit in enumerate(units[action.stage]) if stays or (is_forward and unit.is_kept)
        }
    return found
