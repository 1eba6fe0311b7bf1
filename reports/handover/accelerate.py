"""A case as Hugging Face accelerate's YAML, as `accelerate launch --config_file` takes it: FSDP2, DeepSpeed or DDP."""

from __future__ import annotations

import math
from typing import Any

import yaml

from reports.handover.accelerate_gaps import layout_gaps, precision_gaps, script_gaps
from reports.handover.base import Handover
from reports.handover.zero_form import zero_form
from suite.case import Case
from suite.layout import ContextMethod, Layout, Offload, RecomputeKind
from suite.models.hf_family import BLOCKS, reference_family
from suite.parse import SpecError, require
from suite.spec import Precision

FILENAME = "accelerate.yaml"
_PRECISIONS = {
    Precision.FP32: "no",
    Precision.BF16: "no",  # the model itself is bf16
    Precision.BF16_MIXED: "bf16",
    Precision.FP16_MIXED: "fp16",
    Precision.FP8: "fp8",
    Precision.FP8_ROWWISE: "fp8",
}


def accelerate(case: Case) -> Handover:
    """The case as accelerate.yaml, with a comment for what it cannot say.

    fsdp goes to FSDP2 (with tp and cp by `parallelism_config`), zero to DeepSpeed, the rest to DDP. SpecError for pp,
    for Ulysses, and for tp or cp without fsdp: accelerate has no such run.
    """
    layout = case.layout
    _check(layout)
    document, gaps = _machine(case), [*layout_gaps(case), *precision_gaps(case), *script_gaps(case)]
    if layout.zero or layout.is_deepspeed:
        near, differing = zero_form(case)
        document |= {"distributed_type": "DEEPSPEED", "deepspeed_config": _deepspeed_section(near)}
        document["mixed_precision"] = "no" if near.workload.precision is Precision.FP32 else "bf16"
        gaps = [*differing, *gaps]
    elif layout.fsdp > 1:
        section, wrapped = _fsdp_section(case)
        document |= {"distributed_type": "FSDP", "fsdp_config": section}
        gaps += wrapped
        if layout.dp * layout.tp * layout.cp > 1:
            document["parallelism_config"] = _parallelism_section(layout)
        if document["mixed_precision"] == "fp8":
            document["fp8_config"] = {"fp8_backend": "AO"}
    else:
        kind = "MULTI_CPU" if case.cluster.device == "cpu" else "MULTI_GPU"
        document["distributed_type"] = kind if layout.world_size > 1 else "NO"
    comments = "".join(f"# not said here: {_one_line(gap)}\n" for gap in gaps)
    text = comments + yaml.safe_dump(document, sort_keys=False, allow_unicode=True)
    return Handover(text, FILENAME, tuple(gaps), _usage(case))


def _check(layout: Layout) -> None:
    require(
        layout.pp == 1,
        f"layout.pp: {layout.pp}: accelerate runs no pipeline of its own; export to torchtitan or megatron",
    )
    require(
        layout.cp == 1 or layout.context is ContextMethod.RING,
        f"layout.context: {layout.context}: accelerate's Ulysses is DeepSpeed's, for models of transformers; use ring",
    )
    if layout.fsdp == 1 and layout.tp * layout.cp > 1:
        raise SpecError(
            f"layout: dp({layout.dp}) fsdp(1) tp({layout.tp}) cp({layout.cp}): accelerate takes tp and cp beside FSDP2"
            " alone; raise fsdp"
        )


def _machine(case: Case) -> dict[str, Any]:
    """The keys that every configuration has."""
    cluster = case.cluster
    document: dict[str, Any] = {
        "compute_environment": "LOCAL_MACHINE",
        "distributed_type": "NO",
        "mixed_precision": _PRECISIONS[case.workload.precision],
        "num_machines": cluster.nodes,
        "num_processes": case.layout.world_size,
        "machine_rank": 0,
        "main_training_function": "main",
        "use_cpu": cluster.device == "cpu",
    }
    if cluster.nodes > 1:
        document |= {"rdzv_backend": "static", "same_network": True, "main_process_port": 29500}
    return document


def _fsdp_section(case: Case) -> tuple[dict[str, Any], list[str]]:
    """FSDP2's keys, and a line where no transformers model has the case's blocks."""
    layout = case.layout
    section: dict[str, Any] = {
        "fsdp_version": 2,
        "fsdp_reshard_after_forward": layout.reshard_after_forward is not False,
        "fsdp_offload_params": layout.offload is Offload.PARAMETERS,
        "fsdp_activation_checkpointing": layout.recompute.kind is RecomputeKind.FULL,
        "fsdp_state_dict_type": "SHARDED_STATE_DICT",
        "fsdp_auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
    }
    try:
        section["fsdp_transformer_layer_cls_to_wrap"] = BLOCKS[reference_family(case.decoder)]
    except SpecError:
        return section, [
            f"model {case.model.name}: no family of transformers is its equal, so that the class of its blocks"
            " (fsdp_transformer_layer_cls_to_wrap) is yours to name"
        ]
    return section, []


def _parallelism_section(layout: Layout) -> dict[str, Any]:
    """Degrees of the mesh, which accelerate orders as we do: replicas, shards, cp, tp."""
    sizes = {"dp_replicate": layout.dp, "dp_shard": layout.fsdp, "cp": layout.cp, "tp": layout.tp}
    section: dict[str, Any] = {f"parallelism_config_{axis}_size": size for axis, size in sizes.items()}
    if layout.cp > 1:
        section["parallelism_config_cp_comm_strategy"] = "alltoall"  # how torch sends a part on around the ring
    return section


def _deepspeed_section(near: Case) -> dict[str, Any]:
    """The keys that accelerate makes DeepSpeed's configuration of."""
    layout, clip = near.layout, near.recipe.clip_norm
    is_whole = layout.offload is Offload.PARAMETERS
    section: dict[str, Any] = {
        "zero_stage": layout.zero,
        "gradient_accumulation_steps": near.workload.micro_batches,
        "offload_optimizer_device": "none" if layout.offload is Offload.NONE else "cpu",
        "offload_param_device": "cpu" if is_whole else "none",
        "zero3_init_flag": layout.zero == 3,
        "zero3_save_16bit_model": False,
    }
    if math.isfinite(clip):
        section["gradient_clipping"] = clip
    if near.cluster.nodes > 1:
        section["deepspeed_multinode_launcher"] = "standard"
    return section


def _usage(case: Case) -> str:
    several = " --machine_rank RANK --main_process_ip HEAD" if case.cluster.nodes > 1 else ""
    return f"accelerate launch --config_file {FILENAME}{several} TRAIN.py"


def _one_line(text: str) -> str:
    """What a comment can hold: YAML refuses control characters there too."""
    return "".join(letter if letter.isprintable() else " " for letter in text)
