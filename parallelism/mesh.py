"""Layout -> DeviceMesh: the only place where process groups are made."""

from __future__ import annotations

from typing import TYPE_CHECKING

from suite.spec import Layout

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

#: outermost first: ranks that differ in the last axis are neighbours
AXES = ("dp", "fsdp")


def build_mesh(layout: Layout, device_type: str) -> DeviceMesh | None:
    """The mesh of a layout with one named dimension for every axis above 1; None on a single rank."""
    if layout.world_size == 1:
        return None
    from torch.distributed.device_mesh import init_device_mesh

    names = tuple(axis for axis in AXES if getattr(layout, axis) > 1)
    return init_device_mesh(device_type, tuple(getattr(layout, axis) for axis in names), mesh_dim_names=names)
