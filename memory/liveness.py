"""Who reads what last, what outlives the forward pass, and how many gradients a weight will receive."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TypeGuard

from suite.operators import Array, Kernel, Operator, Region, Segment, Weight


def parts_of(body: Iterable[Operator | Region]) -> Iterable[Kernel | Region]:
    for part in body:
        if isinstance(part, Region):
            yield part
        else:
            yield from part.kernels


def kernels_of(body: Iterable[Operator | Region]) -> Iterable[Kernel]:
    """Every kernel, those inside regions included, in order."""
    for part in parts_of(body):
        if isinstance(part, Region):
            yield from kernels_of(part.body)
        else:
            yield part


def last_reads(parts: list[Kernel | Region]) -> dict[int, list[Array]]:
    """Index of a part -> the arrays whose last reader (or, never read, whose writer) it is."""
    seen: dict[Array, int] = {}
    for index, part in enumerate(parts):
        touched = part.inputs + part.outputs if isinstance(part, Region) else part.reads + part.writes
        for array in touched:
            if not isinstance(array, Weight):
                seen[array] = index
    last: dict[int, list[Array]] = {}
    for array, index in seen.items():
        last.setdefault(index, []).append(array)
    return last


def kept_of(segment: Segment) -> dict[Array, str]:
    """Arrays that outlive the forward pass, and for whom: a kernel, a region's rerun, or the next segment."""
    kept: dict[Array, str] = {segment.output: "the next segment"} if segment.output is not None else {}
    for part in parts_of(segment.body):
        inside = part.inputs if isinstance(part, Region) else part.saves
        kept.update({array: f"{part.name} (rerun)" if isinstance(part, Region) else part.name for array in inside})
        if isinstance(part, Region):
            kept.update(dict.fromkeys(part.kept, f"{part.name} (rerun without it)"))
    for kernel in reversed(list(kernels_of(segment.body))):
        kept.update(dict.fromkeys(kernel.holds, kernel.name))
        if kernel.is_view:  # keeping a view keeps what it is a view of
            for array in kernel.writes:
                if array in kept:
                    kept[kernel.reads[0]] = kept[array]
    return kept


def is_tied(array: Array) -> TypeGuard[Weight]:
    return isinstance(array, Weight) and array.tied_to is not None


def contributions_of(body: Iterable[Operator | Region]) -> Counter[Array]:
    """How many gradients each weight will receive."""
    counts: Counter[Array] = Counter()
    for part in parts_of(body):
        if isinstance(part, Region):
            counts.update(contributions_of(part.body))
        else:
            counts.update(array for array in part.gradients if isinstance(array, Weight))
    return counts


def receivers_of(body: Iterable[Operator | Region]) -> set[Array]:
    """What receives gradients."""
    return {array for kernel in kernels_of(body) for array in (*kernel.gradients, *kernel.passes)}


def casts_of(body: Iterable[Operator | Region]) -> frozenset[Array]:
    """Autocast's copies of weights: its cache holds them to the end of the forward pass, regions or not."""
    found: set[Array] = set()
    for part in parts_of(body):
        if isinstance(part, Region):
            found |= casts_of(part.body)
        elif part.is_weight_cast:
            found.update(part.writes)
    return frozenset(found)


@dataclass(frozen=True)
class Modules:
    """The weights of each module that has some, by the kernels that it begins and ends with."""

    first: Mapping[Kernel, tuple[Weight, ...]]
    last: Mapping[Kernel, tuple[Weight, ...]]


def modules_of(segment: Segment) -> Modules:
    """An operator with weights is a module; several that follow each other with other weights of one module are it
    together, as the products of a mixture's experts."""
    owners: list[tuple[Operator, ...]] = []
    for operator in segment.operators():
        if not operator.weights:
            continue
        if owners and _is_one_module(owners[-1], operator):
            owners[-1] += (operator,)
        else:
            owners.append((operator,))
    weights = [tuple(weight for operator in module for weight in operator.weights) for module in owners]
    return Modules(
        {module[0].kernels[0]: mine for module, mine in zip(owners, weights, strict=True)},
        {module[-1].kernels[-1]: mine for module, mine in zip(owners, weights, strict=True)},
    )


def _is_one_module(begun: tuple[Operator, ...], operator: Operator) -> bool:
    """Has the operator other weights of the module that these operators are?"""
    known = {weight.name for each in begun for weight in each.weights}
    places = {name.rpartition(".")[0] for name in (*known, *(weight.name for weight in operator.weights))}
    return len(places) == 1 and known.isdisjoint(weight.name for weight in operator.weights)
