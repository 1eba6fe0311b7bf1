"""The highest levels of a pipeline's ranks as a table of counts: worked out once for all cases of one schedule.

Before a letter of a rank's score is played, so many of each letter have been. Its level is therefore a sum of counts
times what each letter leaves, and the highest instant the greatest such sum and the letter's own peak.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from memory.pipeline_beats import Freed, Part
from memory.pipeline_score import Letter
from memory.pipeline_walk import Pipeline, StageKind
from memory.pipeline_words import word_of
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
    tables = []
    for own, members in places.items():
        found = []
        for place in members:
            word = word_of(pipeline, place)
            columns = []
            for letter in word.letters:
                kind = _of_kind(letter, kinds, own)
                columns.append(numbers.setdefault(kind, len(numbers)))
                played.setdefault(kind, (letter, place))
            found.append((word, columns))
        tables.append(found)
    rows = [[_placed(word.counts, columns, len(numbers)) for word, columns in found] for found in tables]
    ends = [[_placed(word.end[None], columns, len(numbers)) for word, columns in found] for found in tables]
    owned = [np.array(columns)[word.own] for found in tables for word, columns in found]
    groups = tuple(Group(tuple(members), own) for own, members in places.items())
    return PipelinePeaks(
        groups, pipeline.memo.same(tuple(numbers)), played,
        np.concatenate([table for some in rows for table in some]), np.concatenate(owned), _starts(rows),
        np.concatenate([table for some in ends for table in some]), _starts(ends),
    )  # fmt: skip


def _placed(counts: NDArray[Any], columns: Sequence[int], width: int) -> NDArray[Any]:
    """Counts of a word's letters, summed into the columns of those of their kinds."""
    import numpy as np

    places = np.zeros((len(columns), width), dtype=np.int64)
    places[np.arange(len(columns)), np.array(columns)] = 1
    return counts @ places


def _starts(tables: Sequence[Sequence[NDArray[Any]]]) -> NDArray[Any]:
    import numpy as np

    return np.cumsum([0, *(sum(map(len, some)) for some in tables[:-1])])


def _of_kind(letter: Letter, kinds: Sequence[StageKind], own: tuple[StageKind, ...]) -> KindLetter:
    if letter.what is Part.FINISH:
        return (own, letter.what)
    if isinstance(letter.what, Freed):
        return (letter.what,)
    return (kinds[letter.stage], *letter[1:])
