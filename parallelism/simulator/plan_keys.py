"""What each piece of a case's plan depends on: keys under which pieces serve other cases of the same machine."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from functools import cached_property

from parallelism.data import replicate
from parallelism.schedules.stages import head_is_copied
from suite.case import Case
from suite.layout import Reduction
from suite.memo import Memo
from suite.operators import Segment

#: fields of a workload that the ledger of a micro-batch does not depend on
BESIDE_THE_LEDGER = frozenset({"micro_batches", "optimizer", "optimizer_kernel"})
#: settings of a layout on which no time of a unit or an update depends; where they decide what a stage holds, its
#: segments tell
BESIDE_TIMES = frozenset({"schedule", "virtual_stages", "stage_split"})
#: and none of what is in a unit however it is sharded
BESIDE_UNITS = BESIDE_TIMES | {
    "pp", "dp", "fsdp", "reshard_after_forward", "forward_prefetch", "backward_prefetch", "bucket_mib",
}  # fmt: skip
#: nor of what it gathers and reduces, its weights being known
BESIDE_EXCHANGES = BESIDE_TIMES | {"recompute", "forward_prefetch", "backward_prefetch"}
#: settings of layout and workload on which an update does not depend, its weights being known
BESIDE_UPDATES = BESIDE_TIMES | {
    "recompute", "reshard_after_forward", "forward_prefetch", "backward_prefetch", "seq_len", "micro_batch",
    "micro_batches",
}  # fmt: skip


@dataclass(frozen=True)
class PlanKeys:
    """Keys of one case. Each leaves out the settings that its piece is known not to depend on, so that a setting that
    is added later is in all of them."""

    case: Case
    memo: Memo

    @cached_property
    def _common(self) -> tuple[Hashable, ...]:
        case = self.case
        return self._short((case.model, case.recipe, case.cluster)), replicate.is_used(case.layout)

    @cached_property
    def micro_batch(self) -> Hashable:
        """Of the work of one micro-batch of the whole model."""
        return *self._common, self._short((self._work(BESIDE_THE_LEDGER), self.case.layout.recompute))

    @cached_property
    def stage(self) -> Hashable:
        """Of a stage, its segments being known."""
        return self._short((self._common, self._settings(BESIDE_TIMES), self.case.workload))

    @cached_property
    def unit(self) -> Hashable:
        """Of a unit however it is sharded, its segment being known. Groups of tp and cp are the same in worlds of one
        size."""
        layout = self.case.layout
        beside = layout.world_size, layout.fsdp > 1, layout.is_deepspeed
        return self._short((self._common, self._settings(BESIDE_UNITS), beside, self.case.workload))

    @cached_property
    def exchange(self) -> Hashable:
        """Of what a stage gathers and reduces, its weights being known."""
        layout = self.case.layout
        is_once = layout.fsdp > 1 and layout.reduction is Reduction.STEP
        work = self._work(BESIDE_UPDATES if is_once else BESIDE_UPDATES - {"micro_batches"})
        return self._own_engine or self._short((self._common, self._settings(BESIDE_EXCHANGES), work))

    @cached_property
    def finish(self) -> Hashable:
        """Of an update, its weights being known."""
        is_once = self.case.layout.reduction is Reduction.STEP
        work = self._work(BESIDE_UPDATES if is_once else BESIDE_UPDATES - {"micro_batches"})
        own = self._common, self._settings(BESIDE_UPDATES), work, head_is_copied(self.case)
        return self._own_engine or self._short(own)

    @property
    def _own_engine(self) -> Hashable:
        """DeepSpeed may ask for anything."""
        return self.stage if self.case.layout.is_deepspeed else None

    def _short(self, key: Hashable) -> int:
        return self.memo.name(self.memo.same(key))

    def _settings(self, beside: frozenset[str]) -> tuple[Hashable, ...]:
        return tuple([value for name, value in vars(self.case.layout).items() if name not in beside])

    def _work(self, beside: frozenset[str]) -> tuple[Hashable, ...]:
        return tuple([value for name, value in vars(self.case.workload).items() if name not in beside])


def weights_key(segment: Segment) -> Hashable:
    """What tells the weights of segments apart."""
    return segment.name, tuple([
        (weight.name, weight.values, weight.dtype, weight.split, weight.tied_to, weight.is_expert)
        for weight in segment.weights
    ])  # fmt: skip
