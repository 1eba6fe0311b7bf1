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
#: work beside a message, several times as long as its way
WORK_S = 3e-3


def calls() -> dict[str, Call]:
    """Some work, alone, and while messages are sent to the neighbour and received from it, small and large."""
    peer, work = dist.get_rank() ^ 1, work_between(WORK_S)
    sizes = (SMALL_MESSAGE, LARGE_MESSAGE)
    return {"work": work} | {f"message.{size}": partial(_crossing, _tensors(size), peer, work) for size in sizes}


def _tensors(size: int) -> list[Tensor]:
    return [torch.ones(size // 4) for _ in range(2 * MESSAGES)]


def _crossing(tensors: list[Tensor], peer: int, work: Call) -> None:
    """Both ranks send and receive at once; work hides the way. Many, for the ranks wait for each other only once."""
    started = [dist.irecv(into, peer) for into in tensors[:MESSAGES]]
    started += [dist.isend(out, peer) for out in tensors[MESSAGES:]]
    work()
    for each in started:
        assert each is not None
        each.wait()
