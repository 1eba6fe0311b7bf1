"""The highest levels of a pipeline's ranks as a table of counts: worked out once for all cases of one schedule.

Before a letter of a rank's score is played, so many of each letter have been. Its level is therefore a sum of counts
times what each letter leaves, and the highest instant the greatest such sum and the letter's own peak. Of letters that
come again and again by equal steps the first or the last is the highest, so the others are left out.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from memory.pipeline_score import Freed, Letter, Part
from memory.pipeline_walk import Pipeline, StageKind
from parallelism.data import replicate
from parallelism.schedules.stages import stages_of_rank

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: a letter of any stage of a kind; of what is freed no kind is told, for it is as large everywhere
KindLetter = tuple[Any, ...]


@dataclass(frozen=True)
class Group:
    """Ranks of a pipeline whose stages are alike."""

    places: tuple[int, ...]
    kinds: tuple[StageKind, ...]


@dataclass(frozen=True, eq=False)
class PipelinePeaks:
    """Rows of counts for every group of ranks, and each row's letter."""

    groups: tuple[Group, ...]
    letters: tuple[KindLetter, ...]
    played: dict[KindLetter, tuple[Letter, int]]  # a letter and rank that stand for it
    counts: NDArray[Any]  # [rows, letters]: how often each was played before the row's own
    own: NDArray[Any]  # [rows]: the row's letter
    starts: NDArray[Any]  # [groups]: first row
    ends: NDArray[Any]  # [ranks, letters]: how often each was played in all
    end_starts: NDArray[Any]  # [groups]

    def levels(self, pipeline: Pipeline) -> tuple[list[int], list[int]]:
        """Bytes above what is held, of each group: the highest, and those that are left when backward is over."""
        import numpy as np

        memo, layout = pipeline.memo, pipeline.case.layout
        key = (
            "levels", memo.name(self.letters), memo.name(pipeline.ledger), pipeline.is_copied, pipeline.gathering,
            pipeline.case.workload.precision, replicate.is_used(layout), layout.bucket_mib,
        )  # fmt: skip
        nets, peaks = memo.once(key, lambda: self._sizes(pipeline))
        highest = np.maximum.reduceat(self.counts @ nets + peaks[self.own], self.starts)
        return highest.tolist(), np.maximum.reduceat(self.ends @ nets, self.end_starts).tolist()

    def _sizes(self, pipeline: Pipeline) -> tuple[NDArray[Any], NDArray[Any]]:
        """What each letter leaves, and its own highest level."""
        import numpy as np

        phases = [pipeline.phase(*self.played[letter]) for letter in self.letters]
        return np.array([phase.net for phase in phases]), np.array([phase.peak for phase in phases])


def peaks_of(pipeline: Pipeline) -> PipelinePeaks:
    """The table of a pipeline; it serves all that have its schedule and its kinds of stages in the same places."""
    import numpy as np

    layout, kinds = pipeline.case.layout, pipeline.kinds
    places: dict[tuple[StageKind, ...], list[int]] = defaultdict(list)
    for place in range(layout.pp):
        places[tuple(kinds[stage] for stage in stages_of_rank(layout, place))].append(place)
    numbers: dict[KindLetter, int] = {}
    played: dict[KindLetter, tuple[Letter, int]] = {}
    rows: list[tuple[dict[int, int], int]] = []
    ends: list[dict[int, int]] = []
    starts: list[int] = []
    end_starts: list[int] = []
    for own, members in places.items():
        starts.append(len(rows))
        end_starts.append(len(ends))
        for place in members:
            word = []
            for note in pipeline.score(place):
                if note.letter is None:
                    continue
                letter = _of_kind(note.letter, kinds, own)
                played.setdefault(letter, (note.letter, place))
                word.append(numbers.setdefault(letter, len(numbers)))
            found, end = _rows(word)
            rows += found
            ends.append(end)
    groups = tuple(Group(tuple(members), own) for own, members in places.items())
    return PipelinePeaks(
        groups, pipeline.memo.same(tuple(numbers)), played, _table((row for row, _ in rows), len(numbers)),
        np.array([number for _, number in rows]), np.array(starts), _table(ends, len(numbers)), np.array(end_starts),
    )  # fmt: skip


def _of_kind(letter: Letter, kinds: Sequence[StageKind], own: tuple[StageKind, ...]) -> KindLetter:
    if letter.what is Part.FINISH:
        return (own, letter.what)
    if isinstance(letter.what, Freed):
        return (letter.what,)
    return (kinds[letter.stage], *letter[1:])


def _rows(word: Sequence[int]) -> tuple[list[tuple[dict[int, int], int]], dict[int, int]]:
    """Counts before each letter, and the letter: of those by equal steps the first and the last; counts at the end."""
    import numpy as np

    letters = np.array(word)
    width = int(letters.max()) + 1
    played = np.zeros((len(word) + 1, width), dtype=np.int64)
    played[np.arange(1, len(word) + 1), letters] = 1
    before = played.cumsum(axis=0)
    rows: list[tuple[dict[int, int], int]] = []
    for number in dict.fromkeys(word):
        found = before[:-1][letters == number]
        if len(found) > 2:
            steps = np.diff(found, axis=0)
            turns = (steps[1:] != steps[:-1]).any(axis=1)
            found = found[np.concatenate(([True], turns, [True]))]
        rows += [(_sparse(row), number) for row in found]
    return rows, _sparse(before[-1])


def _sparse(row: NDArray[Any]) -> dict[int, int]:
    return {index: int(row[index]) for index in row.nonzero()[0].tolist()}


def _table(rows: Iterable[dict[int, int]], width: int) -> NDArray[Any]:
    import numpy as np

    kept = list(rows)
    table = np.zeros((len(kept), width), dtype=np.int64)
    for index, row in enumerate(kept):
        table[index, list(row)] = list(row.values())
    return table
