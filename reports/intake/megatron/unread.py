"""Settings of Megatron-LM that no case reads: those that change neither memory nor time, and the others."""

from __future__ import annotations

from reports.intake.megatron.options import options
from reports.intake.megatron.settings import Settings
from suite.parse import nearest

#: what begins like this is about data, files, logging, checkpoints, inference, initial values or the course of learning
IGNORED_BEGINNINGS = (
    "adam_", "app_tag", "async_", "auto_detect_ckpt", "ckpt_", "data_", "dataloader", "decoupled_", "dist_ckpt",
    "distributed_timeout", "embedding_init", "error_injection", "eval_", "exit_", "finetune", "flight_recorder",
    "inference_", "init_method", "initial_loss", "inprocess_", "load", "log_", "logging_", "loss_scale", "lr",
    "mamba_inference", "min_l", "mmap", "muon_",
    "no_load", "no_save", "non_persistent", "num_dataset", "num_workers", "one_logger", "otel", "override",
    "per_dataset", "per_split", "pretrained", "profile", "pytorch_profiler", "replication", "rerun", "result_rejected",
    "save", "sgd_", "sharp", "start_eval", "start_weight", "end_weight", "strict_", "straggler", "tensorboard",
    "test_data", "tiktoken", "timing", "tokenizer", "train_data", "use_checkpoint", "use_mp_args", "use_persistent",
    "use_tokenizer", "valid_", "validation_", "vocab_", "wandb", "weight_decay_incr",
)  # fmt: skip
IGNORED = frozenset(
    (
        "align_grad_reduce", "align_param_gather", "apply_wd_to_qk_layernorm", "barrier_with_L1_time",
        "check_for_nan_in_loss_and_grad", "check_for_spiky_loss", "clip_grad",
        "data_parallel_random_init", "deprecated_use_mcore_models",
        "disable_straggler_on_startup",
        "distrib_optim_fully_reshardable_mem_efficient", "distributed_backend", "enable_one_logger", "hysteresis",
        "inference_rng_tracker", "init_model_with_meta_device", "iteration", "lazy_mpu_init", "local_rank",
        "manual_gc", "manual_gc_eval", "manual_gc_interval", "merge_file", "mock_data", "openai_gelu",
        "override_opt_param_scheduler", "perform_initialization", "rank", "reset_attention_mask", "reset_position_ids",
        "eod_mask_loss", "seed", "split", "te_rng_tracker", "title_embedding", "train_samples", "transformer_impl",
        "use_cpu_initialization", "use_dist_ckpt", "use_gloo_process_groups", "create_attention_mask_in_dataloader",
        "calculate_per_token_loss", "mtp_loss_scaling_factor", "qk_clip_alpha", "qk_clip_threshold", "warmup",
        "rotary_scaling_factor", "attention_softmax_in_fp32", "apply_layernorm_1p", "layernorm_zero_centered_gamma",
        "enable_experimental", "enable_ft_package", "export_force_local_attention", "mask_prob", "short_seq_prob",
        "sample_rate", "bert_binary_head", "onnx_safe", "use_sharp", "yaml_cfg",
    )
)  # fmt: skip
#: what Megatron-LM works out itself and logs among its arguments
DERIVED = frozenset(
    (
        "consumed_train_bins", "consumed_train_samples", "consumed_valid_samples", "world_size",
        "data_parallel_size", "decoder_num_layers", "decoder_seq_length", "encoder_num_layers",
        "encoder_seq_length", "global_step", "no_persist_layer_norm", "num_microbatches", "padded_vocab_size",
        "params_dtype", "skipped_train_samples", "total_model_size", "transformer_pipeline_model_parallel_size",
        "bias_gelu_fusion", "expert_gtp_weight_remat_size", "expert_tensor_parallel_num_weight_shards",
        "expert_tensor_parallel_size", "gtp_weight_remat_size", "tensor_parallel_num_weight_shards",
        "use_custom_fsdp", "use_layer_wise_distributed_optimizer", "variable_seq_lengths",
        "virtual_pipeline_model_parallel_size",
    )
)  # fmt: skip


def list_unread(settings: Settings) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(what is not modelled, what changes nothing), a line each, of the settings that were given and not read."""
    unmodelled, ignored = list(settings.unmodelled), []
    for name, given in settings.given.items():
        is_derived = given.flag == name and (name in DERIVED or name.startswith("_"))
        if name in settings.taken or is_derived:
            continue
        if name in IGNORED or name.startswith(IGNORED_BEGINNINGS):
            ignored.append(given.line)
        else:
            unmodelled.append(given.line)
    names = [flag for option in options().values() for flag in option.flags]
    for given in settings.unknown:
        unmodelled.append(f"{given.line}: no option of Megatron-LM's; {nearest_few(given.flag, names)}")
    return tuple(unmodelled), tuple(ignored)


def nearest_few(word: str, names: list[str]) -> str:
    """Near names, without the whole list where none is near."""
    hint = nearest(word, names)
    return hint if hint.startswith("did") else "a script's own, or of another release"
