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
from functools import partial
from math import ceil
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
import torch._dynamo  # every optimizer and profiler imports it on first use: here, so that forked ranks find it done
import torch.distributed as dist

from suite.case import Case

T = TypeVar("T")
Job = Callable[[int], T]  # rank -> what it found

DEADLINE_S = 60.0
#: how long the other ranks may take to say their side of a failure, and to leave when all is said
LAST_WORDS_S, LEAVING_S = 0.2, 2.0


class RanksFailed(AssertionError):
    """A job that did not end well on every rank: which ranks, and their tracebacks."""


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
    pipes = [context.Pipe(duplex=False) for _ in range(ranks)]
    readers = [reader for reader, _ in pipes]
    with tempfile.TemporaryDirectory() as folder:
        life = _Life(ranks, jobs, pipes, Path(folder) / "store", deadline_s)
        processes: list[BaseProcess] = [
            context.Process(target=life.live, args=(rank,), daemon=True) for rank in range(ranks)
        ]
        patience_s = 0.0
        try:
            for process in processes:
                process.start()
            for _, writer in pipes:
                writer.close()  # so that a rank's death is the end of its pipe
            values, failure = _listen(readers, len(jobs), deadline_s)
            patience_s = 0.0 if failure else LEAVING_S
        finally:
            _end(processes, patience_s)
            for reader in readers:
                reader.close()
    done = min(len(mine) for mine in values)
    ran = [Ran(tuple(mine[place] for mine in values)) for place in range(done)]
    left = len(jobs) - done
    return ran + [Ran(failure=failure if place == 0 else f"not run: job {done} failed") for place in range(left)]


@dataclass(frozen=True)
class _Life:
    """What a forked rank does."""

    ranks: int
    jobs: Sequence[Job[Any]]
    pipes: Sequence[tuple[Connection, Connection]]
    store: Path
    deadline_s: float

    def live(self, rank: int) -> None:
        torch.set_num_threads(1)  # first of all: the parent's thread pools did not survive the fork
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(ceil(self.deadline_s) + 1)
        for other, (reader, writer) in enumerate(self.pipes):
            reader.close()
            if other != rank:
                writer.close()
        mine = self.pipes[rank][1]
        try:
            self._join(rank)
            for job in self.jobs:
                mine.send_bytes(pickle.dumps((True, job(rank))))
            if self.ranks > 1:
                dist.barrier()  # a rank that leaves early would break the others' last collective
        except BaseException:
            mine.send_bytes(pickle.dumps((False, f"rank {rank} of {self.ranks}: {traceback.format_exc()}")))
        finally:
            mine.close()

    def _join(self, rank: int) -> None:
        if self.ranks > 1:
            limit, store = timedelta(seconds=self.deadline_s), f"file://{self.store}"
            dist.init_process_group("gloo", init_method=store, rank=rank, world_size=self.ranks, timeout=limit)


def _listen(readers: Sequence[Connection], jobs: int, deadline_s: float) -> tuple[list[list[Any]], str]:
    """Collect what the ranks say until all is said, or until one fails, dies or makes the others wait too long."""
    values: list[list[Any]] = [[] for _ in readers]
    failures: dict[int, str] = {}
    deadline = time.monotonic() + deadline_s
    while waiting := [
        reader for rank, reader in enumerate(readers) if len(values[rank]) < jobs and rank not in failures
    ]:
        ready = wait(waiting, timeout=max(0.0, deadline - time.monotonic()))
        if not ready and not failures:
            return values, f"no end within {deadline_s:g} s; jobs done, rank by rank: {[len(mine) for mine in values]}"
        if not ready:
            break
        for reader in ready:
            assert isinstance(reader, Connection)
            rank = readers.index(reader)
            is_value, value = _receive(reader)
            if is_value:
                values[rank].append(value)
                continue
            deadline = min(deadline, time.monotonic() + LAST_WORDS_S)
            failures[rank] = value or f"rank {rank} of {len(readers)} died in job {len(values[rank])}"
    # one rank's failure breaks the others' collectives, so the first to speak is not always the cause: all are told
    return values, "\n".join(failures.values())


def _receive(reader: Connection) -> tuple[bool, Any]:
    try:
        is_value, value = pickle.loads(reader.recv_bytes())
    except EOFError:
        return False, ""
    return is_value, value


def _end(processes: Sequence[BaseProcess], patience_s: float) -> None:
    """Let those that have said everything leave by themselves; end the others."""
    patience = time.monotonic() + patience_s
    for process in processes:
        if process.pid is None:
            continue
        process.join(max(0.0, patience - time.monotonic()))
        if process.is_alive():
            process.kill()
            process.join()


def run_cases(cases: Sequence[Case], job: Callable[[Case, int], T], deadline_s: float) -> dict[Case, tuple[T, ...]]:
    """What a job finds of each case on each of its ranks; cases of as many ranks share a fork."""
    found: dict[Case, tuple[T, ...]] = {}
    for ranks in sorted({case.layout.world_size for case in cases}):
        mine = [case for case in cases if case.layout.world_size == ranks]
        runs = run_jobs(ranks, [partial(job, case) for case in mine], deadline_s=deadline_s)
        found |= {case: tuple(run.result()) for case, run in zip(mine, runs, strict=True)}
    return found
