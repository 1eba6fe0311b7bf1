"""The memory of many cases: what they have in common is worked out once.

A search over layouts asks for the same micro-batch's ledger, the same block's walk, the same order of a schedule again
and again. What a case shares with others is kept by all that it depends on, so that an answer is what a model of the
case alone would give, to the byte.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from memory.estimate import RANKS_SHOWN, MemoryModel, Outside, representative_ranks
from memory.pipeline_peaks import PipelinePeaks, peaks_of
from memory.pipeline_walk import Pipeline
from memory.pipeline_words import length_of
from parallelism.data import replicate
from suite.case import Case
from suite.memo import Memo
from suite.operators import Ledger
from suite.share import share_of

#: settings of a layout that say nothing of what a rank holds between steps, once its parameters are known
BESIDE_THE_STATE = frozenset({
    "recompute", "schedule", "virtual_stages", "stage_split", "reshard_after_forward", "forward_prefetch",
    "backward_prefetch", "reduction",
})  # fmt: skip


@dataclass(frozen=True)
class Search:
    """Answers one case after another. Cases may be of any model, device and layout."""

    memo: Memo = field(default_factory=Memo)

    def model(self, case: Case) -> MemoryModel:
        """A case's memory, with what is known from others."""
        return MemoryModel(case, self.memo)

    def peak_bytes(self, case: Case) -> int:
        """Bytes of the largest moment on the rank that needs most."""
        layout, model = case.layout, self.model(case)
        if layout.world_size <= RANKS_SHOWN or layout.is_deepspeed:
            return max(map(model.peak_bytes, representative_ranks(layout)))
        if layout.pp == 1:
            return self._of_one_rank(model)
        return self._of_pipeline(model)

    def _of_one_rank(self, model: MemoryModel) -> int:
        """Without a pipeline the first rank stands for all."""
        walk = model.step(0)
        ledger = model.ledger_of_rank(0)
        outside = self._outside(model, 0, self._settings(model.case), ("whole", self._weights(ledger)))
        return outside.total(walk.highest, walk.after_backward)

    def _of_pipeline(self, model: MemoryModel) -> int:
        case = model.case
        pipeline = model.pipeline(share_of(case.layout, 0))
        peaks = self._peaks(pipeline)
        highest, after_backward = peaks.levels(pipeline)
        ranks = case.layout.world_size // case.layout.pp
        settings, weights = self._settings(case), (self._weights(pipeline.ledger), pipeline.is_copied)
        return max(
            self._outside(model, group.places[0] * ranks, settings, (*weights, group.kinds)).total(top, level)
            for group, top, level in zip(peaks.groups, highest, after_backward, strict=True)
        )

    def _peaks(self, pipeline: Pipeline) -> PipelinePeaks:
        layout, length = pipeline.case.layout, length_of(pipeline)
        key = (
            "peaks", layout.schedule, layout.pp, layout.virtual_stages, length.written, length.period,
            self.memo.name(pipeline.kinds), pipeline.joined, pipeline.start,
        )  # fmt: skip
        of_turns = self.memo.once(key, lambda: peaks_of(pipeline, length))
        return self.memo.once(("turns", self.memo.name(of_turns), length.turns), lambda: of_turns.of(length.turns))

    def _outside(self, model: MemoryModel, rank: int, settings: int, weights: tuple[object, ...]) -> Outside:
        """What a rank has beside its walk; `weights` tells apart what ranks hold."""
        return self.memo.once(("outside", settings, weights), lambda: model.outside(rank))

    def _settings(self, case: Case) -> int:
        """A key for the settings that decide what a rank holds of its weights, and beside them."""
        settings = tuple([value for name, value in vars(case.layout).items() if name not in BESIDE_THE_STATE])
        used = replicate.is_used(case.layout)
        return self.memo.name(self.memo.same((settings, used, case.workload, case.recipe, case.cluster.device)))

    def _weights(self, ledger: Ledger) -> int:
        """A key for what a ledger's ranks hold: the same for ledgers that differ in activations alone."""
        return self.memo.once(
            ("weights", self.memo.name(ledger)), lambda: self.memo.name(self.memo.same(_held(ledger)))
        )


def _held(ledger: Ledger) -> tuple[object, ...]:
    return (
        tuple(
            (count, tuple((item.name, item.shape, item.dtype, item.split, item.tied_to) for item in segment.weights))
            for segment, count in ledger.counts.items()
        ),
        tuple(array.nbytes for array in ledger.batch),
        tuple(array.nbytes for array in ledger.buffers),
    )
