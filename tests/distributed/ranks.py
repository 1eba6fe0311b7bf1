"""Runs jobs on forked gloo ranks: real processes and real collectives, 0.1 s to start where torchrun takes 6 s.

The ranks of one call share a process group and run its jobs in turn. Whatever a job does, the call returns within
its deadline and leaves no process: a rank that outlives its parent is ended by its own alarm.
"""

from __future__ import annotations

import multiprocessing
import pickle
import signal
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from math import ceil
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
import torch.distributed as dist

T = TypeVar("T")
Job = Callable[[int], T]

DEADLINE_S = 60.0


class RanksFailed(AssertionError):
    """A job that did not end well on every rank: which rank, and its traceback."""


@dataclass(frozen=True)
class Ran(Generic[T]):
    """One job's end: a value from every rank in order, or what stopped it."""

    values: tuple[T, ...] = ()
    failure: str = ""

    def result(self) -> tuple[T, ...]:
        """Every rank's value; RanksFailed if there is none."""
        if self.failure:
            raise RanksFailed(self.failure)
        return self.values


def run_on_ranks(ranks: int, job: Job[T], deadline_s: float = DEADLINE_S) -> tuple[T, ...]:
    """What `job(rank)` returns on each of so many ranks, in order. Raises RanksFailed with the rank's traceback."""
    return run_jobs(ranks, [job], deadline_s)[0].result()


def run_jobs(ranks: int, jobs: Sequence[Job[T]], deadline_s: float = DEADLINE_S) -> list[Ran[T]]:
    """Run the jobs in turn on the same ranks. After a failure the ranks no longer agree, so the rest is not run.

    Values come back pickled: tensors travel by value. With one rank there is no process group, as in training.
    """
    context = multiprocessing.get_context("fork")
    with tempfile.TemporaryDirectory() as folder:
        pipes = [context.Pipe(duplex=False) for _ in range(ranks)]
        processes = [
            context.Process(
                target=_live, args=(rank, ranks, jobs, pipes[rank][1], Path(folder) / "store", deadline_s), daemon=True
            )
            for rank in range(ranks)
        ]
        try:
            for process in processes:
                process.start()
            for _, writer in pipes:
                writer.close()  # so that a rank's death is the end of its pipe
            values, failure = _listen([reader for reader, _ in pipes], len(jobs), deadline_s)
        finally:
            _end(processes)
            for reader, _ in pipes:
                reader.close()
    done = min(len(mine) for mine in values)
    ran = [Ran(tuple(mine[place] for mine in values)) for place in range(done)]
    if done < len(jobs):
        ran.append(Ran(failure=failure))
        ran += [Ran(failure=f"not run, after: {failure}")] * (len(jobs) - done - 1)
    return ran


def _live(rank: int, ranks: int, jobs: Sequence[Job[Any]], writer: Connection, store: Path, deadline_s: float) -> None:
    """A rank's life. torch's thread pools do not survive a fork: one thread, said before anything else."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(ceil(deadline_s) + 1)
    try:
        if ranks > 1:
            limit = timedelta(seconds=deadline_s)
            dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=ranks, timeout=limit)
        for job in jobs:
            writer.send_bytes(pickle.dumps((True, job(rank))))
        if ranks > 1:
            dist.barrier()  # a rank that leaves early would break the others' last collective
    except BaseException:
        writer.send_bytes(pickle.dumps((False, f"rank {rank} of {ranks}: {traceback.format_exc()}")))
    finally:
        writer.close()


def _listen(readers: list[Connection], jobs: int, deadline_s: float) -> tuple[list[list[Any]], str]:
    """Collect what the ranks say until all is said, one fails or dies, or the deadline passes."""
    values: list[list[Any]] = [[] for _ in readers]
    deadline = time.monotonic() + deadline_s
    while waiting := [reader for reader, mine in zip(readers, values, strict=True) if len(mine) < jobs]:
        ready = wait(waiting, timeout=max(0.0, deadline - time.monotonic()))
        if not ready:
            return values, f"no end within {deadline_s:g} s; jobs done by rank: {[len(mine) for mine in values]}"
        for reader in ready:
            assert isinstance(reader, Connection)
            rank = readers.index(reader)
            try:
                is_value, value = pickle.loads(reader.recv_bytes())
            except EOFError:
                return values, f"rank {rank} of {len(readers)} died in job {len(values[rank])}"
            if not is_value:
                return values, value
            values[rank].append(value)
    return values, ""


def _end(processes: Sequence[BaseProcess]) -> None:
    """Let those that have said everything leave by themselves; end the others."""
    patience = time.monotonic() + 2
    for process in processes:
        if process.pid is None:
            continue
        process.join(max(0.0, patience - time.monotonic()))
        if process.is_alive():
            process.kill()
            process.join()
