"""NVIDIA V100 SXM2 (Volta): fp16 tensor cores only; no bf16, no TF32, no fp8."""

from __future__ import annotations

from dataclasses import replace

from suite.hardware.device import BLAS_8_MIB, MIB, TERA, Device, DeviceKind, Figure, gib, tera_rates

_DATASHEET = "NVIDIA V100 datasheet"
_DATASHEET_URL = (
    "https://images.nvidia.com/content/technologies/volta/pdf/volta-v100-datasheet-update-us-1165301-r5.pdf"
)

V100_32GB_SXM = Device(
    name="v100-32gb-sxm",
    product="NVIDIA Tesla V100-SXM2-32GB",
    kind=DeviceKind.CUDA,
    memory_bytes=Figure(
        gib(31.74),
        "torch's total capacity of a 'V100 32GB' (form factor unstated; SXM2 parts log 32494 MiB = 31.73 GiB)",
        "https://github.com/liucongg/ChatGLM-Finetuning/issues/73",
    ),
    peak_flops_per_second=tera_rates(_DATASHEET, _DATASHEET_URL, fp32=15.7, tf32=None, bf16=None, fp16=125.0, fp8=None),
    memory_bandwidth_bytes_per_second=Figure(0.9 * TERA, _DATASHEET, _DATASHEET_URL),
    power_watts=Figure(300.0, _DATASHEET, _DATASHEET_URL),
    blas_workspace_bytes=BLAS_8_MIB,
    aliases=("v100-sxm-32gb",),
)

V100_16GB_SXM = replace(
    V100_32GB_SXM,
    name="v100-16gb-sxm",
    product="NVIDIA Tesla V100-SXM2-16GB",
    memory_bytes=Figure(16160 * MIB, "torch's total_memory, 16160 MiB, torch 1.7 and 1.8, in public notebooks"),
    aliases=("v100-sxm-16gb",),
)

DEVICES = (V100_16GB_SXM, V100_32GB_SXM)
