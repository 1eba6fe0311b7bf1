"""Leaves oneDNN's workspace out of a measurement and of its estimate, so that all the rest of bf16 can be exact.

oneDNN runs every bf16 product on the CPU, and how much it packs depends on the processor's caches: the one part of
an estimate that is an approximation.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch

from suite.allocations import GATHER_SPANS
from suite.tape import Tape

PRODUCTS = ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm")


@contextmanager
def without_workspace() -> Iterator[None]:
    """Inside, a recording does not hear what a matrix product allocates and frees itself, and no estimate counts it."""
    with patch("suite.allocations._walk", _walk), patch.object(Tape, "packs_products", False):
        yield


def _walk(roots: Iterable[Any]) -> Iterator[tuple[Any, bool]]:
    """As suite.allocations walks, a product's own workspace passed over."""
    stack = [(event, False) for event in roots]
    while stack:
        event, inside = stack.pop()
        inside = inside or event.name.startswith(GATHER_SPANS)
        yield event, inside
        children = _lasting(event.children) if event.name in PRODUCTS else event.children
        stack.extend((child, inside) for child in children)


def _lasting(events: list[Any]) -> list[Any]:
    """The events but for blocks that are both allocated and freed among them."""
    born: dict[int, int] = {}
    passing: set[int] = set()
    order = sorted(range(len(events)), key=lambda place: events[place].start_time_ns)
    for place in order:
        event = events[place]
        if event.tag != torch._C._profiler._EventType.Allocation:
            continue
        block = event.extra_fields
        if block.alloc_size > 0:
            born[block.ptr] = place
        elif block.ptr in born:
            passing |= {born.pop(block.ptr), place}
    return [event for place, event in enumerate(events) if place not in passing]
