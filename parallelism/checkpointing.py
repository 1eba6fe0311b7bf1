"""Activation checkpointing: torch's checkpoint around blocks, or around the attention core alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from parallelism.base import Strategy
from suite.layout import Layout, Recompute, RecomputeKind
from suite.record import Component

if TYPE_CHECKING:
    from torch import nn
    from torch.distributed.device_mesh import DeviceMesh

    from suite.case import Case


def apply(model: nn.Module, mesh: DeviceMesh | None, case: Case) -> nn.Module:
    """Wrap the blocks that the mode covers, or every attention core. No random state is kept: dropout draws from
    keys."""
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import CheckpointImpl, checkpoint_wrapper

    def wrap(module: nn.Module) -> nn.Module:
        return checkpoint_wrapper(module, CheckpointImpl.NO_REENTRANT, preserve_rng_state=False)

    recompute = case.layout.recompute
    blocks = cast("nn.ModuleDict", model.blocks)
    for name, block in blocks.items():
        if recompute.covers_block(int(name)):
            blocks[name] = wrap(block)
        elif recompute.kind is RecomputeKind.SELECTIVE:
            attention = block.get_submodule("attention")
            attention.core = wrap(attention.get_submodule("core"))
    return model


def _is_used(layout: Layout) -> bool:
    return layout.recompute.kind is not RecomputeKind.NONE


CHECKPOINTING = Strategy(
    name="checkpointing",
    axis="recompute",
    divides=frozenset({Component.ACTIVATIONS}),
    overheads="one block's activations again while its backward runs; one more forward of what is covered",
    sends="what a rerun block or core sends for tp and cp, again; for FSDP nothing more, the block is gathered anyway",
    is_used=_is_used,
    apply=apply,
    example={"recompute": Recompute(RecomputeKind.FULL)},
)
