"""The training step of a pipeline: torch's schedules run the micro-batches, one optimizer step on every rank."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.pipelining import (
    Schedule1F1B,
    ScheduleDualPipeV,
    ScheduleGPipe,
    ScheduleInterleaved1F1B,
    ScheduleInterleavedZeroBubble,
    ScheduleZBVZeroBubble,
)

from parallelism.batches import Batch
from parallelism.clipping import clip_gradients
from parallelism.dtypes import torch_dtype
from parallelism.pipeline.parts import StageParts, TrainedStage
from parallelism.pipeline.strategy import ids_shape, joins_weights, stream_shape
from parallelism.pipeline.tied_head import TiedHead
from parallelism.schedules.stages import rank_of_stage
from parallelism.training import Trainer
from suite import memory_probe as phases
from suite.formats import formats_of
from suite.layout import Schedule

SCHEDULES: dict[Schedule, Callable[..., Any]] = {
    Schedule.GPIPE: ScheduleGPipe,
    Schedule.ONE_F_ONE_B: Schedule1F1B,
    Schedule.INTERLEAVED: ScheduleInterleaved1F1B,
    Schedule.INTERLEAVED_ZERO_BUBBLE: ScheduleInterleavedZeroBubble,
    Schedule.ZBV: ScheduleZBVZeroBubble,
    Schedule.DUAL_PIPE_V: ScheduleDualPipeV,
}


class _BackwardMark:
    """Marks a step's first backward pass on this rank. Without a head here, the loss is a phase of no length."""

    def __init__(self, mark: Callable[[str], None], has_head: bool) -> None:
        self._mark = mark
        self._has_head = has_head
        self._is_due = False

    def start(self) -> None:
        """A step begins."""
        self._is_due = True
        self._mark(phases.FORWARD)

    def __call__(self) -> None:
        if self._is_due:
            self._is_due = False
            if not self._has_head:
                self._mark(phases.LOSS)
            self._mark(phases.BACKWARD)


@dataclass(frozen=True)
class PipelineTrainer(Trainer):
    """A Trainer whose model is StageParts. Forward and backward passes interleave, so the phases that it marks are the
    rank's: forward until its first backward pass begins, backward from there to the end of its last."""

    @property
    def stages(self) -> StageParts:
        """The model."""
        assert isinstance(self.model, StageParts)
        return self.model

    @property
    def has_head(self) -> bool:
        """Does this rank compute the loss?"""
        return self.case.layout.stages - 1 in dict(self.stages.parts())

    @cached_property
    def _backward_mark(self) -> _BackwardMark:
        return _BackwardMark(self.mark, self.has_head)

    @cached_property
    def _tied_head(self) -> TiedHead | None:
        return TiedHead.of(self.stages, self.case)

    @cached_property
    def schedule(self) -> Any:
        """Torch's schedule over this rank's stages.

        A loss is divided by the number of micro-batches before its backward, as without a pipeline. Torch would divide
        the gradients afterwards, stage by stage, and a weight that two stages share twice.
        """
        layout, parts = self.case.layout, self.case.workload.micro_batches
        stages = [self._stage(index, part) for index, part in self.stages.parts()]
        return SCHEDULES[layout.schedule](
            stages[0] if layout.schedule.stages_a_rank == (1, 1) else stages,
            parts,
            loss_fn=lambda loss, labels: loss / parts,
            scale_grads=False,
        )

    def _stage(self, index: int, part: nn.Module) -> TrainedStage:
        """Shapes are given, so that torch need not run the model to learn them: only the stream is ever sent."""
        layout = self.case.layout
        stream = torch.empty(stream_shape(self.case), dtype=self._stream_type(part), device="meta", requires_grad=True)
        ids = torch.empty(ids_shape(self.case), dtype=torch.int64, device="meta")
        is_last = index == layout.stages - 1
        return TrainedStage(
            part,
            index,
            layout.stages,
            self.device,
            input_args=stream if index else ids,
            output_args=torch.empty((), device="meta", requires_grad=True) if is_last else stream,
            group=self.stages.group,
            dw_builder=_nothing_left if joins_weights(self.case, index) else None,
            context=self.autocast,
            before_backward=self._backward_mark,
        )

    def _stream_type(self, part: nn.Module) -> torch.dtype:
        formats = formats_of(self.case)
        if formats.numerics.stream is not formats.parameters:  # FSDP2's policy casts
            return torch_dtype(formats.numerics.stream)
        return next(part.parameters()).dtype

    def forward_backward(self, batch: Batch) -> Tensor:
        """Gradients of the batch's mean loss, reduced over the data-parallel ranks; its loss on the ranks that have the
        last stage, 0 on the others."""
        self._backward_mark.start()
        named = {}
        if self.has_head:
            named["labels"] = batch.labels.flatten(0, 1)
        if batch.keys is not None:
            named["keys"] = batch.keys.flatten()
        ids = (batch.ids.flatten(0, 1),) if 0 in dict(self.stages.parts()) else ()
        losses: list[Tensor] = []
        self.schedule.step(*ids, target=named.get("labels"), losses=losses, return_outputs=False, **named)
        return torch.stack(losses).sum().detach() if losses else torch.zeros((), device=self.device)

    def finish_gradients(self) -> None:
        """As without a pipeline; then a tied head's gradient and the embedding's are summed."""
        super().finish_gradients()
        if self._tied_head is not None:
            self._tied_head.sum_gradients()

    def clip(self) -> Tensor:
        """As without a pipeline; the norm is over every stage, a tied head counted once."""
        copies = () if self._tied_head is None else self._tied_head.copies
        return clip_gradients(self.model.parameters(), self.case.recipe.clip_norm, self.stages.group, copies)

    def evaluate(self, batches: Iterable[Batch]) -> Tensor:
        """Mean loss of held-out batches on the ranks that have the last stage, 0 on the others."""
        with torch.no_grad(), self.autocast():
            return torch.stack([self._forward_only(batch.ids[0], batch.labels[0]) for batch in batches]).mean()

    def _forward_only(self, ids: Tensor, labels: Tensor) -> Tensor:
        """One batch through every stage, its loss or 0. Each rank receives, computes and sends in turn, stage by
        stage, so that two ranks that send both ways do so in one order."""
        layout, group, stream = self.case.layout, self.stages.group, ids
        for index, part in self.stages.parts():
            if index and not self._is_here(index - 1):
                shape = (len(ids), *stream_shape(self.case)[1:])
                stream = torch.empty(shape, dtype=self._stream_type(part), device=self.device)
                dist.recv(stream, group=group, group_src=rank_of_stage(layout, index - 1))
            stream = part(stream, labels)
            if index + 1 < layout.stages and not self._is_here(index + 1):
                dist.send(stream, group=group, group_dst=rank_of_stage(layout, index + 1))
        return stream if self.has_head else torch.zeros((), device=self.device)

    def _is_here(self, stage: int) -> bool:
        return rank_of_stage(self.case.layout, stage) == dist.get_rank(self.stages.group)


def _nothing_left() -> Callable[[], None]:
    """What is left of a backward pass that has computed the weights' gradients already."""
    return lambda: None
