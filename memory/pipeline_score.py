"""What each beat of a pipeline rank allocates depends on what the passes before it have left: beats played, note by
note."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from memory.pipeline_beats import Beat, Freed, Part, beats_of
from memory.stage_passes import Doing, Progress
from parallelism.schedules.orders import Pass
from suite.layout import Layout
from suite.memo import Memo
from suite.record import Moment


class Letter(NamedTuple):
    """One thing that happens: of letters that are equal each allocates the same."""

    stage: int
    what: Doing | Freed | Part
    progress: Progress | None = None  # what the stage's passes have left
    part: Part = Part.BODY


class Note(NamedTuple):
    """A letter in a moment's window (none: nothing is allocated); `level`: the moment that is read after it."""

    letter: Letter | None
    window: Moment
    level: Moment | None = None


@dataclass(frozen=True, eq=False)
class Score:
    """Distinct notes, and their numbers in the order they are played."""

    notes: tuple[Note, ...]
    order: list[int]


def score_of(
    layout: Layout, micro_batches: int, pp_rank: int, joined: frozenset[int], start: Progress, memo: Memo
) -> Score:
    """The score of one step of a pipeline rank.

    `joined`: stages whose weights' gradients are computed with their inputs'. `start`: what a stage's passes find at
    first.
    """
    key = "beats", layout.schedule, layout.pp, layout.virtual_stages, micro_batches, pp_rank
    beats = memo.once(key, lambda: beats_of(layout, micro_batches, pp_rank))
    player = _Player(joined, layout.fsdp > 1, start)
    state = [0] * layout.stages
    stages = [beat.stage for beat in beats.distinct]
    steps: list[dict[int, tuple[int, int]]] = [{} for _ in stages]  # by beat, by what is left: note, what is left then
    order = []
    for number in beats.order:
        stage = stages[number]
        step = steps[number].get(state[stage])
        if step is None:
            step = steps[number][state[stage]] = player.step(beats.distinct[number], state[stage])
        note, state[stage] = step
        order.append(note)
    return Score(tuple(player.notes), [note for note in order if note >= 0])


class _Player:
    """Knows every note and state by a number."""

    def __init__(self, joined: frozenset[int], is_sharded: bool, start: Progress) -> None:
        self.joined = joined
        self.is_sharded = is_sharded
        self.notes: dict[Note, int] = {}
        self.numbers: dict[Progress, int] = {start: 0}
        self.states = [start]

    def step(self, beat: Beat, number: int) -> tuple[int, int]:
        """The note of a beat (-1: none) where passes have left so much, and what is left after it."""
        before, what = self.states[number], beat.what
        if what is None:
            return self._note(Note(None, beat.window, beat.level)), number
        if isinstance(what, Freed) or what is Part.FINISH:
            return self._note(Note(Letter(beat.stage, what), beat.window)), number
        if isinstance(what, Part):  # the head belongs to the same pass as what is before it
            note = self._note(Note(Letter(beat.stage, Doing.FORWARD, before, what), beat.window))
            return note, number if what is Part.BODY else self._number(before.after(Doing.FORWARD))
        doing = self._doing(beat.stage, what) if isinstance(what, Pass) else what if self.is_sharded else None
        if doing is None:
            return -1, number
        return self._note(Note(Letter(beat.stage, doing, before), beat.window)), self._number(before.after(doing))

    def _doing(self, stage: int, kind: Pass) -> Doing | None:
        """The part of a pass that is done now. The first stage, whose input needs no gradient, does all of its backward
        pass with its weights; a stage whose weights are joined to its inputs, with those."""
        if kind is Pass.FORWARD:
            return Doing.FORWARD
        if kind is Pass.BACKWARD:
            return Doing.BACKWARD
        if stage in self.joined:
            return Doing.BACKWARD if kind is Pass.INPUT else None
        if stage == 0:
            return Doing.BACKWARD if kind is Pass.WEIGHT else None
        return Doing.INPUTS if kind is Pass.INPUT else Doing.WEIGHTS

    def _note(self, note: Note) -> int:
        return self.notes.setdefault(note, len(self.notes))

    def _number(self, progress: Progress) -> int:
        if progress not in self.numbers:
            self.numbers[progress] = len(self.states)
            self.states.append(progress)
        return self.numbers[progress]
