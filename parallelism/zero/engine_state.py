"""What DeepSpeed's engine holds on a rank, tensor by tensor, and whole parameters and gradients from it.

Every function takes a trainer whose model is DeepSpeed's engine.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import Any, cast

import torch
from torch import Tensor, nn

from parallelism.training import Trainer
from suite.memory_probe import optimizer_tensors
from suite.record import Component


def held_tensors(trainer: Trainer) -> dict[Component, list[Tensor]]:
    """The engine's own tensors on this rank as they are now, by component; several may share a storage.

    Found through the engine's attributes, which are not a public interface: DeepSpeed 0.19, runtime/zero/stage3.py,
    runtime/zero/stage_1_and_2.py and runtime/fp16/unfused_optimizer.py.
    """
    sharded = cast(Any, trainer.model).optimizer
    parameters = list(trainer.model.parameters())
    held: dict[Component, list[Tensor]] = {
        Component.PARAMETERS: list(parameters),
        Component.BUFFERS: list(trainer.model.buffers()),
        Component.GRADIENTS: [item.grad for item in parameters if item.grad is not None],
        Component.OPTIMIZER: list(optimizer_tensors(trainer.optimizer)),
        Component.COMMUNICATION: [],
    }
    if trainer.case.layout.zero == 3:
        _add_stage_3(held, sharded)
    elif trainer.case.layout.zero:
        _add_stage_1_or_2(held, sharded)
    else:
        held[Component.OPTIMIZER] += chain.from_iterable(getattr(sharded, "fp32_groups", ()))
    return held


def storage_bytes(tensors: list[Tensor]) -> int:
    """Bytes of the storages behind some tensors, each once."""
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())


def full_gradients(trainer: Trainer) -> dict[str, Tensor]:
    """Every gradient whole, in fp32, after the last micro-batch and before the update. All ranks must call it."""
    from deepspeed.utils import safe_get_full_grad

    take = safe_get_full_grad if trainer.case.layout.zero else _own_gradient
    return {name: take(item).detach().float().clone() for name, item in _named_parameters(trainer)}


def full_parameters(trainer: Trainer) -> dict[str, Tensor]:
    """Every parameter whole, in fp32, as the next forward pass will use it. All ranks must call it."""
    import deepspeed

    named = dict(_named_parameters(trainer))
    if trainer.case.layout.zero < 3:
        return {name: item.detach().float().clone() for name, item in named.items()}
    with deepspeed.zero.GatheredParameters(list(named.values())):
        return {name: item.detach().float().clone() for name, item in named.items()}


def _named_parameters(trainer: Trainer) -> Iterator[tuple[str, nn.Parameter]]:
    """Parameters by their names in the bare model."""
    for name, item in trainer.model.named_parameters():
        yield name.removeprefix("module.").replace("_checkpoint_wrapped_module.", ""), item


def _own_gradient(parameter: nn.Parameter) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad


def _add_stage_1_or_2(held: dict[Component, list[Tensor]], sharded: object) -> None:
    masters = _tensors(sharded, "single_partition_of_fp32_groups")
    held[Component.PARAMETERS] += _tensors(sharded, "bit16_groups_flat")
    held[Component.OPTIMIZER] += masters
    held[Component.GRADIENTS] += [item.grad for item in masters if item.grad is not None]
    for groups in (getattr(sharded, "averaged_gradients", {}), getattr(sharded, "all_grad_tensors", {})):
        held[Component.GRADIENTS] += chain.from_iterable(group for group in groups.values() if group is not None)
    held[Component.GRADIENTS] += list(getattr(sharded, "accumulated_grads_in_cpu", {}).values())
    for bucket in getattr(sharded, "ipg_buckets", {}).values():
        held[Component.COMMUNICATION] += bucket.buffer
    held[Component.COMMUNICATION] += _tensors(
        sharded,
        "param_buffer_of_bit16_for_cpu_offload_groups",
        "temp_grad_buffer_for_cpu_offload",
        "temp_grad_buffer_for_gpu_offload",
    )


def _add_stage_3(held: dict[Component, list[Tensor]], sharded: object) -> None:
    masters = _tensors(sharded, "fp32_partitioned_groups_flat")
    flat = _tensors(sharded, "lp_param_buffer", "param_groups_fp16_flat_cpu_memory")
    shared = {tensor.untyped_storage().data_ptr() for tensor in flat}
    held[Component.PARAMETERS] += flat
    held[Component.OPTIMIZER] += [item for item in masters if item.untyped_storage().data_ptr() not in shared]
    held[Component.GRADIENTS] += _tensors(sharded, "grad_partitions_flat_buffer")
    held[Component.GRADIENTS] += [item.grad for item in masters if item.grad is not None]
    for bucket in getattr(sharded, "ipg_buckets", {}).values():
        held[Component.COMMUNICATION] += [] if bucket.buffer is None else [bucket.buffer]


def _tensors(holder: object, *names: str) -> list[Tensor]:
    """The tensors under an object's attributes, alone or in lists; absent ones are none."""
    values = (getattr(holder, name, ()) for name in names)
    return [item for value in values for item in ([value] if isinstance(value, torch.Tensor) else value)]
