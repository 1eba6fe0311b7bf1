"""The forked ranks themselves: results in order, every failure told, nothing left behind, never later than said."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import torch
import torch.distributed as dist

from tests.distributed.ranks import RanksFailed, run_jobs, run_on_ranks

pytestmark = pytest.mark.distributed

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    before = {process.pid for process in psutil.Process().children()}
    yield
    assert {process.pid for process in psutil.Process().children()} <= before


def rank_sum(rank: int) -> torch.Tensor:
    total = torch.tensor([rank + 1.0])
    if dist.is_initialized():
        dist.all_reduce(total)
    return total


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_values_come_in_order_of_rank(ranks: int) -> None:
    total = ranks * (ranks + 1) / 2
    assert [value.item() for value in run_on_ranks(ranks, rank_sum)] == [total] * ranks
    assert run_on_ranks(ranks, lambda rank: rank) == tuple(range(ranks))


def test_threads_of_the_parent_do_no_harm() -> None:
    """The parent's thread pool is gone after a fork: a rank that used it would hang."""
    big = torch.ones(500, 500)
    (big @ big).sum()  # starts the pool
    assert run_on_ranks(2, lambda rank: (torch.get_num_threads(), (big @ big)[0, 0].item())) == ((1, 500.0),) * 2


def test_an_exception_names_its_rank_and_stops_the_rest() -> None:
    def fail(rank: int) -> torch.Tensor:
        if rank == 1:
            raise ValueError("rank one's own words")
        return rank_sum(rank)  # waits for rank 1, in vain

    start = time.monotonic()
    good, bad, left = run_jobs(2, [rank_sum, fail, rank_sum], deadline_s=30)
    assert time.monotonic() - start < 10
    assert len(good.result()) == 2
    with pytest.raises(RanksFailed, match="rank one's own words"):
        bad.result()
    with pytest.raises(RanksFailed, match="not run: job 1 failed"):
        left.result()


def test_a_death_is_told() -> None:
    def die(rank: int) -> torch.Tensor:
        if rank == 1:
            os._exit(3)
        return rank_sum(rank)

    with pytest.raises(RanksFailed, match="rank 1 of 2 died in job 0"):
        run_on_ranks(2, die, deadline_s=30)


def test_a_hang_ends_at_the_deadline() -> None:
    def hang(rank: int) -> None:
        while rank == 1:
            time.sleep(1)

    start = time.monotonic()
    with pytest.raises(RanksFailed, match=r"no end within 1 s; jobs done, rank by rank: \[1, 0\]"):
        run_on_ranks(2, hang, deadline_s=1)
    assert time.monotonic() - start < 10


def test_ranks_do_not_outlive_a_killed_parent_for_long() -> None:
    code = """
import os, time
from tests.distributed.ranks import run_on_ranks
run_on_ranks(2, lambda rank: (os.write(1, b"%d\\n" % os.getpid()), time.sleep(60)), deadline_s=1)
"""
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        ranks = [psutil.Process(int(parent.stdout.readline())) for _ in range(2)]
        parent.kill()
    assert not psutil.wait_procs(ranks, timeout=10)[1]
