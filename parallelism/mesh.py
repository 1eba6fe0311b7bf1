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
    """The ranks that average gradients of what they all hold: dp, with ep and cp where FSDP2 does not shard over
    them."""
    return _joined(mesh, layout, ("dp",) if layout.fsdp > 1 else ("dp", "ep", "cp"))


def expert_replica_mesh(mesh: DeviceMesh, layout: Layout) -> DeviceMesh:
    """The ranks that average gradients of the same experts: those of `replica_mesh`, but for ep's."""
    return _joined(mesh, layout, ("dp",) if layout.fsdp > 1 else ("dp", "cp"))


def expert_mesh(mesh: DeviceMesh, layout: Layout) -> DeviceMesh:
    """The dimensions that divide experts: ep their number, and tp, where there is one, their width."""
    return mesh[("ep", "tp")] if layout.tp > 1 else mesh["ep"]


def shard_mesh(mesh: DeviceMesh, layout: Layout) -> DeviceMesh:
    """The ranks that FSDP2 shards over, but for experts: fsdp, with ep and cp."""
    return _joined(mesh, layout, ("fsdp", "ep", "cp"))


def expert_shard_mesh(mesh: DeviceMesh, layout: Layout) -> DeviceMesh:
    """The ranks that FSDP2 shards a rank's experts over: fsdp, with cp."""
    return _joined(mesh, layout, ("fsdp", "cp"))


def hsdp_mesh(mesh: DeviceMesh, layout: Layout) -> DeviceMesh:
    """The two dimensions of hybrid sharding: replicas (dp) by shards (fsdp, with ep and cp)."""
    return _replicated(mesh, shard_mesh(mesh, layout))


def expert_hsdp_mesh(mesh: DeviceMesh, layout: Layout) -> DeviceMesh:
    """The same of a rank's experts: replicas (dp) by shards (fsdp, with cp)."""
    return _replicated(mesh, expert_shard_mesh(mesh, layout))


def _replicated(mesh: DeviceMesh, shards: DeviceMesh) -> DeviceMesh:
    from torch.distributed.device_mesh import DeviceMesh

    return DeviceMesh._concatenate([mesh["dp"], shards])


def _joined(mesh: DeviceMesh, layout: Layout, axes: tuple[str, ...]) -> DeviceMesh:
    """One dimension of the axes above 1."""
    names = tuple(axis for axis in axes if getattr(layout, axis) > 1)
    return mesh[names[0]] if len(names) == 1 else mesh[names]._flatten("_".join(names))
