"""What no wrapper reduces of gradients: beside tensor parallelism over replicas, and over parts of the sequence."""

from __future__ import annotations

from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor

from parallelism.data import replicate
from parallelism.data.expert_gradients import is_expert
from parallelism.data.flat import all_reduce_flat, local_gradients
from parallelism.mesh import expert_replica_mesh, replica_mesh
from suite.layout import Layout


def average_replicas(model: nn.Module, mesh: DeviceMesh | None, layout: Layout) -> None:
    """The mean of every gradient over its replicas. Doing it after every micro-batch gives the same: what was averaged
    before is alike on all of them."""
    if mesh is None or not replicate.is_used(layout):
        return
    parameters = list(reversed(list(model.parameters())))  # as backward made them
    alike = [each for each in parameters if not is_expert(each)]
    _average(local_gradients(alike), replica_mesh(mesh, layout), layout)
    if layout.expert_replica_ranks > 1:
        experts = [each for each in parameters if is_expert(each)]
        _average(local_gradients(experts), expert_replica_mesh(mesh, layout), layout)


def _average(gradients: list[Tensor], replicas: DeviceMesh, layout: Layout) -> None:
    for bucket in replicate.buckets([each.nbytes for each in gradients], replicate.bucket_cap_bytes(layout)):
        all_reduce_flat([gradients[index] for index in bucket], replicas.get_group(), divide_by=replicas.size())


def sum_sequence_parts(model: nn.Module, mesh: DeviceMesh | None, layout: Layout) -> None:
    """Whole gradients of what every tensor-parallel rank holds whole (norms, row biases, positions), from each rank's
    part of the sequence: once a step, after the last micro-batch, in one all-reduce. Under FSDP2, of shards."""
    if mesh is None or layout.tp == 1 or not layout.sequence_parallel:
        return
    whole = [parameter for parameter in model.parameters() if not is_divided(parameter)]
    if gradients := local_gradients(whole):
        all_reduce_flat(gradients, mesh["tp"].get_group())


def is_divided(parameter: nn.Parameter) -> bool:
    """Does each tensor-parallel rank hold a part of it?"""
    return isinstance(parameter, DTensor) and "tp" in (parameter.device_mesh.mesh_dim_names or ())
