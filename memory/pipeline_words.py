"""A rank's score as a table of counts: how often each letter has been played before another is.

Of a letter that comes again and again by equal steps the first or the last is the highest, whatever its neighbours
leave, so the others are left out; so is what only frees, for the level before it is one that another letter left. A
schedule of many micro-batches is one of few with a stretch put in, as often as there are more: the stretch is written
once, and counted, and so is what the schedule's end frees.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from memory.pipeline_beats import Freed
from memory.pipeline_score import Letter, score_of
from memory.pipeline_walk import Pipeline
from suite.layout import Layout, Schedule

if TYPE_CHECKING:
    from numpy.typing import NDArray

NOTHING: Mapping[Letter, int] = MappingProxyType({})


@dataclass(frozen=True, eq=False)
class Word:
    """A rank's letters, and rows of how often each was played before the row's own. With every turn of the stretch
    beyond the first that is more. Counts are whole floats, which are multiplied fast."""

    letters: tuple[Letter, ...]
    counts: NDArray[Any]  # [rows, letters]
    more: NDArray[Any]  # [rows, letters]
    own: NDArray[Any]  # [rows]
    end: NDArray[Any]  # [letters]: how often each was played in all
    end_more: NDArray[Any]  # [letters]


@dataclass(frozen=True)
class Length:
    """So many micro-batches, written out as `written` of them; a stretch of `period` comes `turns` times over."""

    written: int
    period: int = 0
    turns: int = 1


def length_of(pipeline: Pipeline) -> Length:
    """How a pipeline's words are written. Whole where micro-batches are few or make up no equal rounds, or where
    a period more is not a stretch put in on every rank."""
    layout, count = pipeline.case.layout, pipeline.case.workload.micro_batches
    enough, period = enough_micro_batches(layout)
    turns, rest = divmod(count - enough, period)
    if turns < 1 or rest:
        return Length(count)
    length = Length(enough + period, period)
    key = "steady", layout.schedule, layout.pp, layout.virtual_stages, pipeline.joined, pipeline.start
    is_steady = pipeline.memo.once(key, lambda: all(_stretch(pipeline, place, length) for place in range(layout.pp)))
    return Length(enough + period, period, turns) if is_steady else Length(count)


def word_of(pipeline: Pipeline, place: int, length: Length) -> Word:
    """The word of a pipeline rank; it serves all numbers of turns."""
    long = written(pipeline, place, length.written)
    if not length.period:
        return table_of(long)
    stretch = _stretch(pipeline, place, length)
    assert stretch is not None
    more = long.freed.copy()
    more.subtract(written(pipeline, place, length.written - length.period).freed)
    return table_of(long, stretch, more)


def _stretch(pipeline: Pipeline, place: int, length: Length) -> range | None:
    """Where a rank's letters are those of a period less, with a stretch put in; None where they are others."""
    counts = length.written - length.period, length.written
    short, long = (written(pipeline, place, count).letters for count in counts)
    start, more = 0, len(long) - len(short)
    while start < len(short) and short[start] == long[start]:
        start += 1
    return range(start, start + more) if short[start:] == long[start + more :] else None


@dataclass(frozen=True, eq=False)
class Written:
    """A rank's letters in order up to its last pass; what is freed then, in whatever order; and the last letter."""

    letters: list[Letter]
    freed: Counter[Letter]
    last: Letter


def written(pipeline: Pipeline, place: int, count: int) -> Written:
    """What a rank plays with so many micro-batches."""
    layout = pipeline.case.layout
    key = "letters", layout.schedule, layout.pp, layout.virtual_stages, count, pipeline.joined, pipeline.start, place
    return pipeline.memo.once(key, lambda: _written(pipeline, place, count))


def _written(pipeline: Pipeline, place: int, count: int) -> Written:
    score = score_of(pipeline.case.layout, count, place, pipeline.joined, pipeline.start, pipeline.memo)
    letters = [note.letter for note in score.notes]
    *played, last = [letter for letter in map(letters.__getitem__, score.order) if letter is not None]
    end = len(played)
    while end and isinstance(played[end - 1].what, Freed):
        end -= 1
    return Written(played[:end], Counter(played[end:]), last)


def enough_micro_batches(layout: Layout) -> tuple[int, int]:
    """(Micro-batches that are enough for a schedule to be in its steady phase on every rank, and by how many it goes
    on there)."""
    if layout.schedule in (Schedule.INTERLEAVED, Schedule.INTERLEAVED_ZERO_BUBBLE):
        return 3 * layout.pp, layout.pp
    return 2 * layout.pp, 1


def table_of(word: Written, stretch: range = range(0), freed: Mapping[Letter, int] = NOTHING) -> Word:
    """The table of a word whose letters at `stretch` may come again; with each time so many more are freed at its
    end."""
    import numpy as np

    numbers: dict[Letter, int] = {}
    letters = np.array([numbers.setdefault(letter, len(numbers)) for letter in word.letters])
    for letter in (*word.freed, word.last):
        numbers.setdefault(letter, len(numbers))
    played = np.zeros((len(letters) + 1, len(numbers)))
    played[np.arange(1, len(letters) + 1), letters] = 1
    before = played.cumsum(axis=0)
    turn = before[stretch.stop] - before[stretch.start]
    # the stretch twice: its first turn, and its last
    places = np.concatenate((np.arange(stretch.stop), np.arange(stretch.start, len(letters))))
    is_later = np.arange(len(places)) >= stretch.stop
    is_kept = np.array([not isinstance(letter.what, Freed) for letter in numbers])[letters[places]]
    places, is_later = places[is_kept], is_later[is_kept]
    # by letter, in order: those between two equal steps are left out
    order = np.argsort(letters[places], kind="stable")
    places, is_later = places[order], is_later[order]
    own, rows = letters[places], before[places]
    steps = np.concatenate((np.diff(rows, axis=0), np.diff(is_later)[:, None]), axis=1)
    is_turn = np.ones(len(rows), dtype=bool)
    is_turn[1:-1] = (own[2:] != own[:-2]) | (steps[1:] != steps[:-1]).any(axis=1)
    # the last letter, after what is freed
    last = numbers[word.last]
    counts = np.concatenate((rows[is_turn], (before[-1] + _counted(word.freed, numbers))[None]))
    more = np.concatenate((is_later[is_turn][:, None] * turn, (turn + _counted(freed, numbers))[None]))
    end = counts[-1] + (np.arange(len(numbers)) == last)
    return Word(tuple(numbers), counts, more, np.append(own[is_turn], last), end, more[-1])


def _counted(letters: Mapping[Letter, int], numbers: Mapping[Letter, int]) -> NDArray[Any]:
    import numpy as np

    counts = np.zeros(len(numbers))
    for letter, count in letters.items():
        counts[numbers[letter]] = count
    return counts
