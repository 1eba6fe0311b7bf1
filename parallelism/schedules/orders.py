"""Pipeline schedules: the order in which each rank runs its micro-batches forward and backward."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import accumulate

from parallelism.schedules.stages import stages_of_rank
from suite.case import Case
from suite.layout import Layout, Schedule


class Pass(StrEnum):
    """What is done with a micro-batch on a stage."""

    __hash__ = str.__hash__  # equal to that of the letter; Enum's own is slow where much is looked up

    FORWARD = "F"
    BACKWARD = "B"  # gradients of inputs and weights together
    INPUT = "I"  # gradients of inputs alone: the previous stage waits for them
    WEIGHT = "W"  # gradients of weights alone: nobody waits


@dataclass(frozen=True, slots=True)
class Action:
    """One pass of one micro-batch on one stage, as in 3F0."""

    stage: int
    kind: Pass
    micro_batch: int

    def __str__(self) -> str:
        return f"{self.stage}{self.kind}{self.micro_batch}"


def schedule_order(case: Case, pp_rank: int) -> tuple[Action, ...]:
    """Everything a pipeline rank computes in a step, in order."""
    return order_of(case.layout, case.workload.micro_batches, pp_rank)


def order_of(layout: Layout, micro_batches: int, pp_rank: int) -> tuple[Action, ...]:
    """The same for any number of micro-batches that the schedule takes. Passes that DualPipeV overlaps come in turn."""
    if layout.schedule is Schedule.ZBV:
        return _zbv(layout.pp, micro_batches, pp_rank)
    if layout.schedule is Schedule.DUAL_PIPE_V:
        return _dual_pipe_v(layout.pp, micro_batches, pp_rank)
    return _loop(layout, micro_batches, pp_rank)


def kept(order: Iterable[Action]) -> list[int]:
    """(Stage, micro-batch) pairs whose activations a rank keeps after each action: from F to B, or from F to W."""
    steps = {Pass.FORWARD: 1, Pass.BACKWARD: -1, Pass.INPUT: 0, Pass.WEIGHT: -1}
    return list(accumulate(steps[action.kind] for action in order))


# --- stages round and round: rank, rank + pp, ... ----------------------------------------------------------------


def micro_batches_a_round(layout: Layout, micro_batches: int) -> int:
    """Micro-batches that a stage takes before the rank's next stage has its turn (all of them with one stage)."""
    if layout.virtual_stages == 1:
        return micro_batches
    return micro_batches // max(1, micro_batches // layout.pp)


def warm_up(layout: Layout, micro_batches: int, pp_rank: int) -> int:
    """Forward passes of a rank before forward and backward take turns (loop schedules).

    GPipe: all. 1F1B: one for each rank that is still to come. Interleaved: a round of every stage but the last, and
    two a coming rank, for the first gradient's way back; one a coming rank where only inputs' gradients go back.
    Sources: arXiv:1811.06965 section 2.3, arXiv:2104.04473 section 2.2, arXiv:2401.10241 section 2.
    """
    later, total = layout.pp - 1 - pp_rank, micro_batches * layout.virtual_stages
    if layout.schedule is Schedule.GPIPE:
        return total
    hop = 2 if layout.schedule is Schedule.INTERLEAVED else 1
    rounds = (layout.virtual_stages - 1) * micro_batches_a_round(layout, micro_batches)
    return min(total, rounds + hop * later)


def _loop(layout: Layout, micro_batches: int, pp_rank: int) -> tuple[Action, ...]:
    """GPipe, 1F1B, interleaved 1F1B, interleaved zero-bubble."""
    mine, size = stages_of_rank(layout, pp_rank), micro_batches_a_round(layout, micro_batches)
    rounds = [range(start, start + size) for start in range(0, micro_batches, size)]
    forwards = [(stage, item) for part in rounds for stage in mine for item in part]
    backwards = [(stage, item) for part in rounds for stage in reversed(mine) for item in part]
    warm, splits = warm_up(layout, micro_batches, pp_rank), layout.schedule.splits_backward
    # weights lag a rank's place behind their inputs, which fills the gaps that the ranks before it would wait in
    lag = pp_rank if splits else len(backwards)
    line: list[Action] = []

    # warm-up: forward alone
    line += [Action(stage, Pass.FORWARD, item) for stage, item in forwards[:warm]]
    # steady: a forward, a backward; cool-down: backward alone
    for place, (stage, item) in enumerate(backwards):
        if warm + place < len(forwards):
            line.append(Action(forwards[warm + place][0], Pass.FORWARD, forwards[warm + place][1]))
        line.append(Action(stage, Pass.INPUT if splits else Pass.BACKWARD, item))
        if place >= lag:
            line.append(Action(backwards[place - lag][0], Pass.WEIGHT, backwards[place - lag][1]))
    # the weights that are left
    if splits:
        line += [Action(stage, Pass.WEIGHT, item) for stage, item in backwards[max(0, len(backwards) - lag) :]]
    return tuple(line)


# --- stages down the ranks and up again: rank and 2 pp - 1 - rank -----------------------------------------------


@dataclass
class _Line:
    """A rank's actions, micro-batches numbered as they come on each stage."""

    actions: list[Action] = field(default_factory=list)
    done: Counter[tuple[int, Pass]] = field(default_factory=Counter)
    waiting: deque[Action] = field(default_factory=deque)

    def add(self, stage: int, kinds: str) -> None:
        """The next micro-batch of each kind on the stage; kinds as letters, in order."""
        for kind in map(Pass, kinds):
            item = self.done[stage, Pass.INPUT if kind is Pass.BACKWARD else kind]
            self.actions.append(Action(stage, kind, item))
            for part in (Pass.INPUT, Pass.WEIGHT) if kind is Pass.BACKWARD else (kind,):
                self.done[stage, part] += 1
            if kind is Pass.INPUT:
                self.waiting.append(Action(stage, Pass.WEIGHT, item))

    def oldest_weight(self) -> None:
        """The weights that have waited longest, if any do."""
        if self.waiting:
            self.actions.append(self.waiting.popleft())


def _zbv(pp: int, micro_batches: int, pp_rank: int) -> tuple[Action, ...]:
    """arXiv:2405.15362, figure 1; fewer micro-batches than 2 pp - 1 run as that many with gaps."""
    down, up, later = pp_rank, 2 * pp - 1 - pp_rank, pp - pp_rank
    count = max(2 * pp - 1, micro_batches)
    line = _Line()

    # warm-up: until the first micro-batch has gone down and come up again
    line.add(down, "F" * (2 * later - 1))
    for _ in range(pp_rank):
        line.add(up, "F")
        line.add(down, "F")
    for _ in range(later):
        line.add(up, "FIW")
    # steady: one pass of each kind on both stages
    for _ in range(count - pp):
        line.add(down, "FIW" if line.done[down, Pass.FORWARD] < count else "IW")
        line.add(up, "FIW")
    # cool-down: inputs first, the weights that were put off last
    for _ in range(pp_rank):
        line.add(down, "I")
        line.add(up, "I")
    for _ in range(later):
        line.add(down, "IW")
    line.add(up, "W" * (line.done[up, Pass.INPUT] - line.done[up, Pass.WEIGHT]))
    line.add(down, "W" * (line.done[down, Pass.INPUT] - line.done[down, Pass.WEIGHT]))
    return tuple(action for action in line.actions if action.micro_batch < micro_batches)


def _dual_pipe_v(pp: int, micro_batches: int, pp_rank: int) -> tuple[Action, ...]:
    """DeepSeek-V3's DualPipe (arXiv:2412.19437, section 3.2.1), cut in half so that no weights are held twice."""
    down, up, later = pp_rank, 2 * pp - 1 - pp_rank, pp - 1 - pp_rank
    line = _Line()

    # warm-up: down, then both ways, then the last stages' first gradients
    line.add(down, "F" * (2 * later))
    for _ in range(pp_rank + 1):
        line.add(down, "F")
        line.add(up, "F")
    for _ in range(later):
        line.add(up, "I")
        line.oldest_weight()
        line.add(up, "F")
    # steady: forward one way while backward goes the other
    for _ in range(micro_batches - 2 * pp + pp_rank + 1):
        line.add(down, "F")
        line.add(up, "B")
        line.add(up, "F")
        line.add(down, "B")
    # cool-down: no forward is left on the way down, then none at all; weights are put off in the second half of it
    for _ in range(later):
        line.add(up, "BF")
        line.add(down, "B")
    for place in range(2 * (pp_rank + 1)):
        line.add(down if place % 2 else up, "B" if place <= pp_rank else "I")
    for _ in range(later):
        line.oldest_weight()
        line.add(down, "I")
    while line.waiting:
        line.oldest_weight()
    return tuple(line.actions)


# --- how much is kept ------------------------------------------------------------------------------------------------


def in_flight(layout: Layout, micro_batches: int, pp_rank: int) -> int:
    """Most (stage, micro-batch) pairs whose activations a rank keeps at once, while the last forward of them runs.

    GPipe: m. 1F1B: pp - rank. Interleaved: its warm-up and one more; zero-bubble: and one for each pass that weights
    lag. ZBV: 2 pp; DualPipeV: 2 pp + 1, for an overlapped forward starts before the backward beside it is over. Never
    more than all m v of them. Sources: warm_up's, and arXiv:2405.15362 section 3, arXiv:2412.19437 table 2.
    """
    total = micro_batches * layout.virtual_stages
    if layout.schedule is Schedule.ZBV:
        return _zbv_in_flight(layout.pp, micro_batches, pp_rank)
    if layout.schedule is Schedule.DUAL_PIPE_V:
        return min(total, 2 * layout.pp + 1)
    lag = pp_rank if layout.schedule.splits_backward else 0
    return min(total, warm_up(layout, micro_batches, pp_rank) + 1 + lag)


def _zbv_in_flight(pp: int, micro_batches: int, pp_rank: int) -> int:
    """Of 2 pp - rank - 1 on the way down and pp_rank + 1 on the way up, those that there are."""
    return min(micro_batches, 2 * pp - pp_rank - 1) + min(micro_batches, pp_rank + 1)
