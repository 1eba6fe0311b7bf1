"""DeepSpeed's keys that need no arithmetic: those that change neither bytes nor seconds, those that are modelled at one
value, and why others are not (deepspeed/runtime/config.py, runtime/zero/config.py)."""

from __future__ import annotations

from typing import Any

_ZERO, _OFFLOAD = "zero_optimization", ("zero_optimization.offload_optimizer", "zero_optimization.offload_param")

#: reports, logs, checkpoints, and what lets other keys be
HARMLESS = frozenset({
    "_comment", "steps_per_print", "wall_clock_breakdown", "memory_breakdown", "dump_state", "log_level", "timers",
    "tensorboard", "wandb", "csv_monitor", "comet", "monitor_config", "comms_logger", "flops_profiler", "checkpoint",
    "zero_allow_untested_optimizer", "zero_force_ds_cpu_optimizer", "vocabulary_size", "dataloader_drop_last",
    "fp16.loss_scale", "fp16.initial_scale_power", "fp16.loss_scale_window", "fp16.hysteresis", "fp16.min_loss_scale",
    "fp16.consecutive_hysteresis", "bf16.check_grad_overflow", "optimizer.params.betas", "optimizer.params.eps",
    "optimizer.params.momentum", "optimizer.params.bias_correction", "optimizer.params.adam_w_mode",
    "scheduler.params.warmup_min_ratio", "scheduler.params.warmup_type", "scheduler.params.cos_min_ratio",
    "scheduler.params.warmup_min_lr", "scheduler.params.last_batch_iteration",
    "activation_checkpointing.number_checkpoints", "activation_checkpointing.profile", "seed",
    *(f"{_ZERO}.{key}" for key in (
        "stage3_gather_16bit_weights_on_model_save", "stage3_gather_fp16_weights_on_model_save",
        "gather_16bit_weights_on_model_save", "load_from_fp32_weights", "elastic_checkpoint",
        "ignore_unused_parameters", "log_trace_cache_warnings", "enable_sanity_checks", "pipeline_loading_checkpoint",
        "allgather_bucket_size",  # read only by a torch without all_gather_into_tensor
    )),
    *(f"{part}.{key}" for part in _OFFLOAD for key in (
        "buffer_count", "buffer_size", "max_in_cpu", "nvme_path", "fast_init", "pipeline_read", "pipeline_write",
    )),
})  # fmt: skip

#: the one value of a key that is modelled; where it is DeepSpeed's default, leaving it out says the same
MODELLED: dict[str, Any] = {
    f"{_ZERO}.contiguous_gradients": True,
    f"{_ZERO}.reduce_scatter": True,
    f"{_ZERO}.allgather_partitions": True,
    f"{_ZERO}.use_multi_rank_bucket_allreduce": True,
    f"{_ZERO}.round_robin_gradients": False,
    f"{_ZERO}.parameter_alignment": False,
    f"{_ZERO}.sub_group_size": 10**9,
    f"{_ZERO}.stage3_max_live_parameters": 10**9,
    f"{_ZERO}.stage3_module_granularity_threshold": 0,
    f"{_ZERO}.stage3_use_all_reduce_for_fetch_params": False,
    f"{_ZERO}.stage3_allgather_sequential": False,
    f"{_ZERO}.memory_efficient_linear": True,
    f"{_ZERO}.zero_hpz_partition_size": 1,
    f"{_ZERO}.zero_quantized_weights": False,
    f"{_ZERO}.zero_quantized_nontrainable_weights": False,
    f"{_ZERO}.zero_quantized_gradients": False,
    f"{_ZERO}.cpu_offload": False,
    f"{_ZERO}.offload_optimizer.ratio": 1.0,
    "bf16.immediate_grad_update": False,
    "bf16.bf16_master_weights_and_grads": False,
    "bf16.bf16_optimizer_states": False,
    "fp16.auto_cast": False,
    "fp16.fp16_master_weights_and_grads": False,
    "prescale_gradients": False,
    "gradient_predivide_factor": 1.0,
    "sparse_gradients": False,
    "disable_allgather": False,
    "amp.enabled": False,
    "torch_autocast.enabled": False,
    "sequence_parallel_size": 1,
    "tensor_parallel.autotp_size": 1,
    "elasticity.enabled": False,
    "autotuning.enabled": False,
    "optimizer.params.torch_adam": True,
    "optimizer.params.fused": True,
    "optimizer.params.foreach": False,
    "activation_checkpointing.partition_activations": False,
    "activation_checkpointing.cpu_checkpointing": False,
    "activation_checkpointing.contiguous_memory_optimization": False,
    "activation_checkpointing.synchronize_checkpoint_boundary": False,
}

#: optimizers by DeepSpeed's names in small letters: ours. Its Adam is AdamW, unless adam_w_mode is false
OPTIMIZERS = {"adamw": "adamw", "adam": "adamw", "sgd": "sgd"}
#: schedules that are a warm-up and something after it
WARMUPS = ("WarmupLR", "WarmupDecayLR", "WarmupCosineLR")
