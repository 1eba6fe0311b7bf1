"""A rank's stages: parts of the decoder, and what torch.distributed.pipelining runs them with."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.pipelining import PipelineStage
from torch.nn.parallel import DistributedDataParallel

from parallelism.schedules.stages import Stage
from suite.models.decoder_module import Decoder


class StageParts(nn.Module):
    """The stages that a rank holds, by number in forward order, and the ranks of its pipeline.

    Strategies replace a part by what they make of it; parameters are named <stage>.<name in the whole model>.
    """

    def __init__(self, parts: Mapping[int, nn.Module], group: dist.ProcessGroup) -> None:
        super().__init__()
        self.group = group
        for stage, part in parts.items():
            self.add_module(str(stage), part)

    def parts(self) -> Iterator[tuple[int, nn.Module]]:
        """Every stage's number and part."""
        return ((int(name), part) for name, part in self.named_children())

    def replace(self, spread: Callable[[nn.Module], nn.Module]) -> None:
        """Put `spread(part)` in the place of every part."""
        for stage, part in list(self.parts()):
            self.add_module(str(stage), spread(part))


def part_of(model: Decoder, stage: Stage) -> Decoder:
    """A decoder of the stage's blocks, which are the model's own modules."""
    with torch.device("meta"):
        part = Decoder(replace(model.spec, layers=model.spec.dense_layers + 1))
    part.spec, part.loss = model.spec, model.loss
    part.rope, part.alibi, part.sinusoids, part.dropout = model.rope, model.alibi, model.sinusoids, model.dropout
    part.embedding = model.embedding if stage.has_embedding else None
    part.positions = model.positions if stage.has_embedding else None
    part.blocks = nn.ModuleDict({str(index): model.blocks[str(index)] for index in stage.blocks})
    part.norm = model.norm if stage.has_head else None
    part.head = model.head if stage.has_head else None
    return part


def decoder_of(part: nn.Module) -> Decoder:
    """The decoder inside whatever data parallelism wrapped around a part."""
    inner = part.module if isinstance(part, DistributedDataParallel) else part
    assert isinstance(inner, Decoder)
    return inner


class TrainedStage(PipelineStage):
    """Torch's stage, whose forward passes run in a context (autocast), and whose backward passes are announced.

    Autocast is entered for each pass: around the whole step it would keep every weight's bf16 copy until the end.
    """

    def __init__(
        self,
        *given: Any,
        context: Callable[[], AbstractContextManager[Any]],
        before_backward: Callable[[], None],
        **named: Any,
    ) -> None:
        super().__init__(*given, **named)
        self._context = context
        self._before_backward = before_backward

    def forward_one_chunk(self, *given: Any, **named: Any) -> Any:
        """One micro-batch forward."""
        with self._context():
            return super().forward_one_chunk(*given, **named)

    def backward_one_chunk(self, bwd_chunk_id: int, *given: Any, **named: Any) -> Any:
        """One micro-batch backward, or the part of it that the schedule wants now."""
        self._before_backward()
        super().backward_one_chunk(bwd_chunk_id, *given, **named)
        if not self.is_first:  # a backward for inputs alone would keep their gradients here until the next step
            for received in self.args_recv_info[bwd_chunk_id]:
                if received.buffer is not None:
                    received.buffer.grad = None
