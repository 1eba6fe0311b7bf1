"""Ranks of several machines that meet: agreement, and every way to disagree, told alike to all by rank and node."""

from __future__ import annotations

import functools
import os
from datetime import timedelta
from pathlib import Path

import pytest
import torch.distributed as dist

from parallelism.group import Facts, Place, gather_rows, meet
from suite.parse import SpecError
from suite.ranklog import RankWriter, read_rank
from suite.record import Quantity, Sample
from tests.distributed.ranks import run_on_ranks

pytestmark = pytest.mark.distributed

SAME = Facts("aaaaaaaaaaaa bbbbbbbbbbbb", "2.13.0")


def met(said: tuple[Facts | str | None, ...], port: int, rank: int) -> str:
    """What a rank of four, two a node, hears when each says this; None: it does not come."""
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "4", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "True"
    mine, heard = said[rank], ""
    if mine is not None:
        try:
            store = meet(Place(rank, 4, rank // 2, 2), mine, timedelta(seconds=1))
        except SpecError as error:
            heard = str(error)
        else:
            assert store is not None
    return heard


@pytest.mark.parametrize(
    "said, heard",
    [
        ((SAME,) * 4, ""),
        (
            (SAME, SAME, Facts("cccccccccccc", "2.13.0"), Facts("cccccccccccc", "2.13.0")),
            "cases: not the same on every rank: ranks 0, 1 (node 0) aaaaaaaaaaaa bbbbbbbbbbbb;"
            " ranks 2, 3 (node 1) cccccccccccc; give every machine the same cases",
        ),
        (
            (SAME, Facts(SAME.cases, "2.12.1"), SAME, SAME),
            "torch: not the same on every rank: rank 1 (node 0) 2.12.1; ranks 0, 2, 3 (nodes 0, 1) 2.13.0;"
            " install the same on every machine",
        ),
        ((SAME, SAME, "layout: 2 ranks, but torchrun started 4", SAME), "rank 2 (node 1): layout: 2 ranks, but torch"),
        ((SAME, SAME, SAME, None), "rank 3: nothing heard within 1 s of the start"),
    ],
)
def test_ranks_that_meet(said: tuple[Facts | str | None, ...], heard: str) -> None:
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # torchrun's own, in its place
    answers = run_on_ranks(4, functools.partial(met, said, store.port))
    for mine, answer in zip(said, answers, strict=True):
        assert answer.startswith(heard if mine is not None else "")
        assert bool(answer) == bool(heard and mine is not None)


def test_a_rank_alone_meets_nobody() -> None:
    alone = Place(0, 1, 0, 1)
    assert meet(alone, SAME, timedelta(seconds=1)) is None
    with pytest.raises(SpecError, match=r"^cases: 'x' is empty$"):
        meet(alone, "cases: 'x' is empty", timedelta(seconds=1))


def test_rows_come_to_rank_0_from_folders_of_their_own(tmp_path: Path) -> None:
    stale = tmp_path / "0" / "rank-1.jsonl"
    stale.parent.mkdir()
    stale.write_text('{"heartbeat": "an earlier launch"}\n')

    def bring(rank: int) -> None:
        folder = tmp_path / str(rank)
        folder.mkdir(exist_ok=True)
        writer = RankWriter(folder, rank)
        writer.sample(Sample(Quantity.STEP_TIME, 0.5 + rank, rank))
        writer.done()
        gather_rows(Place(rank, 3, rank, 3), folder)

    run_on_ranks(3, bring)
    for rank in range(3):
        log = read_rank(tmp_path / "0", rank)
        assert (log.samples, log.heartbeat, log.done) == ((Sample(Quantity.STEP_TIME, 0.5 + rank, rank),), "", True)
    assert [path.name for path in (tmp_path / "1").iterdir()] == ["rank-1.jsonl"]
