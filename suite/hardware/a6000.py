"""NVIDIA RTX A6000 (Ampere, GA102): 48 GB of GDDR6 on a workstation card."""

from __future__ import annotations

from suite.hardware.device import BLAS_8_MIB, MIB, TERA, Device, DeviceKind, Figure, tera_rates

_TABLE = "the maker's table as a review printed it"
_TABLE_URL = "https://servethehome.com/nvidia-rtx-a6000-48gb-gpu-drops-quadro-designation"
_ASSUMED = "assumed: the A40's dense rates (37.4, 74.8, 149.7 TFLOP/s, the same chip) by the clocks, 1800 over 1740 MHz"

RTX_A6000 = Device(
    name="rtx-a6000",
    product="NVIDIA RTX A6000",
    kind=DeviceKind.CUDA,
    memory_bytes=Figure(
        48676 * MIB, "torch's total_memory, 48676 MiB, ECC off, in a public readme; 47.54 GiB in many public logs"
    ),
    peak_flops_per_second=tera_rates(_ASSUMED, fp32=38.7, tf32=77.4, bf16=154.8, fp16=154.8, fp8=None),
    memory_bandwidth_bytes_per_second=Figure(0.768 * TERA, _TABLE, _TABLE_URL),
    power_watts=Figure(300.0, _TABLE, _TABLE_URL),
    blas_workspace_bytes=BLAS_8_MIB,
)

DEVICES = (RTX_A6000,)
