"""A rank's score as a table of counts: how often each letter has been played before another is.

Of a letter that comes again and again by equal steps the first or the last is the highest, whatever its neighbours
leave, so the others are left out. A schedule of many micro-batches is one of few with a stretch put in, as often as
there are more: the word of few is written twice, with the stretch and without, and the stretch counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from memory.pipeline_score import Letter, score_of
from memory.pipeline_walk import Pipeline
from suite.layout import Layout, Schedule

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Word:
    """A rank's letters, and rows of how often each was played before the row's own."""

    letters: tuple[Letter, ...]
    counts: NDArray[Any]  # [rows, letters]
    own: NDArray[Any]  # [rows]
    end: NDArray[Any]  # [letters]: how often each was played in all


def word_of(pipeline: Pipeline, place: int) -> Word:
    """The word of a pipeline rank; it serves all pipelines of the schedule."""
    layout, count = pipeline.case.layout, pipeline.case.workload.micro_batches
    key = "word", layout.schedule, layout.pp, layout.virtual_stages, count, pipeline.joined, pipeline.start, place
    return pipeline.memo.once(key, lambda: _word(pipeline, place))


def _word(pipeline: Pipeline, place: int) -> Word:
    layout, count = pipeline.case.layout, pipeline.case.workload.micro_batches
    few, period = few_micro_batches(layout, count)
    if few == count:
        return table_of(written(pipeline, place, count))
    short, long = written(pipeline, place, few), written(pipeline, place, few + period)
    start, length = 0, len(long) - len(short)
    while start < len(short) and short[start] == long[start]:
        start += 1
    if short[start:] != long[start + length :]:
        return table_of(written(pipeline, place, count))
    return table_of(long, range(start, start + length), (count - few) // period)


def written(pipeline: Pipeline, place: int, count: int) -> list[Letter]:
    """A rank's letters with so many micro-batches, in order."""
    layout = pipeline.case.layout
    key = "letters", layout.schedule, layout.pp, layout.virtual_stages, count, pipeline.joined, pipeline.start, place
    return pipeline.memo.once(key, lambda: [
        note.letter
        for note in score_of(layout, count, place, pipeline.joined, pipeline.start, layout.fsdp > 1)
        if note.letter is not None
    ])  # fmt: skip


def few_micro_batches(layout: Layout, count: int) -> tuple[int, int]:
    """(Micro-batches that are enough for a schedule to be in its steady phase on every rank, and by how many it goes
    on there). As many as there are where those are few, or make up no equal rounds."""
    pp, period = layout.pp, 1
    if layout.schedule in (Schedule.INTERLEAVED, Schedule.INTERLEAVED_ZERO_BUBBLE):
        period = pp
    enough = {Schedule.GPIPE: 2, Schedule.ONE_F_ONE_B: pp + 1}.get(layout.schedule, 3 * pp)
    return (count if count % period or count <= enough + period else enough), period


def table_of(letters: Sequence[Letter], stretch: range = range(0), times: int = 1) -> Word:
    """The table of a word whose letters at `stretch` come so many times over."""
    import numpy as np

    numbers: dict[Letter, int] = {}
    word = np.array([numbers.setdefault(letter, len(numbers)) for letter in letters])
    played = np.zeros((len(word) + 1, len(numbers)), dtype=np.int64)
    played[np.arange(1, len(word) + 1), word] = 1
    before = played.cumsum(axis=0)
    if times > 1:
        more = (times - 1) * (before[stretch.stop] - before[stretch.start])
        before = np.concatenate((before[: stretch.stop], before[stretch.start :] + more))
        word = np.concatenate((word[: stretch.stop], word[stretch.start :]))
    rows, own = [], []
    for number in range(len(numbers)):
        found = before[:-1][word == number]
        if len(found) > 2:
            steps = np.diff(found, axis=0)
            turns = (steps[1:] != steps[:-1]).any(axis=1)
            found = found[np.concatenate(([True], turns, [True]))]
        rows.append(found)
        own.append(np.full(len(found), number))
    return Word(tuple(numbers), np.concatenate(rows), np.concatenate(own), before[-1])
