"""Arrays that one segment makes and later ones read: where their gradient begins, and who lets go of them last.

An encoder's output is read by every block of the decoder, a position bias by every block of its stack. Blocks that
play different parts for them, the first and the last, become segments of their own; those between stay one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from suite.operators import Array, Kernel, Operator, Placed, Region, Segment


def with_roles(placed: Sequence[Placed]) -> tuple[Placed, ...]:
    """The segments in forward order, each with its part for what is lent: `opens`, `closes`, `awaits`."""
    opens: dict[int, set[Array]] = {}
    closes: dict[int, set[Array]] = {}
    awaits: dict[int, set[Array]] = {}
    for maker, lender in enumerate(placed):
        for array in lender.segment.makes:
            readers = [place for place, each in enumerate(placed) if array in each.segment.borrows]
            givers = [place for place in readers if _gives_gradient(placed[place].segment.body, array)]
            keepers = [place for place in (maker, *readers) if _keeps(placed[place].segment.body, array)]
            # what is kept goes in the backward pass, which ends with the first; else with the last reader's frame
            closes.setdefault(keepers[0] if keepers else [maker, *readers][-1], set()).add(array)
            if givers:
                opens.setdefault(givers[-1], set()).add(array)
                awaits.setdefault(maker, set()).add(array)
    made: dict[tuple[Segment, frozenset[Array], frozenset[Array], frozenset[Array]], Segment] = {}
    result = []
    for place, each in enumerate(placed):
        roles = tuple(frozenset(table.get(place, ())) for table in (opens, closes, awaits))
        key = (each.segment, roles[0], roles[1], roles[2])
        if key not in made:
            changed = replace(each.segment, opens=roles[0], closes=roles[1], awaits=roles[2])
            made[key] = changed if any(roles) else each.segment
        result.append(Placed(each.prefix, made[key]))
    return tuple(result)


def _kernels(body: Iterable[Operator | Region]) -> Iterable[Kernel]:
    for part in body:
        yield from _kernels(part.body) if isinstance(part, Region) else part.kernels


def _gives_gradient(body: Iterable[Operator | Region], array: Array) -> bool:
    return any(array in kernel.gradients or array in kernel.passes for kernel in _kernels(body))


def _keeps(body: Iterable[Operator | Region], array: Array) -> bool:
    """Does the backward pass of these read the array, or a view of it, or a rerun start from it?"""
    names = {array}
    for part in body:
        if isinstance(part, Region):
            if names & set(part.inputs):
                return True
            continue
        for kernel in part.kernels:
            if kernel.is_view and kernel.reads[0] in names:
                names.update(kernel.writes)
            if names & set(kernel.saves):
                return True
    return False
