"""Ranks that measure at once: forked from a process that has imported torch and has no threads yet."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Barrier, Event
from typing import Any

from suite.environment import available_cores, cpu_model, others_cpu_seconds
from suite.hardware.matrix_rate_worker import BARRIER_S, collect

#: rounds that are kept at least
LEAST = 5

Request = dict[str, Any]


@dataclass(frozen=True)
class Meeting:
    """Where ranks wait for each other, and what the first tells the others: that this was the last round."""

    barrier: Barrier
    over: Event

    def rounds(self, is_first: bool, seconds: float, warmup: int) -> Iterator[int]:
        """Numbers of the rounds that all ranks take together: for so many seconds, LEAST beside the warm-up in any
        case. The first rank says when it is over."""
        index, deadline = 0, time.monotonic() + seconds
        while True:
            if is_first and index >= warmup + LEAST and time.monotonic() > deadline:
                self.over.set()
            self.barrier.wait(BARRIER_S)
            if self.over.is_set():
                return
            yield index
            index += 1


#: (request, meeting, is this the first rank?) -> what it found
Measure = Callable[[Request, Meeting, bool], dict[str, Any]]


def measure_on_ranks(request: Request, measure: Measure) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """What each of request["ranks"] ranks at once finds, of request["threads"] threads each; and on what machine, with
    the cores that other processes kept busy meanwhile."""
    import torch

    start, before = time.monotonic(), others_cpu_seconds()
    results = _forked(request, measure)
    others = (others_cpu_seconds() - before) / (time.monotonic() - start)
    return results, {
        "cpu": cpu_model() or "CPU",
        "cores": available_cores(),
        "torch": torch.__version__,
        "wait_policy": os.environ.get("OMP_WAIT_POLICY", "default"),
        "other_cores": max(0.0, others),
    }


def _forked(request: Request, measure: Measure) -> list[dict[str, Any]]:
    context = multiprocessing.get_context("fork")
    meeting = Meeting(context.Barrier(request["ranks"]), context.Event())
    children, receivers = [], []
    for rank in range(request["ranks"]):
        receiver, sender = context.Pipe(duplex=False)
        child = context.Process(target=_run_rank, args=(sender, meeting, rank == 0, request, measure), daemon=True)
        child.start()
        sender.close()  # before the next fork: with no other holder, a rank that dies is an end of file
        children.append(child)
        receivers.append(receiver)
    results: list[Any] = collect(receivers)
    for child in children:
        child.join()
    return results


def _run_rank(
    sender: Connection[Any, Any], meeting: Meeting, is_first: bool, request: Request, measure: Measure
) -> None:
    """One rank: its readings, or what went wrong."""
    import torch

    torch.set_num_threads(request["threads"])
    try:
        sender.send(measure(request, meeting, is_first))
    except Exception as error:  # whatever it is, the parent tells it in one line
        sender.send(f"{type(error).__name__}: {error}".splitlines()[0])
