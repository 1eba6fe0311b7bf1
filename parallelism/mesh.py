"""Layout -> DeviceMesh: the only place where process groups are made."""

from __future__ import annotations

from typing import TYPE_CHECKING

from suite.layout import AXES, Layout

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


def build_mesh(layout: Layout, device_type: str) -> DeviceMesh | None:
    """The mesh of a layout with one named dimension for every axis above 1; None on a single rank."""
    if layout.world_size == 1:
        return None
    from torch.distributed.device_mesh import init_device_mesh

    names = tuple(axis for axis in AXES if getattr(layout, axis) > 1)
    return init_device_mesh(device_type, tuple(getattr(layout, axis) for axis in names), mesh_dim_names=names)


def replica_mesh(mesh: DeviceMesh, layout: Layout) -> DeviceMesh:
    """The ranks that average gradients of what they all hold: dp, with cp where FSDP2 does not shard over it."""
    return _joined(mesh, layout, ("dp",) if layout.fsdp > 1 else ("dp", "cp"))


def shard_mesh(mesh: DeviceMesh, layout: Layout) -> DeviceMesh:
    """The ranks that FSDP2 shards over: fsdp, with cp."""
    return _joined(mesh, layout, ("fsdp", "cp"))


def hsdp_mesh(mesh: DeviceMesh, layout: Layout) -> DeviceMesh:
    """The two dimensions of hybrid sharding: replicas (dp) by shards (fsdp, with cp)."""
    from torch.distributed.device_mesh import DeviceMesh

    return DeviceMesh._concatenate([mesh["dp"], shard_mesh(mesh, layout)])


def _joined(mesh: DeviceMesh, layout: Layout, axes: tuple[str, ...]) -> DeviceMesh:
    """One dimension of the axes above 1."""
    names = tuple(axis for axis in axes if getattr(layout, axis) > 1)
    return mesh[names[0]] if len(names) == 1 else mesh[names]._flatten("_".join(names))
