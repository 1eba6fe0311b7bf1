"""The highest levels of a pipeline's ranks as a table of counts: worked out once for all cases of one schedule.

Before a letter of a rank's score is played, so many of each letter have been. Its level is therefore a sum of counts
times what each letter leaves, and the highest instant the greatest such sum and the letter's own peak.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from memory.pipeline_beats import Freed, Part
from memory.pipeline_score import Letter
from memory.pipeline_walk import Pipeline, StageKind
from memory.pipeline_words import Length, Word, word_of
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
            "levels", memo.name(self.letters), pipeline.alike, pipeline.case.workload.precision,
            replicate.is_used(layout), layout.bucket_mib,
        )  # fmt: skip
        nets, peaks = memo.once(key, lambda: self._sizes(pipeline))
        # products of floats are fast, and exact as long as no sum of bytes can leave the whole numbers that they hold
        kind = np.float64 if self._most * np.abs(nets).max() < 2**53 else np.int64
        highest = _product(self.counts, nets, kind) + peaks[self.own]
        left = _product(self.ends, nets, kind)
        of_groups = np.maximum.reduceat(highest, self.starts), np.maximum.reduceat(left, self.end_starts)
        return of_groups[0].astype(int).tolist(), of_groups[1].astype(int).tolist()

    def _sizes(self, pipeline: Pipeline) -> tuple[NDArray[Any], NDArray[Any]]:
        """What each letter leaves, and its own highest level."""
        import numpy as np

        phases = [pipeline.phase(*self.played[letter]) for letter in self.letters]
        return np.array([phase.net for phase in phases]), np.array([phase.peak for phase in phases])

    @cached_property
    def _most(self) -> int:
        """The most letters that are played before another."""
        return int(max(self.counts.sum(axis=1).max(), self.ends.sum(axis=1).max()))


def _product(counts: NDArray[Any], sizes: NDArray[Any], kind: type[Any]) -> NDArray[Any]:
    return counts.astype(kind, copy=False) @ sizes.astype(kind)


@dataclass(frozen=True, eq=False)
class PeaksOfTurns:
    """The tables of a pipeline whose words have a stretch that comes so many times over."""

    once: PipelinePeaks
    more: NDArray[Any]  # [rows, letters]: counts that each further turn adds
    ends_more: NDArray[Any]  # [ranks, letters]

    def of(self, turns: int) -> PipelinePeaks:
        """With that many turns."""
        again = turns - 1
        once = self.once
        return replace(once, counts=once.counts + again * self.more, ends=once.ends + again * self.ends_more)


def peaks_of(pipeline: Pipeline, length: Length) -> PeaksOfTurns:
    """The tables of a pipeline; they serve all that have its schedule and its kinds of stages in the same places."""
    import numpy as np

    layout, kinds = pipeline.case.layout, pipeline.kinds
    places: dict[tuple[StageKind, ...], list[int]] = defaultdict(list)
    for place in range(layout.pp):
        places[tuple(kinds[stage] for stage in stages_of_rank(layout, place))].append(place)
    numbers: dict[KindLetter, int] = {}
    played: dict[KindLetter, tuple[Letter, int]] = {}
    tables: list[tuple[Word, list[int]]] = []
    for own, members in places.items():
        for place in members:
            word = word_of(pipeline, place, length)
            found = [_of_kind(letter, kinds, own) for letter in word.letters]
            tables.append((word, [numbers.setdefault(kind, len(numbers)) for kind in found]))
            for kind, letter in zip(found, word.letters, strict=True):
                played.setdefault(kind, (letter, place))
    ranks = np.cumsum([0, *map(len, places.values())])
    rows = np.cumsum([0, *(len(word.own) for word, _ in tables)])
    width = len(numbers)
    once = PipelinePeaks(
        tuple(Group(tuple(members), own) for own, members in places.items()),
        pipeline.memo.same(tuple(numbers)), played,
        np.concatenate([_placed(word.counts, columns, width) for word, columns in tables]),
        np.concatenate([np.array(columns)[word.own] for word, columns in tables]), rows[ranks[:-1]],
        np.concatenate([_placed(word.end[None], columns, width) for word, columns in tables]), ranks[:-1],
    )  # fmt: skip
    return PeaksOfTurns(
        once,
        np.concatenate([_placed(word.more, columns, width) for word, columns in tables]),
        np.concatenate([_placed(word.end_more[None], columns, width) for word, columns in tables]),
    )


def _placed(counts: NDArray[Any], columns: Sequence[int], width: int) -> NDArray[Any]:
    """Counts of a word's letters, summed into the columns of those of their kinds."""
    import numpy as np

    places = np.zeros((len(columns), width))
    places[np.arange(len(columns)), np.array(columns)] = 1
    return counts @ places


def _of_kind(letter: Letter, kinds: Sequence[StageKind], own: tuple[StageKind, ...]) -> KindLetter:
    if letter.what is Part.FINISH:
        return (own, letter.what)
    if isinstance(letter.what, Freed):
        return (letter.what,)
    return (kinds[letter.stage], *letter[1:])
