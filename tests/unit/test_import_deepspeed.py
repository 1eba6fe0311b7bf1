"""A DeepSpeed JSON becomes a case: what it says is taken, and every other key is listed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from reports.handover.deepspeed import deepspeed
from reports.intake.base import Taken
from reports.intake.deepspeed import is_deepspeed, read_deepspeed
from reports.intake.merge import merge
from suite.case import Case, case_from
from suite.parse import SpecError
from tests.unit.deepspeed_samples import SAMPLES
from tests.unit.test_import import parsed

pytestmark = pytest.mark.unit


def read(document: Any, folder: Path) -> Taken:
    path = folder / "ds.json"
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    return read_deepspeed(str(path))


def case_of(taken: Taken, *words: str) -> Case:
    return merge(taken, parsed("ds.json", "--device", "h100-sxm", *words), "ds.json").case


def test_zero_2(tmp_path: Path) -> None:
    taken = read(SAMPLES["zero-2"], tmp_path)
    case = case_of(taken, "--model", "gpt2-xl")
    assert (case.layout.zero, case.layout.dp, case.layout.is_deepspeed) == (2, 512 // (8 * 4), True)
    assert (case.workload.micro_batch, case.workload.micro_batches, case.global_batch) == (8, 4, 512)
    assert case.layout.bucket_mib == 400  # 209,715,200 elements of 2 bytes
    assert (case.recipe.learning_rate, case.recipe.weight_decay, case.recipe.clip_norm) == (0.00015, 0.01, 1.0)
    assert case.workload.optimizer.value == "adamw"
    assert case.workload.precision.value == "bf16-mixed"
    assert any(line.startswith("fp16.enabled true: bf16-mixed") for line in taken.assumed)
    assert taken.unmodelled == (
        "zero_optimization.overlap_comm true: modelled as its default: in stage 3 alone reductions overlap backward",
    )
    assert "fp16.hysteresis 2" in taken.ignored


def test_what_the_trainer_fills_in_is_named(tmp_path: Path) -> None:
    taken = read(SAMPLES["trainer"], tmp_path)
    case = case_of(taken, "--model", "llama3-8b", "--dp", "8", "--micro-batch", "2")
    assert (case.layout.zero, case.layout.offload.value, case.workload.precision.value) == (
        3,
        "parameters",
        "bf16-mixed",
    )
    assert case.recipe.clip_norm == 1.0
    said = [line.split(" auto: ")[0] for line in taken.assumed if " auto: " in line]
    said += [line.split(' "auto"')[0] for line in taken.ignored if line.endswith('"auto"')]
    assert sorted(said) == sorted(path for path, value in leaves(SAMPLES["trainer"]) if value == "auto")
    assert taken.unmodelled == ("zero_optimization.stage3_max_reuse_distance 1000000000: modelled as 0",)


@pytest.mark.parametrize(
    ("name", "unmodelled"),
    [
        (
            "1-bit",
            {
                "optimizer.type", "optimizer.params.freeze_step", "optimizer.params.cuda_aware",
                "optimizer.params.comm_backend_name", "prescale_gradients",
            },
        ),
        (
            "zero++",
            {
                f"zero_optimization.{key}"
                for key in ("zero_hpz_partition_size", "zero_quantized_weights", "zero_quantized_gradients")
            },
        ),
        (
            "nvme",
            {
                "zero_optimization.offload_optimizer.device", "zero_optimization.offload_param.device",
                "aio.block_size", "aio.queue_depth", "aio.overlap_events",
            },
        ),
        (
            "checkpointed",
            {
                "activation_checkpointing.partition_activations", "scheduler.type", "scheduler.params.cycle_min_lr",
                "scheduler.params.cycle_max_lr", "pipeline.stages", "made_up_key.deep",
            },
        ),
    ],
)  # fmt: skip
def test_what_is_not_modelled_is_listed(name: str, unmodelled: set[str], tmp_path: Path) -> None:
    taken = read(SAMPLES[name], tmp_path)
    assert {line.split(" ")[0] for line in taken.unmodelled} == unmodelled
    case_of(taken, "--model", "llama3-8b", "--dp", "4")


def test_old_names_and_checkpointing(tmp_path: Path) -> None:
    taken = read(SAMPLES["checkpointed"], tmp_path)
    case = case_of(taken, "--model", "llama3-8b", "--dp", "4")
    assert (case.layout.zero, case.layout.offload.value, str(case.layout.recompute)) == (1, "optimizer", "full")
    assert (case.workload.precision.value, case.workload.optimizer.value) == ("bf16-mixed", "sgd")
    assert (case.workload.micro_batch, case.workload.micro_batches) == (8, 1)  # 32 over 4 ranks, as DeepSpeed has it
    assert case.recipe.clip_norm == float("inf")
    assert any(line.startswith("layout.recompute full: ") for line in taken.assumed)


#: keys whose value goes into the case, or is what is modelled anyway
MODELLED = {
    "zero_optimization.allgather_partitions", "zero_optimization.reduce_scatter", "zero_optimization.stage",
    "zero_optimization.contiguous_gradients", "zero_optimization.reduce_bucket_size", "zero_optimization.cpu_offload",
    "zero_optimization.sub_group_size", "zero_optimization.stage3_max_live_parameters", "scheduler.type",
    "zero_optimization.offload_optimizer.device", "zero_optimization.offload_param.device",
    "zero_optimization.offload_optimizer.pin_memory", "zero_optimization.offload_param.pin_memory",
    "zero_optimization.stage3_param_persistence_threshold", "zero_optimization.stage3_max_reuse_distance",
    "zero_optimization.stage3_prefetch_bucket_size", "zero_optimization.overlap_comm", "bfloat16.enabled",
    "bf16.enabled", "optimizer.type", "optimizer.params.lr", "optimizer.params.weight_decay", "train_batch_size",
    "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping",
    "activation_checkpointing.cpu_checkpointing",
}  # fmt: skip


@pytest.mark.parametrize("name", SAMPLES)
def test_no_key_is_dropped(name: str, tmp_path: Path) -> None:
    taken = read(SAMPLES[name], tmp_path)
    said = {line.split(" ")[0] for line in (*taken.unmodelled, *taken.assumed, *taken.ignored)}
    assert {path for path, _ in leaves(SAMPLES[name])} - said - MODELLED == set()


CASES: list[dict[str, Any]] = [
    {"layout": {"dp": 4, "zero": 1}, "workload": {"precision": "fp32", "micro_batches": 3}},
    {"layout": {"dp": 4, "zero": 2, "offload": "optimizer", "bucket_mib": 25}, "recipe": {"clip_norm": "inf"}},
    {"layout": {"dp": 8, "zero": 3, "recompute": "full"}, "recipe": {"steps": 500, "warmup_steps": 50}},
    {"layout": {"dp": 8, "zero": 3, "offload": "parameters"}, "workload": {"micro_batch": 2, "optimizer": "sgd"}},
    {"layout": {"dp": 2, "engine": "deepspeed"}, "recipe": {"learning_rate": 3e-4, "weight_decay": 0.0}},
]


@pytest.mark.parametrize("parts", CASES)
def test_export_and_import_give_the_same_case(parts: dict[str, Any], tmp_path: Path) -> None:
    case = case_from({"model": "llama3-8b", "cluster": {"device": "h100-sxm"}} | parts)
    taken = read(deepspeed(case).text, tmp_path)
    assert case_of(taken, "--model", "llama3-8b") == case
    assert taken.unmodelled == ()


@pytest.mark.parametrize(
    ("document", "match"),
    [
        ("[]", "expected an object with keys"),
        ("{", "is not JSON"),
        ({"zero_optimization": []}, "zero_optimization: expected an object with keys"),
        ({"bf16": True}, "bf16: expected an object with keys"),
        ({"zero_optimization": {"stage": 4}}, "zero_optimization.stage: must be 0, 1, 2 or 3, got 4"),
        ({"zero_optimization": {"stage": "two"}}, "zero_optimization.stage: expected a whole number, got 'two'"),
        ({"train_batch_size": 1.5}, "train_batch_size: expected a whole number, got 1.5"),
        ({"gradient_accumulation_steps": 0}, "gradient_accumulation_steps: must be at least 1, got 0"),
        ({"bf16": {"enabled": True}, "fp16": {"enabled": True}}, "bf16 and fp16 are both enabled"),
        ({"zero_optimization": {"offload_param": {"device": "tpu"}}}, "'tpu' is not known; known: none, cpu, nvme"),
        ({"zero_optimization": {"stage": 1, "reduce_bucket_size": 0}}, "must be positive, got 0"),
    ],
)
def test_nonsense_is_refused_in_one_line(document: Any, match: str, tmp_path: Path) -> None:
    with pytest.raises(SpecError) as refused:
        read(document, tmp_path)
    assert match in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_deepspeed_file_is_told_by_its_content() -> None:
    assert all(is_deepspeed(json.dumps(sample)) for sample in SAMPLES.values())
    for other in (
        '{"model_type": "llama"}',
        "",
        "{",
        '["zero_optimization"]',
        '--zero_optimization "train_batch_size"',
    ):
        assert not is_deepspeed(other)


def leaves(value: Any, prefix: str = "") -> list[tuple[str, Any]]:
    if not isinstance(value, dict):
        return [(prefix, value)]
    return [pair for key, item in value.items() for pair in leaves(item, f"{prefix}.{key}" if prefix else key)]


@pytest.mark.parametrize(
    ("data", "match"),
    [
        ({"model": "deepseek-v3-1m"}, "model.experts.balance: bias with workload.precision(bf16-mixed)"),
        ({"model": "mixtral-1m", "layout": {"ep": 2}}, "layout.ep: 2: DeepSpeed's engine splits no model"),
    ],
)
def test_experts_that_the_engine_trains_otherwise_are_not_written(data: dict[str, Any], match: str) -> None:
    with pytest.raises(SpecError) as refused:
        deepspeed(case_from(data))
    assert str(refused.value).startswith(match)
    assert deepspeed(case_from(data | {"layout": {}, "workload": {"precision": "fp32"}})).text
