"""NVIDIA Ada Lovelace: GeForce RTX 4090, GeForce RTX 4070 Ti SUPER and L40S.

GeForce tensor cores run fp16 with fp32 accumulation, which is what training uses, at half the rate of
fp16 accumulation: the figures here are the fp32-accumulate ones.
"""

from __future__ import annotations

from suite.hardware.device import BLAS_8_MIB, MIB, TERA, Device, DeviceKind, Figure, gib, tera_rates

_ADA = "NVIDIA Ada GPU architecture whitepaper, appendix A (dense, fp32 accumulate)"
_ADA_URL = "https://images.nvidia.com/aem-dam/Solutions/geforce/ada/nvidia-ada-gpu-architecture.pdf"
_L40S = "NVIDIA L40S datasheet (dense: half of the sparse figures printed)"
_L40S_URL = "https://resources.nvidia.com/en-us-l40s/l40s-datasheet-28413"
_4070 = "NVIDIA GeForce RTX 4070 Ti SUPER product page"
_4070_URL = "https://www.nvidia.com/en-us/geforce/graphics-cards/40-series/rtx-4070-4070ti/"

RTX_4090 = Device(
    name="rtx-4090",
    product="NVIDIA GeForce RTX 4090",
    kind=DeviceKind.CUDA,
    memory_bytes=Figure(
        gib(23.64), "torch's total capacity, 23.64 GiB", "https://github.com/TMElyralab/MuseTalk/issues/76"
    ),
    peak_flops_per_second=tera_rates(_ADA, _ADA_URL, fp32=82.6, tf32=82.6, bf16=165.2, fp16=165.2, fp8=330.3),
    memory_bandwidth_bytes_per_second=Figure(1.008 * TERA, _ADA, _ADA_URL),
    power_watts=Figure(450.0, _ADA, _ADA_URL),
    blas_workspace_bytes=BLAS_8_MIB,
)

RTX_4070_TI_SUPER = Device(
    name="rtx-4070-ti-super",
    product="NVIDIA GeForce RTX 4070 Ti SUPER",
    kind=DeviceKind.CUDA,
    memory_bytes=Figure(15934 * MIB, "torch's total_memory, 15934 MiB (15974 with another driver), in public logs"),
    peak_flops_per_second=tera_rates(
        f"{_4070}: 8448 cores x 2 x 2.61 GHz; it gives no dense tensor rate", _4070_URL, fp32=44.1
    ),
    memory_bandwidth_bytes_per_second=Figure(0.672 * TERA, f"{_4070}: 256 bit x 21 Gbit/s", _4070_URL),
    power_watts=Figure(285.0, _4070, _4070_URL),
    blas_workspace_bytes=BLAS_8_MIB,
)

L40S = Device(
    name="l40s",
    product="NVIDIA L40S",
    kind=DeviceKind.CUDA,
    memory_bytes=Figure(
        gib(44.42), "torch's total capacity, 44.42 GiB", "https://github.com/stepfun-ai/Step-Video-T2V/issues/8"
    ),
    peak_flops_per_second=tera_rates(_L40S, _L40S_URL, fp32=91.6, tf32=183.0, bf16=362.05, fp16=362.05, fp8=733.0),
    memory_bandwidth_bytes_per_second=Figure(0.864 * TERA, _L40S, _L40S_URL),
    power_watts=Figure(350.0, _L40S, _L40S_URL),
    blas_workspace_bytes=BLAS_8_MIB,
)

DEVICES = (RTX_4090, RTX_4070_TI_SUPER, L40S)
