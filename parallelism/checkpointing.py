"""Activation checkpointing: torch's checkpoint around blocks, or around the attention core alone."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, cast

from parallelism.base import Strategy
from suite.layout import ContextMethod, Layout, Recompute, RecomputeKind
from suite.record import Component

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from torch import nn
    from torch.distributed.device_mesh import DeviceMesh

    from suite.case import Case

    Contexts = tuple[AbstractContextManager[Any], AbstractContextManager[Any]]

#: dispatched operators of which selective-op keeps every other output, and those of which it keeps all
PRODUCTS = frozenset({"aten.mm.default", "aten.addmm.default"})
SUMS = frozenset({"_c10d_functional.reduce_scatter_tensor.default"})
ATTENTION = frozenset(
    f"aten._scaled_dot_product_{kind}.default"
    for kind in ("flash_attention", "efficient_attention", "cudnn_attention", "flash_attention_for_cpu")
)


def apply(model: nn.Module, mesh: DeviceMesh | None, case: Case) -> nn.Module:
    """Wrap the blocks that the mode covers, or every attention core. No random state is kept: dropout draws from
    keys."""
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import CheckpointImpl, checkpoint_wrapper

    recompute = case.layout.recompute
    is_selective = recompute.kind is RecomputeKind.SELECTIVE_OP
    settings = {"context_fn": selective_contexts(case.layout)} if is_selective else {}

    def wrap(module: nn.Module) -> nn.Module:
        return checkpoint_wrapper(module, CheckpointImpl.NO_REENTRANT, preserve_rng_state=False, **settings)

    blocks = cast("nn.ModuleDict", model.blocks)
    for name, block in blocks.items():
        if recompute.covers_block(int(name)):
            blocks[name] = wrap(block)
        elif recompute.kind is RecomputeKind.SELECTIVE:
            for attention in [module for module in block.modules() if hasattr(module, "core")]:
                attention.core = wrap(cast("nn.Module", attention.core))
    return model


def selective_contexts(layout: Layout) -> Callable[[], Contexts]:
    """What makes the contexts of one pass of one block, forward and rerun, for torch's checkpoint: the policy of
    suite/selective.py over what is dispatched.

    A ring merges what attention to the first keys gives in place, which torch's cache refuses: it is run again whole.
    The cache does not see what changes a linear's output in place, which is another view of the product that it holds:
    layouts that do so are refused (suite/layout_rules.py).
    """
    from torch.utils.checkpoint import (
        CheckpointPolicy,
        SelectiveCheckpointContext,
        create_selective_checkpoint_contexts,
    )

    is_ring = layout.cp > 1 and layout.context is ContextMethod.RING
    kept = SUMS if is_ring else SUMS | ATTENTION

    def contexts() -> Contexts:
        counts: Counter[bool] = Counter()  # products so far, in the forward pass and in a rerun

        def policy(context: SelectiveCheckpointContext, operator: Any, *_: Any, **__: Any) -> CheckpointPolicy:
            name = str(operator)
            counts[context.is_recompute] += name in PRODUCTS
            is_kept = name in kept or (name in PRODUCTS and counts[context.is_recompute] % 2 == 1)
            return CheckpointPolicy.MUST_SAVE if is_kept else CheckpointPolicy.PREFER_RECOMPUTE

        return cast("Contexts", create_selective_checkpoint_contexts(policy))

    return contexts


def _is_used(layout: Layout) -> bool:
    return layout.recompute.kind is not RecomputeKind.NONE


CHECKPOINTING = Strategy(
    name="checkpointing",
    axis="recompute",
    divides=frozenset({Component.ACTIVATIONS}),
    overheads="one block's activations again while its backward runs; one more forward of what is covered, under"
    " selective-op without every other product, fused attention and scattered sums",
    sends="what a rerun block or core sends for tp and cp, again (selective-op keeps what tp scatters); for FSDP"
    " nothing more, the block is gathered anyway",
    is_used=_is_used,
    apply=apply,
    example={"recompute": Recompute(RecomputeKind.FULL)},
)
