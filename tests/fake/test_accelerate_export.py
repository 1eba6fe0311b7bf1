"""A case handed over as accelerate's YAML: its own parser and launcher read the same settings."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
import transformers
from accelerate import DeepSpeedPlugin, FullyShardedDataParallelPlugin
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.parallelism_config import ParallelismConfig
from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env
from torch.distributed.fsdp import CPUOffloadPolicy

from reports.handover.accelerate import accelerate
from suite.case import Case, case_from
from suite.models import preset
from suite.models.hf_family import BLOCKS, reference_family
from suite.parse import SpecError

pytestmark = pytest.mark.fake


def make(layout: dict[str, Any], **parts: Any) -> Case:
    return case_from({"model": "llama3-8b", "cluster": {"device": "h100-sxm"}, "layout": layout} | parts)


def launched(case: Case, folder: Path) -> tuple[Any, dict[str, str]]:
    """What `accelerate launch` reads of the file, and the environment that it starts ranks with."""
    path = folder / "accelerate.yaml"
    path.write_text(accelerate(case).text)
    words = ["--config_file", str(path), "--main_process_port", "0", "train.py"]
    with patch("sys.argv", ["accelerate", *words]):
        args, _, _ = _validate_launch_command(launch_command_parser().parse_args(words))
    read = load_config_from_file(str(path))
    if not args.use_deepspeed:
        return read, prepare_multi_gpu_env(args)
    args.deepspeed_fields_from_accelerate_config = ",".join(read.deepspeed_config)  # as launch_command has it
    return read, prepare_deepspeed_cmd_env(args)[1]


def test_fsdp_with_every_axis(tmp_path: Path) -> None:
    case = make(
        {"dp": 2, "fsdp": 4, "tp": 2, "cp": 2, "recompute": "full", "reshard_after_forward": False},
        cluster={"device": "h100-sxm", "nodes": 4},
        workload={"seq_len": 8192, "micro_batches": 4},
    )
    read, environment = launched(case, tmp_path)
    assert (read.distributed_type, read.mixed_precision, read.num_processes, read.num_machines) == (
        "FSDP",
        "bf16",
        32,
        4,
    )
    with patch.dict(os.environ, environment):
        plugin, sizes = FullyShardedDataParallelPlugin(), ParallelismConfig()
    assert (plugin.fsdp_version, plugin.reshard_after_forward, plugin.activation_checkpointing) == (2, False, True)
    assert plugin.transformer_cls_names_to_wrap == ["LlamaDecoderLayer"]
    assert plugin.auto_wrap_policy.__name__ == "transformer_auto_wrap_policy"
    assert (sizes.dp_replicate_size, sizes.dp_shard_size, sizes.cp_size, sizes.tp_size) == (2, 4, 2, 2)
    assert sizes.total_size == case.layout.world_size
    assert sizes.cp_handler.cp_comm_strategy == "alltoall"
    said = " | ".join(accelerate(case).unsaid)
    for words in (
        "workload.micro_batches 4",
        "reduce_type fp32: accelerate reduces gradients in bf16",
        "tp_plan='auto'",
    ):
        assert words in said


@pytest.mark.parametrize("offload", ["none", "parameters"])
def test_fsdp_offload(offload: str, tmp_path: Path) -> None:
    _, environment = launched(make({"fsdp": 4, "offload": offload}), tmp_path)
    with patch.dict(os.environ, environment):
        plugin = FullyShardedDataParallelPlugin()
    assert isinstance(plugin.cpu_offload, CPUOffloadPolicy) is (offload == "parameters")
    assert plugin.reshard_after_forward is True
    plugin.set_mixed_precision("bf16")  # as Accelerator does: what the line on reduce_type says
    assert plugin.mixed_precision_policy.reduce_dtype is torch.bfloat16


@pytest.mark.parametrize(("stage", "offload"), [(1, "none"), (2, "optimizer"), (3, "parameters")])
def test_zero(stage: int, offload: str, tmp_path: Path) -> None:
    case = make({"dp": 8, "zero": stage, "offload": offload}, workload={"micro_batches": 4}, recipe={"clip_norm": 0.5})
    read, environment = launched(case, tmp_path)
    assert (read.distributed_type, read.mixed_precision) == ("DEEPSPEED", "bf16")
    with patch.dict(os.environ, environment):
        config = DeepSpeedPlugin().deepspeed_config
    zero = config["zero_optimization"]
    assert (zero["stage"], config["gradient_accumulation_steps"], config["gradient_clipping"]) == (stage, 4, 0.5)
    devices = {"none": ("none", "none"), "optimizer": ("cpu", "none"), "parameters": ("cpu", "cpu")}[offload]
    assert (zero["offload_optimizer"]["device"], zero["offload_param"]["device"]) == devices


@pytest.mark.parametrize(
    ("layout", "kind"),
    [({"dp": 4}, "MULTI_GPU"), ({}, "NO"), ({"dp": 4, "engine": "deepspeed"}, "DEEPSPEED"), ({"fsdp": 2}, "FSDP")],
)
def test_kinds_of_runs(layout: dict[str, Any], kind: str, tmp_path: Path) -> None:
    path = tmp_path / "accelerate.yaml"
    path.write_text(accelerate(make(layout)).text)
    assert load_config_from_file(str(path)).distributed_type == kind


@pytest.mark.parametrize(
    ("precision", "said"),
    [
        ("fp32", "no"),
        ("bf16", "no"),
        ("bf16-mixed", "bf16"),
        ("fp16-mixed", "fp16"),
        ("fp8", "fp8"),
        ("fp8-rowwise", "fp8"),
    ],
)
def test_precisions(precision: str, said: str, tmp_path: Path) -> None:
    made = accelerate(make({"fsdp": 2}, workload={"precision": precision}))
    path = tmp_path / "accelerate.yaml"
    path.write_text(made.text)
    assert load_config_from_file(str(path)).mixed_precision == said
    assert any("workload.precision" in line for line in made.unsaid) is (precision in ("bf16", "fp8", "fp8-rowwise"))


@pytest.mark.parametrize("name", ["gpt2-xl", "llama3-8b", "mistral-7b", "qwen2.5-7b", "mla-1m"])
def test_the_blocks_class_is_one_that_transformers_has(name: str) -> None:
    family = reference_family(preset(name))
    module = __import__(f"transformers.models.{family}.modeling_{family}", fromlist=[BLOCKS[family]])
    assert issubclass(getattr(module, BLOCKS[family]), torch.nn.Module)
    head = transformers.AutoModelForCausalLM._model_mapping[transformers.CONFIG_MAPPING[family]]
    assert BLOCKS[family] in head._no_split_modules


def test_a_comment_for_all_that_is_not_said() -> None:
    case = make(
        {"fsdp": 2}, model={"layers": 2, "hidden": 64, "heads": 2, "ffn": 64, "vocab": 64, "name": "a\nb: \x07c"}
    )
    made = accelerate(case)
    comments = [line for line in made.text.splitlines() if line.startswith("#")]
    assert len(comments) == len(made.unsaid)


@pytest.mark.parametrize(
    ("layout", "match"),
    [
        ({"pp": 2, "dp": 2}, "layout.pp: 2: accelerate runs no pipeline"),
        ({"tp": 2}, "accelerate takes tp and cp beside FSDP2 alone"),
        ({"dp": 2, "cp": 2}, "accelerate takes tp and cp beside FSDP2 alone"),
        ({"fsdp": 2, "cp": 2, "context": "ulysses"}, "layout.context: ulysses"),
    ],
)
def test_what_accelerate_cannot_run_is_refused(layout: dict[str, Any], match: str) -> None:
    with pytest.raises(SpecError, match=match):
        accelerate(make(layout, workload={"micro_batches": 4}))
