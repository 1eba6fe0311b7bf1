"""Pipelines compute what one process computes: every schedule, split and product, with dropout, tied and not."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from unittest.mock import patch

import pytest

from parallelism import building
from parallelism.batches import Batch
from parallelism.mesh import build_mesh
from parallelism.pipeline.parts import TrainedStage
from parallelism.pipeline.tied_head import TiedHead
from parallelism.pipeline.trainer import PipelineTrainer
from parallelism.schedules.orders import Action, Pass, schedule_order
from suite.case import Case
from suite.layout import Schedule
from suite.models.decoder_module import Block
from tests.distributed.differences import are_same_bits
from tests.distributed.judgement import differences
from tests.distributed.pipelines import (
    CHECKPOINTED,
    CONTEXT,
    FORMATS,
    PRODUCTS,
    SCHEDULES,
    TENSOR,
    Run,
    Runs,
    pipeline,
    recompute,
    run_of,
)
from tests.distributed.ranks import run_jobs, run_on_ranks
from tests.distributed.traces import CPU, RANKS_DIFFER, RankTrace, merged, rank_batch, record

pytestmark = pytest.mark.distributed

EQUAL = SCHEDULES + PRODUCTS + TENSOR + CONTEXT + CHECKPOINTED + FORMATS


@pytest.fixture(scope="module")
def runs() -> Runs:
    return Runs([each for run in EQUAL for each in (run, run.reference)] + [run.stored for run in CHECKPOINTED])


@pytest.mark.parametrize("run", EQUAL, ids=str)
def test_a_pipeline_computes_what_one_process_computes(runs: Runs, run: Run) -> None:
    found = differences(runs.trace(run), runs.trace(run.reference), run.case, run.is_double)
    assert not found, "\n".join(found[:20])


@pytest.mark.parametrize("run", CHECKPOINTED, ids=str)
def test_checkpointing_changes_no_bit(runs: Runs, run: Run) -> None:
    assert are_same_bits(runs.trace(run), runs.trace(run.stored))


def test_every_schedule_meets_every_kind_of_model_and_loss() -> None:
    met = {(run.case.layout.schedule, run.case.model.tied) for run in SCHEDULES}
    assert met == {(schedule, tied) for schedule in Schedule for tied in (True, False)}
    assert {(run.case.layout.schedule, run.case.workload.loss.value) for run in SCHEDULES} == {
        (schedule, loss) for schedule in Schedule for loss in ("plain", "chunked")
    }


# --- the order is the schedule's --------------------------------------------------------------------------------------

ORDERS = [
    run_of("llama-gqa", pipeline(schedule, 3, **more), micro_batches).case
    for schedule, micro_batches, more in (
        ("gpipe", 2, {}),
        ("1f1b", 6, {}),
        ("interleaved-1f1b", 6, {"virtual_stages": 3}),
        ("interleaved-zero-bubble", 6, {}),
        ("zbv", 4, {}),
        ("dualpipev", 12, {}),
    )
]


def heard_order(case: Case, rank: int) -> list[Action]:
    """What the stages of a rank are really asked to do in a step."""
    heard: list[Action] = []

    def listening(name: str, kind: Callable[..., Pass]) -> object:
        run = getattr(TrainedStage, name)

        def listen(stage: TrainedStage, item: int, *given: object, **named: object) -> object:
            heard.append(Action(stage.stage_index, kind(**named), item))
            return run(stage, item, *given, **named)

        return patch.object(TrainedStage, name, listen)

    trainer = building.make_trainer(case, build_mesh(case.layout, "cpu"), CPU)
    with (
        listening("forward_one_chunk", lambda **named: Pass.FORWARD),  # type: ignore[attr-defined]
        listening(  # type: ignore[attr-defined]
            "backward_one_chunk", lambda full_backward=True, **named: Pass.BACKWARD if full_backward else Pass.INPUT
        ),
        listening("backward_weight_one_chunk", lambda **named: Pass.WEIGHT),  # type: ignore[attr-defined]
    ):
        trainer.step(0, rank_batch(case, rank, 0))
    return heard


def test_ranks_really_run_the_orders_that_the_estimators_use() -> None:
    ran = run_jobs(3, [partial(heard_order, case) for case in ORDERS])
    for case, each in zip(ORDERS, ran, strict=True):
        assert each.result() == tuple(list(schedule_order(case, rank)) for rank in range(3))


def reruns(case: Case, rank: int) -> int:
    """Forward passes of blocks in a step."""
    count = 0

    def counted(block: Block, *given: object) -> object:
        nonlocal count
        count += 1
        return run(block, *given)

    run = Block.forward
    trainer = building.make_trainer(case, build_mesh(case.layout, "cpu"), CPU)
    with patch.object(Block, "forward", counted):
        trainer.step(0, rank_batch(case, rank, 0))
    return count


def test_a_split_backward_reruns_a_block_once() -> None:
    """Two blocks a rank, three micro-batches, each twice: not once more for each of a block's matrices."""
    case = run_of("llama-gqa", pipeline("zbv", **recompute("full")), 3, layers=4).case
    assert run_on_ranks(2, partial(reruns, case)) == (12, 12)


# --- the test of the tests ---------------------------------------------------------------------------------------

TIED, UNTIED = run_of("gpt", pipeline("1f1b"), 2), run_of("llama-gqa", pipeline("zbv"), 3)


class SumsMicroBatches(PipelineTrainer):
    """Forgets to divide by the number of micro-batches."""

    def forward_backward(self, batch: Batch) -> object:  # type: ignore[override]
        loss = super().forward_backward(batch)
        for item in self.model.parameters():
            assert item.grad is not None
            item.grad.mul_(len(batch))
        return loss


class SwapsLabels(PipelineTrainer):
    """Gives two micro-batches each other's labels."""

    def forward_backward(self, batch: Batch) -> object:  # type: ignore[override]
        return super().forward_backward(Batch(batch.ids, batch.labels.flip(0), batch.keys))


class ClipsByStage(PipelineTrainer):
    """Takes the norm of this rank's stages for the model's."""

    def clip(self) -> object:  # type: ignore[override]
        with patch("parallelism.clipping.dist.all_reduce"):
            return super().clip()


class CountsTheHeadTwice(PipelineTrainer):
    """Counts a tied head in the norm on both ranks."""

    def clip(self) -> object:  # type: ignore[override]
        with patch.object(TiedHead, "copies", ()):
            return super().clip()


class LosesHalfTheTiedGradient(PipelineTrainer):
    """Leaves the embedding's gradient and the head's as they are."""

    def finish_gradients(self) -> None:
        with patch.object(TiedHead, "sum_gradients"):
            super().finish_gradients()


def mistaken(run: Run, trainer: type[PipelineTrainer], rank: int) -> RankTrace:
    """The broken run on one rank."""
    with patch("parallelism.pipeline.trainer.PipelineTrainer", trainer):
        return record(run.case, rank, double=run.is_double)


@pytest.mark.parametrize(
    "run, trainer, found",
    [
        (UNTIED, SumsMicroBatches, "gradient of step 0, blocks.0"),
        (UNTIED, SwapsLabels, "loss of step 0"),
        (UNTIED, ClipsByStage, "norm of step 0"),
        (TIED, CountsTheHeadTwice, "norm of step 0"),
        (TIED, LosesHalfTheTiedGradient, "gradient of step 0, embedding.weight"),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else "",
)
def test_a_mistake_is_found(run: Run, trainer: type[PipelineTrainer], found: str) -> None:
    trace = merged(run_on_ranks(2, partial(mistaken, run, trainer)))
    reference = merged(run_on_ranks(1, partial(record, run.reference.case, double=True)))
    lines = differences(trace, reference, run.case, run.is_double)
    assert any(line.startswith(found) for line in lines if not line.endswith(RANKS_DIFFER)), lines[:20]
