"""A case handed over as DeepSpeed's JSON: its own parser reads the same settings, and its engine trains the same."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch

from parallelism.batches import Batch
from parallelism.building import make_trainer
from parallelism.mesh import build_mesh
from parallelism.optimizers import parameter_groups
from parallelism.training import build_model, learning_rate
from parallelism.zero.trainer import import_deepspeed
from reports.handover.deepspeed import deepspeed
from suite.case import Case, case_from
from suite.layout import Layout
from suite.spec import Precision
from tests.distributed.ranks import run_jobs
from tests.distributed.test_zero import ADAMW, BF16, Run
from tests.distributed.traces import CPU, STEPS, rank_batch

pytestmark = pytest.mark.distributed

DEADLINE_S = 120
SHOWN_STEPS = STEPS + 2


def recipe_case(run: Run) -> Case:
    """The run's case with a warm-up that ends within the steps taken, and a cosine after it."""
    case = run.case
    return replace(case, recipe=replace(case.recipe, steps=8, warmup_steps=2, clip_norm=0.5))


TRAINED = [
    Run(2, optimizer=ADAMW, parts=2),
    Run(3, precision=BF16, optimizer=ADAMW),
]


def exported_rate(case: Case, step: int) -> float:
    """WarmupCosineLR's learning rate of a step, as the export says that it differs: 0 in the first two, then the
    warm-up two steps late, and what comes after it as in our own recipe."""
    recipe = case.recipe
    if step <= recipe.warmup_steps:
        return recipe.learning_rate * max(0, step - 1) / recipe.warmup_steps
    return learning_rate(recipe, step)


def losses_of_ours(case: Case, rank: int) -> list[float]:
    """Our own worker's losses at the exported learning rates, and of the last batch once more."""
    with patch("parallelism.training.learning_rate", lambda recipe, step: exported_rate(case, step)):
        trainer = make_trainer(case, build_mesh(case.layout, CPU.type), CPU)
        losses = [trainer.step(step, rank_batch(case, rank, step)).loss.item() for step in range(SHOWN_STEPS)]
        batch = rank_batch(case, rank, SHOWN_STEPS - 1)
        losses.append(trainer.evaluate([Batch(batch.ids[:1], batch.labels[:1])]).item())
    trainer.close()
    return losses


def losses_of_export(case: Case, path: Path, rank: int) -> list[float]:
    """What a user's own loop around deepspeed.initialize gives with the file alone."""
    module = import_deepspeed("cpu")
    model = build_model(case, CPU)
    groups = parameter_groups(model.parameters(), case.recipe.weight_decay)
    os.environ["LOCAL_RANK"] = str(rank)  # as every launcher sets it, and this process is the rank's own
    engine, *_ = module.initialize(model=model, model_parameters=groups, config=str(path))
    losses = []
    for step in range(SHOWN_STEPS):
        batch, parts = rank_batch(case, rank, step), []
        for index in range(len(batch)):
            loss = engine(batch.ids[index], batch.labels[index], None)
            engine.backward(loss)
            engine.step()
            parts.append(loss.detach())
        losses.append(torch.stack(parts).mean().item())
    with torch.no_grad():
        losses.append(engine(batch.ids[0], batch.labels[0], None).item())
    engine.destroy()
    return losses


def test_the_exported_file_trains_what_our_worker_trains(tmp_path: Path) -> None:
    cases = [recipe_case(run) for run in TRAINED]
    cases.append(replace(cases[0], layout=Layout(fsdp=2)))
    jobs: list[Any] = []
    for place, case in enumerate(cases):
        path = tmp_path / f"{place}.json"
        path.write_text(deepspeed(case).text)
        jobs += [partial(losses_of_ours, case), partial(losses_of_export, case, path)]
    ran = [run.result() for run in run_jobs(2, jobs, DEADLINE_S)]
    for case, ours, theirs in zip(cases, ran[::2], ran[1::2], strict=True):
        for one, other in zip(ours, theirs, strict=True):  # rank by rank; FSDP2 sums in another order
            assert other == (one if case.layout.is_deepspeed else pytest.approx(one, rel=1e-6)), str(case.layout)


@contextmanager
def world_of(ranks: int) -> Iterator[None]:
    """What DeepSpeed's parser asks of the ranks that would run."""
    with (
        patch("deepspeed.runtime.config.dist.get_rank", lambda: 0),
        patch("deepspeed.runtime.config.dist.get_world_size", lambda: ranks),
    ):
        yield


def parsed(case: Case, path: Path) -> Any:
    from deepspeed.runtime.config import DeepSpeedConfig

    path.write_text(deepspeed(case).text)
    with world_of(case.layout.world_size):
        return DeepSpeedConfig(str(path))


def make(**parts: Any) -> Case:
    return case_from({"model": "llama3-8b", "cluster": {"device": "h100-sxm"}} | parts)


def test_deepspeed_reads_every_setting(tmp_path: Path) -> None:
    case = make(
        layout={"dp": 16, "zero": 3, "offload": "parameters", "bucket_mib": 100, "recompute": "full"},
        workload={"seq_len": 2048, "micro_batch": 2, "micro_batches": 4},
        recipe={"steps": 1000, "warmup_steps": 100, "learning_rate": 3e-4, "weight_decay": 0.05, "clip_norm": 0.5},
    )
    read = parsed(case, tmp_path / "ds.json")
    zero = read.zero_config
    assert (read.train_batch_size, read.train_micro_batch_size_per_gpu, read.gradient_accumulation_steps) == (128, 2, 4)
    assert (read.gradient_clipping, read.bfloat16_config.enabled, read.float16_config.enabled) == (0.5, True, False)
    assert (zero.stage, zero.reduce_bucket_size) == (3, 100 * 2**20 // 2)
    assert (zero.offload_optimizer.device, zero.offload_param.device) == ("cpu", "cpu")
    assert zero.offload_param.pin_memory is True
    assert (read.optimizer_name, read.optimizer_params["lr"], read.optimizer_params["weight_decay"]) == (
        "adamw",
        3e-4,
        0.05,
    )
    assert read.scheduler_name == "WarmupCosineLR"
    assert (read.scheduler_params["total_num_steps"], read.scheduler_params["warmup_num_steps"]) == (1000, 100)
    assert read.activation_checkpointing_config.number_checkpoints == 32


@pytest.mark.parametrize(
    ("layout", "stage", "words"),
    [
        ({"dp": 4, "zero": 1}, 1, ()),
        ({"dp": 4}, 0, ("layout.engine torch: DeepSpeed's stage 0 in DDP's place", "decays the weights once")),
        ({"dp": 4, "zero": 1, "engine": "torch"}, 1, ("in ZeroRedundancyOptimizer's place",)),
        ({"fsdp": 4}, 3, ("layout.fsdp 4: ZeRO-3",)),
        ({"dp": 2, "fsdp": 4}, 3, ("DeepSpeed shards over all 8 ranks",)),
        ({"fsdp": 4, "reshard_after_forward": False}, 2, ("layout.reshard_after_forward false: ZeRO-2",)),
        ({"fsdp": 8, "reshard_after_forward": 4}, 3, ("zero_hpz_partition_size 4",)),
        ({"dp": 1}, 0, ()),
    ],
)
def test_layouts_go_to_the_nearest_stage(
    layout: dict[str, Any], stage: int, words: tuple[str, ...], tmp_path: Path
) -> None:
    case = make(layout=layout)
    read, said = parsed(case, tmp_path / "ds.json"), " | ".join(deepspeed(case).unsaid)
    assert read.zero_config.stage == stage
    assert read.train_batch_size == case.global_batch
    assert read.zero_config.zero_hpz_partition_size == (layout.get("reshard_after_forward") or 1)
    assert [word for word in words if word not in said] == []


@pytest.mark.parametrize("precision", list(Precision))
def test_precisions(precision: Precision, tmp_path: Path) -> None:
    case = make(layout={"fsdp": 4}, workload={"precision": precision.value})
    read, said = parsed(case, tmp_path / "ds.json"), " | ".join(deepspeed(case).unsaid)
    assert read.float16_config.enabled is (precision is Precision.FP16_MIXED)
    assert read.bfloat16_config.enabled is (precision not in (Precision.FP32, Precision.FP16_MIXED))
    assert read.bfloat16_config.bf16_optimizer_states is (precision is Precision.BF16)
    assert ("workload.precision" in said) is (precision not in (Precision.FP32, Precision.BF16))
