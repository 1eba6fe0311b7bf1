"""Gradients of experts that expert parallelism divides: which parameters they are of, and their mean."""

from __future__ import annotations

from torch import nn
from torch.distributed.tensor import DTensor

from parallelism.data.flat import local_gradients
from suite.layout import Layout


def is_expert(parameter: nn.Parameter) -> bool:
    """Does each expert-parallel rank hold a part of it?"""
    return isinstance(parameter, DTensor) and "ep" in (parameter.device_mesh.mesh_dim_names or ())


def average_exchanged(model: nn.Module, layout: Layout) -> None:
    """Make means of the experts' gradients, once a step: every expert-parallel rank's loss is the mean over its own
    tokens, and the all-to-alls have brought the gradients of all of them here, to be summed."""
    if layout.ep > 1:
        for gradient in local_gradients(parameter for parameter in model.parameters() if is_expert(parameter)):
            gradient /= layout.ep
