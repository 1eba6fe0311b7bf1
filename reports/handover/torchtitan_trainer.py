"""A case's workload, layout and recipe as torchtitan's Trainer.Config, a call with calls in it. Facts of 0.3.0."""

from __future__ import annotations

import json
from collections.abc import Mapping

from parallelism.schedules.stages import stages_of
from reports.handover.python_call import Call
from reports.handover.torchtitan_model import flavor_of
from suite.case import Case
from suite.layout import Offload, RecomputeKind, Schedule
from suite.optimizers import kernel_of
from suite.spec import LOSS_CHUNKS, LossKernel, OptimizerKernel, Precision

#: torch.distributed.pipelining.schedules.get_schedule_class's names
SCHEDULES = {
    Schedule.GPIPE: "GPipe",
    Schedule.ONE_F_ONE_B: "1F1B",
    Schedule.INTERLEAVED: "Interleaved1F1B",
    Schedule.INTERLEAVED_ZERO_BUBBLE: "InterleavedZeroBubble",
    Schedule.ZBV: "ZBVZeroBubble",
    Schedule.DUAL_PIPE_V: "DualPipeV",
}
KERNELS = {OptimizerKernel.FUSED: "fused", OptimizerKernel.FOREACH: "foreach", OptimizerKernel.LOOP: "for-loop"}
#: torchtitan's class, by what is recomputed; EveryNthAC is the file's own
POLICIES = {
    RecomputeKind.SELECTIVE: "SelectiveAC",
    RecomputeKind.SELECTIVE_OP: "SelectiveAC",
    RecomputeKind.FULL: "FullAC",
    RecomputeKind.EVERY: "EveryNthAC",
}
#: where torchtitan's script puts the tokenizers of the flavors
ASSETS = {"8B": "Llama-3.1-8B", "70B": "Llama-3.1-70B", "405B": "Llama-3.1-405B"}
#: parallelism.training's share of the learning rate at the end, and parallelism.optimizers' betas; both import torch
LOWEST_SHARE = 0.1
BETAS = (0.9, 0.95)


def trainer_call(case: Case) -> Call:
    """The whole configuration. `model_spec` is the file's own variable."""
    recipe = case.recipe
    assets = ASSETS.get(flavor_of(case.decoder) or "", case.decoder.name)
    warmup = {"warmup_steps": recipe.warmup_steps, "decay_type": "cosine", "min_lr_factor": LOWEST_SHARE}
    keywords: dict[str, str | Call] = {
        "model_spec": "model_spec",
        "hf_assets_path": _quoted(f"./assets/hf/{assets}"),
        "dataloader": Call("HuggingFaceTextDataLoader.Config", {"dataset": _quoted("c4")}),
        "training": Call("TrainingConfig", _texts(training(case))),
        "parallelism": Call("ParallelismConfig", _parallelism_texts(case)),
        "activation_checkpoint": _checkpointing(case),
        "loss": _loss(case),
        "optimizer": _optimizer(case),
        "lr_scheduler": Call("LRSchedulersContainer.Config", _texts(warmup)),
        "debug": Call("DebugConfig", {"seed": repr(recipe.seed)}),
    }
    if recipe.validation_batches:
        every = max(1, recipe.steps // 10)
        keywords["validator"] = Call(
            "Validator.Config", _texts({"enable": True, "freq": every, "steps": recipe.validation_batches})
        )
    return Call("Trainer.Config", keywords, {"hf_assets_path": "the tokenizer's folder, and the data: yours to choose"})


def training(case: Case) -> dict[str, object]:
    """TrainingConfig: a pipeline's micro-batches together are torchtitan's local batch, elsewhere it accumulates."""
    work = case.workload
    pipelined = case.layout.pp > 1
    settings: dict[str, object] = {
        "seq_len": work.seq_len,
        "local_batch_size": work.micro_batch * (work.micro_batches if pipelined else 1),
        "global_batch_size": case.global_batch,
        "steps": case.recipe.steps,
        "max_norm": case.recipe.clip_norm,
        "dtype": "bfloat16" if work.precision is Precision.BF16 else "float32",
        "mixed_precision_param": "float32" if work.precision is Precision.FP32 else "bfloat16",
        "disable_cuda_graphs": True,
    }
    if case.layout.offload is Offload.PARAMETERS:
        settings["enable_cpu_offload"] = True
    return settings


def parallelism(case: Case) -> dict[str, object]:
    """ParallelismConfig: the degrees, and of the axes in use what goes with them."""
    layout = case.layout
    settings: dict[str, object] = {
        "data_parallel_replicate_degree": layout.dp,
        "data_parallel_shard_degree": layout.fsdp,
        # without fsdp every rank keeps whole parameters, and FSDP2 should too
        "fsdp_reshard_after_forward": "always" if layout.fsdp > 1 and layout.reshard_after_forward else "never",
        "tensor_parallel_degree": layout.tp,
        "context_parallel_degree": layout.cp,
        "pipeline_parallel_degree": layout.pp,
    }
    if layout.tp > 1:
        settings["enable_sequence_parallel"] = layout.sequence_parallel
    if layout.cp > 1:
        settings["context_parallel_load_balancer"] = "headtail" if layout.is_balanced else None
    if layout.pp > 1:
        settings["pipeline_parallel_schedule"] = SCHEDULES[layout.schedule]
        settings["pipeline_parallel_microbatch_size"] = case.workload.micro_batch
        settings["module_fqns_per_model_part"] = modules(case)
    return settings


def modules(case: Case) -> list[list[str]]:
    """The modules of each pipeline stage, by torchtitan's names: the split that the case has, not torchtitan's own."""
    return [
        [
            *(["tok_embeddings"] if stage.has_embedding else []),
            *(f"layers.{block}" for block in stage.blocks),
            *(["norm", "lm_head"] if stage.has_head else []),
        ]
        for stage in stages_of(case)
    ]


def _parallelism_texts(case: Case) -> dict[str, str]:
    """As `parallelism`, with runs of blocks written as a range."""
    texts = _texts(parallelism(case))
    if case.layout.pp > 1:
        parts = []
        for stage in stages_of(case):
            start, end = stage.blocks.start, stage.blocks.stop
            own = f'*(f"layers.{{i}}" for i in range({start}, {end}))'
            words = [*(['"tok_embeddings"'] if stage.has_embedding else []), own]
            words += ['"norm"', '"lm_head"'] if stage.has_head else []
            parts.append(f"            [{', '.join(words)}],")
        texts["module_fqns_per_model_part"] = "\n".join(["[", *(f"    {part}" for part in parts), " " * 12 + "]"])
    return texts


def policy(case: Case) -> str | None:
    """The class that recomputes, or None."""
    return POLICIES.get(case.layout.recompute.kind)


def _checkpointing(case: Case) -> str | Call:
    name = policy(case)
    return "None" if name is None else Call(f"{name}.Config")


def _loss(case: Case) -> Call:
    plain = Call("CrossEntropyLoss.Config", {"global_vocab_size": "decoder_vocab_size(model_spec)"})
    if case.workload.loss is LossKernel.PLAIN:
        return plain
    return Call("ChunkedLossWrapper.Config", {"num_chunks": repr(LOSS_CHUNKS), "loss_fn": plain})


def _optimizer(case: Case) -> Call:
    """AdamW: norms, which are all of the vectors here, do not decay."""
    lines = ["["]
    for pattern, decay in (("norm", 0.0), (".*", case.recipe.weight_decay)):
        words = {"lr": case.recipe.learning_rate, "betas": BETAS, "weight_decay": decay}
        group = {"pattern": pattern, "optimizer_name": "AdamW", "optimizer_kwargs": words}
        lines.append(f"{' ' * 16}{Call('ParamGroupConfig', _texts(group)).source(16)},")
    lines.append(f"{' ' * 12}]")
    return Call(
        "OptimizersContainer.Config",
        {"implementation": _quoted(KERNELS[kernel_of(case)]), "param_groups": "\n".join(lines)},
    )


def _texts(settings: Mapping[str, object]) -> dict[str, str]:
    return {key: f'float("{value}")' if value == float("inf") else _quoted(value) for key, value in settings.items()}


def _quoted(value: object) -> str:
    """Source of a value, with double quotes."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_quoted(key)}: {_quoted(item)}" for key, item in value.items()) + "}"
    return json.dumps(value) if isinstance(value, str) else repr(value)
