"""How far two traces are apart, tensor by tensor.

The measure for a tensor is max |a - b| / max |b|: errors of rounding grow with a tensor's largest terms, so a small
element beside large ones is not held to its own size.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import inf, isfinite

import torch
from torch import Tensor

from tests.distributed.traces import Trace


def gaps(trace: Trace, reference: Trace, sees_shifts: bool = True) -> Iterator[tuple[str, float]]:
    """(what, relative distance) of everything that a run computed. `sees_shifts`: does rotation tell keys that are all
    shifted alike (see `_scale`)?"""
    for name, mine, its in (("loss", trace.losses, reference.losses), ("norm", trace.norms, reference.norms)):
        for step, (a, b) in enumerate(zip(mine, its, strict=True)):
            yield f"{name} of step {step}", abs(a - b) / abs(b) if isfinite(a) else inf
    for step, (mine_, its_) in enumerate(zip(trace.gradients, reference.gradients, strict=True)):
        yield from _tensor_gaps(f"gradient of step {step}", mine_, its_, sees_shifts)
    yield from _tensor_gaps("last parameter", trace.end, reference.end, sees_shifts)


def _tensor_gaps(
    what: str, mine: Mapping[str, Tensor], its: Mapping[str, Tensor], sees_shifts: bool
) -> Iterator[tuple[str, float]]:
    for name in sorted(mine.keys() | its.keys()):
        a, b = mine.get(name), its.get(name)
        if a is None or b is None or a.shape != b.shape:
            yield f"{what}, {name}: {shape_text(a)} instead of {shape_text(b)}", inf
            continue
        scale = _scale(name, its, sees_shifts)
        distance = (a - b).abs().max().item()
        yield f"{what}, {name}", distance / scale if scale else distance


def shape_text(tensor: Tensor | None) -> str:
    """A tensor's shape in words."""
    return "none" if tensor is None else str(tuple(tensor.shape))


def _scale(name: str, tensors: Mapping[str, Tensor], sees_shifts: bool) -> float:
    """The size of a tensor, except for the one gradient that is nothing but rounding.

    A key's bias shifts all scores of a query alike, which softmax does not see: without rotation its true gradient
    is zero, and what is computed is what is left of the key weights' gradient when its rows cancel.
    """
    is_blind = not sees_shifts or any(other.endswith("positions.weight") for other in tensors)
    if name.endswith("wk.bias") and is_blind:
        name = name.replace("wk.bias", "wk.weight")
    return tensors[name].abs().max().item()


def overall_gap(mine: Mapping[str, Tensor], its: Mapping[str, Tensor]) -> float:
    """|a - b| / |b|, Euclidean, all tensors as one vector: what remains of errors that are as often up as down."""
    distance = sum((mine[name] - b).square().sum().item() for name, b in its.items())
    size = sum(b.square().sum().item() for b in its.values())
    return (distance / size) ** 0.5


def are_same_bits(trace: Trace, other: Trace) -> bool:
    """Is everything equal, bit for bit?"""
    return (
        trace.losses == other.losses
        and trace.norms == other.norms
        and all(same_tensors(a, b) for a, b in zip(trace.gradients, other.gradients, strict=True))
        and same_tensors(trace.end, other.end)
    )


def same_tensors(mine: Mapping[str, Tensor], its: Mapping[str, Tensor]) -> bool:
    """Are the same tensors there, equal bit for bit?"""
    return mine.keys() == its.keys() and all(torch.equal(mine[name], its[name]) for name in its)
