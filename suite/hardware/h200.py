"""NVIDIA H200 SXM (Hopper, GH100): the H100 SXM's matrix units with more and faster memory."""

from __future__ import annotations

from suite.hardware.device import (
    BLAS_32_MIB,
    MIB,
    SWEEP_URL,
    TERA,
    Device,
    DeviceKind,
    Figure,
    MatmulRates,
    best_shape,
    tera_rates,
)

_DATASHEET = "NVIDIA H200 datasheet (dense: half of the sparse figures printed)"
_DATASHEET_URL = "https://nvdam.widen.net/s/nb5zzzsjdf/hpc-datasheet-sc23-h200-datasheet-3002446"

H200_SXM = Device(
    name="h200-sxm",
    product="NVIDIA H200",
    kind=DeviceKind.CUDA,
    memory_bytes=Figure(
        143156 * MIB, "torch's total_memory, 143156 MiB (139.80 GiB in out-of-memory messages), in public logs"
    ),
    peak_flops_per_second=tera_rates(
        _DATASHEET, _DATASHEET_URL, fp32=67.0, tf32=494.5, bf16=989.5, fp16=989.5, fp8=1979.0
    ),
    memory_bandwidth_bytes_per_second=Figure(4.8 * TERA, _DATASHEET, _DATASHEET_URL),
    power_watts=Figure(700.0, _DATASHEET, _DATASHEET_URL),
    blas_workspace_bytes=BLAS_32_MIB,
    achieved_flops_per_second=MatmulRates(
        fp8=Figure(1453.4 * TERA, best_shape("hw-0017", "H200 SXM", "e4m3"), SWEEP_URL)
    ),
)

DEVICES = (H200_SXM,)
