"""NVIDIA RTX A6000 (Ampere, GA102): 48 GB of GDDR6 on a workstation card."""

from __future__ import annotations

from suite.hardware.device import BLAS_8_MIB, MIB, TERA, Device, DeviceKind, Figure, tera_rates

_WHITEPAPER = "NVIDIA Ampere GA102 architecture whitepaper, RTX A6000 (dense, fp32 accumulate)"
_WHITEPAPER_URL = (
    "https://images.nvidia.com/aem-dam/en-zz/Solutions/geforce/ampere/pdf/"
    "NVIDIA-ampere-GA102-GPU-Architecture-Whitepaper-V1.pdf"
)

RTX_A6000 = Device(
    name="rtx-a6000",
    product="NVIDIA RTX A6000",
    kind=DeviceKind.CUDA,
    memory_bytes=Figure(
        48676 * MIB, "torch's total_memory, 48676 MiB, ECC off, in a public readme; 47.54 GiB in many public logs"
    ),
    peak_flops_per_second=tera_rates(
        _WHITEPAPER, _WHITEPAPER_URL, fp32=38.7, tf32=77.4, bf16=154.8, fp16=154.8, fp8=None
    ),
    memory_bandwidth_bytes_per_second=Figure(0.768 * TERA, _WHITEPAPER, _WHITEPAPER_URL),
    power_watts=Figure(300.0, _WHITEPAPER, _WHITEPAPER_URL),
    blas_workspace_bytes=BLAS_8_MIB,
)

DEVICES = (RTX_A6000,)
