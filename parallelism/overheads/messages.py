"""Probes of what a message between stages costs the two hosts, once nobody waits for it any more."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor

from parallelism.overheads.shapes import LARGE_MESSAGE, MESSAGES, SMALL_MESSAGE
from suite.hardware.collective_times_worker import work_between

Call = Callable[[], object]
#: a piece of work, about as long as a message's way
WORK_S = 500e-6


def calls() -> dict[str, Call]:
    """Pieces of work, alone, and with a message sent to the neighbour and one received before each, small and large."""
    peer, work = dist.get_rank() ^ 1, work_between(WORK_S)
    sizes = (SMALL_MESSAGE, LARGE_MESSAGE)
    found: dict[str, Call] = {"work": lambda: [work() for _ in range(MESSAGES)]}
    return found | {f"message.{size}": partial(_crossing, _tensors(size), peer, work) for size in sizes}


def _tensors(size: int) -> list[tuple[Tensor, Tensor]]:
    return [(torch.ones(size // 4), torch.ones(size // 4)) for _ in range(MESSAGES)]


def _crossing(tensors: list[tuple[Tensor, Tensor]], peer: int, work: Call) -> None:
    """Both ranks send and receive at once; work hides the way. They wait for each other once, after the last."""
    started: list[dist.Work | None] = []
    for out, into in tensors:
        started += [dist.irecv(into, peer), dist.isend(out, peer)]
        work()
    for each in started:
        assert each is not None
        each.wait()
