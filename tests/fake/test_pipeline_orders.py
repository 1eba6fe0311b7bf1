"""The orders that estimators use are torch's own, for many pipelines, in one process."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.pipelining import PipelineStage
from torch.testing._internal.distributed.fake_pg import FakeStore

from parallelism.pipeline.trainer import SCHEDULES
from parallelism.schedules.orders import order_of
from parallelism.schedules.stages import stages_of_rank
from suite.layout import Layout, Schedule

pytestmark = pytest.mark.fake

#: torch's table for 1F1B starts the last rank at micro-batch 1 (2.13); what it runs is held to ours on real ranks
WITH_A_TABLE = [schedule for schedule in Schedule if schedule is not Schedule.ONE_F_ONE_B]


@pytest.fixture(params=[2, 3, 4, 5])
def pp(request: pytest.FixtureRequest) -> Iterator[int]:
    """Ranks of a group that exists by name alone."""
    dist.init_process_group("fake", rank=0, world_size=request.param, store=FakeStore())
    yield request.param
    dist.destroy_process_group()


@pytest.mark.parametrize("schedule", WITH_A_TABLE)
def test_orders_are_torchs(schedule: Schedule, pp: int) -> None:
    low, high = schedule.stages_a_rank
    compared = 0
    for virtual_stages in range(low, (high or low + 2) + 1):
        layout = Layout(pp=pp, schedule=schedule, virtual_stages=virtual_stages)
        for micro_batches in range(1, 3 * pp + 2):
            table = torchs_table(layout, micro_batches)
            for rank in table:
                assert [str(action) for action in order_of(layout, micro_batches, rank)] == table[rank]
                compared += 1
    assert compared >= pp * pp


def torchs_table(layout: Layout, micro_batches: int) -> dict[int, list[str]]:
    """Each rank's computations in order; nothing where torch does not take so many micro-batches."""
    mine = stages_of_rank(layout, 0)
    stages = [PipelineStage(nn.Linear(1, 1), stage, layout.stages, torch.device("cpu")) for stage in mine]
    single = layout.schedule.stages_a_rank == (1, 1)
    try:
        schedule = SCHEDULES[layout.schedule](stages[0] if single else stages, micro_batches)
    except ValueError:
        return {}
    return {rank: [*computations(actions)] for rank, actions in schedule.pipeline_order.items()}


def computations(actions: list[object]) -> Iterator[str]:
    """Forward and backward passes, overlapped ones in turn."""
    for action in actions:
        for part in getattr(action, "sub_actions", None) or (action,):
            if part is not None and part.computation_type.value in ("F", "B", "I", "W"):
                yield str(part)
