"""DeepSpeed configurations in the manner of those that people have, one of each kind."""

from __future__ import annotations

from typing import Any

#: ZeRO-2 in fp16 with loss scaling, as for a GPT-2 of 2020
ZERO_2: dict[str, Any] = {
    "train_batch_size": 512, "train_micro_batch_size_per_gpu": 8, "gradient_accumulation_steps": 4,
    "steps_per_print": 100, "gradient_clipping": 1.0,
    "zero_optimization": {
        "stage": 2, "allgather_partitions": True, "allgather_bucket_size": 2e8, "overlap_comm": True,
        "reduce_scatter": True, "reduce_bucket_size": 209715200, "contiguous_gradients": True,
    },
    "fp16": {"enabled": True, "loss_scale": 0, "initial_scale_power": 16, "loss_scale_window": 1000, "hysteresis": 2},
    "optimizer": {"type": "Adam", "params": {"lr": 0.00015, "betas": [0.9, 0.95], "weight_decay": 0.01}},
    "wall_clock_breakdown": False,
}  # fmt: skip

#: ZeRO-3 with everything in host memory, left to Hugging Face's Trainer
TRAINER: dict[str, Any] = {
    "bf16": {"enabled": "auto"}, "fp16": {"enabled": "auto"},
    "zero_optimization": {
        "stage": 3, "overlap_comm": True, "contiguous_gradients": True, "sub_group_size": 1e9,
        "reduce_bucket_size": "auto", "stage3_prefetch_bucket_size": "auto",
        "stage3_param_persistence_threshold": "auto", "stage3_max_live_parameters": 1e9,
        "stage3_max_reuse_distance": 1e9, "stage3_gather_16bit_weights_on_model_save": True,
        "offload_optimizer": {"device": "cpu", "pin_memory": True},
        "offload_param": {"device": "cpu", "pin_memory": True},
    },
    "optimizer": {"type": "AdamW", "params": {"lr": "auto", "betas": "auto", "eps": "auto", "weight_decay": "auto"}},
    "scheduler": {"type": "WarmupDecayLR", "params": {
        "warmup_min_lr": "auto", "warmup_max_lr": "auto", "warmup_num_steps": "auto", "total_num_steps": "auto",
    }},
    "train_batch_size": "auto", "train_micro_batch_size_per_gpu": "auto", "gradient_accumulation_steps": "auto",
    "gradient_clipping": "auto",
}  # fmt: skip

#: 1-bit Adam: compressed momentum in place of all-reduced gradients
ONE_BIT: dict[str, Any] = {
    "train_batch_size": 64, "train_micro_batch_size_per_gpu": 4,
    "optimizer": {"type": "OneBitAdam", "params": {
        "lr": 4e-4, "freeze_step": 23000, "cuda_aware": False, "comm_backend_name": "nccl",
    }},
    "fp16": {"enabled": True}, "prescale_gradients": True,
}  # fmt: skip

#: ZeRO++: quantized weights and gradients, a second partition within a machine
ZERO_PLUS: dict[str, Any] = {
    "train_micro_batch_size_per_gpu": 2, "bf16": {"enabled": True},
    "zero_optimization": {
        "stage": 3, "zero_hpz_partition_size": 8, "zero_quantized_weights": True, "zero_quantized_gradients": True,
        "stage3_param_persistence_threshold": 0, "stage3_max_reuse_distance": 0, "stage3_prefetch_bucket_size": 0,
    },
    "comms_logger": {"enabled": True, "verbose": False},
}  # fmt: skip

#: ZeRO-Infinity: state on NVMe
NVME: dict[str, Any] = {
    "train_micro_batch_size_per_gpu": 1, "bf16": {"enabled": True},
    "zero_optimization": {
        "stage": 3,
        "offload_optimizer": {"device": "nvme", "nvme_path": "/nvme", "buffer_count": 4, "fast_init": False},
        "offload_param": {"device": "nvme", "nvme_path": "/nvme", "buffer_size": 1e8, "max_in_cpu": 1e9},
    },
    "aio": {"block_size": 1048576, "queue_depth": 8, "overlap_events": True},
}  # fmt: skip

#: activation checkpointing, stage 1, and an old-fashioned name or two
CHECKPOINTED: dict[str, Any] = {
    "train_batch_size": 32, "bfloat16": {"enabled": True},
    "zero_optimization": {"stage": 1, "cpu_offload": True},
    "activation_checkpointing": {
        "partition_activations": True, "number_checkpoints": 24, "cpu_checkpointing": False, "profile": True,
    },
    "optimizer": {"type": "SGD", "params": {"lr": 0.1, "momentum": 0.9}},
    "scheduler": {"type": "OneCycle", "params": {"cycle_min_lr": 1e-5, "cycle_max_lr": 1e-3}},
    "pipeline": {"stages": "auto"}, "made_up_key": {"deep": [1, 2]},
}  # fmt: skip

SAMPLES = {
    "zero-2": ZERO_2, "trainer": TRAINER, "1-bit": ONE_BIT, "zero++": ZERO_PLUS, "nvme": NVME,
    "checkpointed": CHECKPOINTED,
}  # fmt: skip
