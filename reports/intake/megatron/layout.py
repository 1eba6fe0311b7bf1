"""The layout that Megatron-LM's arguments describe."""

from __future__ import annotations

from typing import Any

from reports.intake.megatron.settings import Settings
from reports.intake.megatron.stages import pipeline_of
from suite.parse import require
from suite.units import MIB

GRADIENT_BYTES = 4  # of what --ddp-bucket-size counts
STAGES = {"no_shard": 0, "optim": 1, "optim_grads": 2}


def layout_of(settings: Settings, ranks: int | None) -> dict[str, Any]:
    """The layout as `case_from` takes it, for so many ranks; without dp, which is what is left, but for FSDP, whose
    degree it is. SpecError where FSDP's degree needs the ranks and the file does not say them."""
    tp, cp = settings.whole("tensor_model_parallel_size"), settings.whole("context_parallel_size")
    layout: dict[str, Any] = {"tp": tp, "cp": cp, **pipeline_of(settings)}
    is_sharded = settings.is_on("sequence_parallel")
    if tp > 1:
        layout["sequence_parallel"] = is_sharded
    if cp > 1:
        layout["context"] = _context(settings)
    settings.taken |= {"cp_comm_type", "pipeline_model_parallel_comm_backend", "overlap_p2p_comm"}
    settings.taken |= {"microbatch_group_size_per_vp_stage"}
    if (degree := settings.whole("expert_model_parallel_size")) > 1:
        layout["ep"] = degree
    layout |= _data(settings, layout, ranks)
    return {**layout, **_recompute(settings, layout)}


def _context(settings: Settings) -> str:
    kinds = set((settings.text("cp_comm_type") or "").split())
    if kinds == {"a2a"}:
        return "ulysses"
    if kinds != {"p2p"}:
        settings.leave("cp_comm_type", "taken as a ring, p2p")
    return "ring"


def _data(settings: Settings, layout: dict[str, Any], ranks: int | None) -> dict[str, Any]:
    """What the data-parallel ranks shard."""
    is_torch, is_own = settings.is_on("use_torch_fsdp2"), settings.is_on("use_megatron_fsdp")
    is_distributed = settings.is_on("use_distributed_optimizer")
    strategy = settings.word("data_parallel_sharding_strategy")
    settings.taken |= {"overlap_grad_reduce", "gradient_accumulation_fusion", "num_distributed_optimizer_instances"}
    settings.taken |= {"outer_dp_sharding_strategy", "torch_fsdp2_reshard_after_forward", "megatron_fsdp_version"}
    if is_torch or (is_own and strategy == "optim_grads_params"):
        settings.taken.add("overlap_param_gather")
        return _fsdp(settings, layout, ranks, is_torch)
    if is_own:
        settings.taken.add("overlap_param_gather")  # as fsdp's gathers are
    found: dict[str, Any] = _buckets(settings)
    if settings.is_on("grad_reduce_in_bf16"):
        settings.leave("grad_reduce_in_bf16", "replicas reduce gradients in fp32 here")
    if settings.is_on("overlap_param_gather") and not is_own:
        settings.leave("overlap_param_gather", "parameters are gathered right after the update here")
    stage = STAGES[strategy] if is_own else int(is_distributed)
    flag = "data_parallel_sharding_strategy" if is_own else "use_distributed_optimizer"
    split = {axis: layout[axis] for axis in ("tp", "cp", "pp") if layout[axis] > 1}
    if stage and (layout["tp"] > 1 or (stage > 1 and split)):
        over = ", ".join(f"{axis} {degree}" for axis, degree in split.items())
        instead = "each replica keeps its own; fsdp shards it, with parameters and gradients"
        settings.leave(flag, f"no ZeRO-{stage} with {over} here: {instead}")
        stage = 0
    if ranks == layout["tp"] * layout["cp"] * layout["pp"] * layout.get("ep", 1):
        stage = 0  # one replica has nothing to divide
    found |= {"zero": stage} if stage else {}
    found |= {"engine": "torch"} if stage == 1 and layout["cp"] > 1 and layout["pp"] == 1 else {}
    if settings.is_on("optimizer_cpu_offload"):
        if stage and not split:
            found["offload"] = "optimizer"
            settings.taken.add("use_precision_aware_optimizer")
        else:
            settings.leave("optimizer_cpu_offload", "only ZeRO without tp, cp and pp offloads the optimizer here")
    return found


def _buckets(settings: Settings) -> dict[str, Any]:
    elements = settings.number("ddp_bucket_size")
    if not elements:
        return {}
    mib = max(1, round(elements * GRADIENT_BYTES / MIB))
    if mib * MIB != elements * GRADIENT_BYTES:
        settings.assumed.append(f"layout.bucket_mib: {mib} MiB for {settings.given['ddp_bucket_size'].line}")
    return {"bucket_mib": mib}


def _fsdp(settings: Settings, layout: dict[str, Any], ranks: int | None, is_torch: bool) -> dict[str, Any]:
    """FSDP over all ranks that tp, cp and pp leave; Megatron-FSDP's may be several groups of replicas."""
    flag = "--use-torch-fsdp2" if is_torch else "--use-megatron-fsdp"
    others = layout["tp"] * layout["cp"] * layout["pp"] * layout.get("ep", 1)
    require(
        ranks is not None,
        f"{flag}: shards over all ranks, and nothing says how many; add --nnodes and --nproc_per_node",
    )
    assert ranks is not None
    copies = settings.whole("num_distributed_optimizer_instances")
    require(
        ranks % (others * copies) == 0,
        f"{flag}: {ranks} ranks are no multiple of tp * cp * pp * ep = {others}, times {copies} replicas",
    )
    found: dict[str, Any] = {"fsdp": ranks // others // copies, "dp": copies}
    if is_torch and not settings.is_on("torch_fsdp2_reshard_after_forward"):
        found["reshard_after_forward"] = False
    if settings.word("outer_dp_sharding_strategy") == "optim":
        settings.leave("outer_dp_sharding_strategy", "replicas keep the optimizer state of their shards here")
    if settings.is_on("grad_reduce_in_bf16"):
        found["reduce_type"] = "bf16"
    if settings.is_on("optimizer_cpu_offload"):
        settings.leave("optimizer_cpu_offload", "FSDP2 offloads parameters too, or nothing")
    return found


def _recompute(settings: Settings, layout: dict[str, Any]) -> dict[str, str]:
    """Activation checkpointing, as the mode that keeps most like it."""
    granularity = settings.word("recompute_granularity")
    method, count = settings.word("recompute_method"), int(settings.number("recompute_num_layers") or 1)
    modules = set((settings.text("recompute_modules") or "core_attn").split())
    if settings.is_on("recompute_activations"):
        granularity = "selective"
    if granularity == "selective":
        if modules != {"core_attn"}:
            settings.leave("recompute_modules", f"selective recomputes core_attn alone here{_without(modules)}")
        return {"recompute": "selective"} if "core_attn" in modules else {}
    if granularity != "full":
        return {}
    if method == "uniform" and count > 1:
        settings.leave("recompute_num_layers", "each block keeps its input here, not each so many")
    stages = layout["pp"] * layout.get("virtual_stages", 1)
    blocks = -(-settings.whole("num_layers") // stages)
    if method != "block" or count >= blocks:
        return {"recompute": "full"}
    every = max(1, round(blocks / count))
    settings.leave("recompute_num_layers", f"{count} first of {blocks} blocks of a stage: taken as every {every}th")
    return {"recompute": f"every-{every}"}


def _without(modules: set[str]) -> str:
    return "" if "core_attn" in modules else ", so nothing is taken"
