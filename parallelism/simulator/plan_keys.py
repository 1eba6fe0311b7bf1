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
    def micro_batch(self) -> tuple[Hashable, ...]:
        """Of the work of one micro-batch of the whole model."""
        case = self.case
        work = tuple([value for name, value in vars(case.workload).items() if name not in BESIDE_THE_LEDGER])
        return case.model, work, case.layout.recompute

    @cached_property
    def stage(self) -> int:
        """Of a stage, its segments being known."""
        return self._key(BESIDE_TIMES)

    @cached_property
    def unit(self) -> int:
        """Of a unit however it is sharded, its segment being known. Groups of tp and cp are the same in worlds of one
        size."""
        layout = self.case.layout
        return self._key(BESIDE_UNITS, layout.world_size, layout.fsdp > 1)

    @cached_property
    def finish(self) -> int:
        """Of an update, its weights being known; an engine of its own may ask for anything."""
        case, layout = self.case, self.case.layout
        if layout.is_deepspeed:
            return self.stage
        each = layout.reduction is Reduction.MICRO_BATCH
        work = tuple([value for name, value in vars(case.workload).items() if each or name not in BESIDE_UPDATES])
        settings = tuple([value for name, value in vars(layout).items() if name not in BESIDE_UPDATES])
        own = case.model, settings, replicate.is_used(layout), head_is_copied(case), work, case.recipe, case.cluster
        return self.memo.name(self.memo.same(("finish", own)))

    def _key(self, beside: frozenset[str], *more: Hashable) -> int:
        case, layout = self.case, self.case.layout
        settings = tuple([value for name, value in vars(layout).items() if name not in beside])
        used = replicate.is_used(layout), layout.is_deepspeed  # what they say of other settings
        own = case.model, settings, used, case.workload, case.recipe, case.cluster, more
        return self.memo.name(self.memo.same(("times", own)))


def weights_key(segment: Segment) -> Hashable:
    """What tells the weights of segments apart."""
    return segment.name, tuple([
        (weight.name, weight.values, weight.dtype, weight.split, weight.tied_to) for weight in segment.weights
    ])  # fmt: skip
