"""The shell script that starts Megatron-LM's `pretrain_gpt.py` on a case."""

from __future__ import annotations

from reports.handover.base import Handover
from reports.handover.megatron.engine import engine_lines
from reports.handover.megatron.experts import experts_part
from reports.handover.megatron.layout import data_part, parallel_part, pipeline_part, recompute_part
from reports.handover.megatron.model import model_part, vocabulary_part
from reports.handover.megatron.part import Part
from reports.handover.megatron.training import batch_part, format_part, optimizer_part
from suite.case import Case
from suite.models import DecoderSpec
from suite.parse import require

#: in the order in which the script has them
PARTS = (
    model_part, experts_part, vocabulary_part, parallel_part, pipeline_part, data_part, recompute_part, batch_part,
    format_part, optimizer_part,
)  # fmt: skip
FILENAME, PROGRAM = "pretrain_gpt.sh", "pretrain_gpt.py"


def megatron_script(case: Case) -> Handover:
    """The arguments as a script, for Megatron-LM with megatron-core 0.16 or later. SpecError for a case whose model,
    update rule or placement of stages Megatron-LM has not."""
    require(
        isinstance(case.model, DecoderSpec),
        f"model.family: {case.model.family!r} of {case.model.name} to megatron, whose pretrain_gpt.py trains decoders;"
        " give a decoder",
    )
    parts = [part for make in PARTS if (part := make(case)).arguments or part.unsaid]
    engine = engine_lines(case)
    unsaid = (*engine, *(line for part in parts for line in part.unsaid))
    usage = f"bash {FILENAME} in a checkout of Megatron-LM; on several nodes with NODE_RANK and MASTER_ADDR set on each"
    return Handover(_text(case, parts, engine), FILENAME, unsaid, usage)


def megatron_arguments(case: Case) -> tuple[str, ...]:
    """The same as words for an argument parser."""
    return tuple(word.strip("'") for make in PARTS for argument in make(case).arguments for word in argument.split())


def _text(case: Case, parts: list[Part], engine: tuple[str, ...]) -> str:
    """The parts as arrays, each below what it leaves unsaid."""
    lines = ["#!/bin/bash", f"# {case.label}", f"# case {case.case_id}, for {case.cluster.device}"]
    lines += [f"# not said: {line}" for line in engine]
    lines += ["", f"export CUDA_DEVICE_MAX_CONNECTIONS={_connections(case)}", ""]
    for part in parts:
        lines += [f"# not said: {line}" for line in part.unsaid]
        lines += [f"{_name(part)}=(", *(f"    {argument}" for argument in part.arguments), ")", ""]
    arrays = [f'    "${{{_name(part)}[@]}}"' for part in parts]
    return "\n".join([*lines, " \\\n".join([*_launch(case), *arrays])]) + "\n"


def _name(part: Part) -> str:
    return part.title.upper().replace(" ", "_")


def _launch(case: Case) -> list[str]:
    cluster = case.cluster
    lines = ["torchrun", f"    --nnodes {cluster.nodes}", f"    --nproc_per_node {cluster.per_node}"]
    if cluster.nodes > 1:
        lines += [
            "    --node_rank ${NODE_RANK:?}",
            "    --master_addr ${MASTER_ADDR:?}",
            "    --master_port ${MASTER_PORT:-29500}",
        ]
    return [*lines, f"    {PROGRAM}"]


def _connections(case: Case) -> int:
    """Hardware queues: Megatron-LM asks for one under tensor or context parallelism, so that kernels start in order,
    and for more under FSDP."""
    is_sharded = case.layout.fsdp > 1 or case.layout.zero > 1
    return 8 if is_sharded else 1
