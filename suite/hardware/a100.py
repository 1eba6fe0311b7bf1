"""NVIDIA A100 (Ampere, GA100): two memories, two form factors. Peaks are the same, bandwidth and power are not."""

from __future__ import annotations

from dataclasses import replace

from suite.hardware.device import (
    BLAS_8_MIB,
    MIB,
    SWEEP_URL,
    TERA,
    Device,
    DeviceKind,
    Figure,
    MatmulRates,
    best_shape,
    gib,
    tera_rates,
)

_DATASHEET = "NVIDIA A100 datasheet (dense)"
_DATASHEET_URL = "https://www.nvidia.com/content/dam/en-zz/Solutions/Data-Center/a100/pdf/nvidia-a100-datasheet-us-nvidia-1758950-r4-web.pdf"
_WHITEPAPER = "NVIDIA A100 architecture whitepaper, table 4"
_WHITEPAPER_URL = (
    "https://images.nvidia.com/aem-dam/en-zz/Solutions/data-center/nvidia-ampere-architecture-whitepaper.pdf"
)
_VARIANTS = "A100 specifications by form factor (PCIe 40, PCIe 80, SXM 40, SXM 80)"
_VARIANTS_URL = "https://www.thundercompute.com/blog/nvidia-a100-specs-full-guide"

_PEAK = tera_rates(_DATASHEET, _DATASHEET_URL, fp32=19.5, tf32=156.0, bf16=312.0, fp16=312.0, fp8=None)

# Form factor unstated in the row; both 80 GB parts are an "A100 80GB" and have the same chip.
_CONTEXT_80 = Figure(
    gib(0.47),
    "hw_micro.csv hw-0123 (A100 80GB): memory in use after the first tensor, torch 2.1.1+cu121, lazy loading",
    "https://github.com/stas00/ml-engineering/blob/744d01e18b79/training/performance/README.md",
)

A100_80GB_SXM = Device(
    name="a100-80gb-sxm",
    product="NVIDIA A100-SXM4-80GB",
    kind=DeviceKind.CUDA,
    memory_bytes=Figure(
        81051 * MIB,
        "torch's total_memory, 81051 MiB, torch 2.9.1+cu128 (the driver's version moves it by 0.2 %)",
        "https://github.com/ultralytics/ultralytics/issues/22877",
    ),
    peak_flops_per_second=_PEAK,
    memory_bandwidth_bytes_per_second=Figure(2.039 * TERA, _DATASHEET, _DATASHEET_URL),
    power_watts=Figure(400.0, _DATASHEET, _DATASHEET_URL),
    blas_workspace_bytes=BLAS_8_MIB,
    context_bytes=_CONTEXT_80,
    achieved_flops_per_second=MatmulRates(
        bf16=Figure(271.2 * TERA, best_shape("hw-0001", "A100 SXM", "memory size unstated"), SWEEP_URL)
    ),
    aliases=("a100-sxm-80gb",),
)

A100_40GB_SXM = replace(
    A100_80GB_SXM,
    name="a100-40gb-sxm",
    product="NVIDIA A100-SXM4-40GB",
    memory_bytes=Figure(
        42298834944,
        "deviceQuery's global memory, 42298834944 bytes, driver 12.2",
        "https://github.com/bottlerocket-os/bottlerocket/pull/3873",
    ),
    memory_bandwidth_bytes_per_second=Figure(1.555 * TERA, _WHITEPAPER, _WHITEPAPER_URL),
    power_watts=Figure(400.0, _WHITEPAPER, _WHITEPAPER_URL),
    context_bytes=Figure(None, "no source found for the 40 GB part"),
    aliases=("a100-sxm-40gb",),
)

A100_80GB_PCIE = replace(
    A100_80GB_SXM,
    name="a100-80gb-pcie",
    product="NVIDIA A100 80GB PCIe",
    memory_bytes=Figure(81154 * MIB, "torch's total_memory, 81154 MiB, torch 2.6.0+cu124, in a public training log"),
    memory_bandwidth_bytes_per_second=Figure(1.935 * TERA, _DATASHEET, _DATASHEET_URL),
    power_watts=Figure(300.0, _DATASHEET, _DATASHEET_URL),
    achieved_flops_per_second=MatmulRates(
        bf16=Figure(252.9 * TERA, best_shape("hw-0003", "A100 PCIe", "memory size unstated"), SWEEP_URL)
    ),
    aliases=("a100-pcie-80gb",),
)

A100_40GB_PCIE = replace(
    A100_80GB_PCIE,
    name="a100-40gb-pcie",
    product="NVIDIA A100-PCIE-40GB",
    memory_bytes=Figure(40326 * MIB, "torch's total_memory, 40326 MiB, torch 1.9.0+cu111, in a public readme"),
    memory_bandwidth_bytes_per_second=Figure(1.555 * TERA, _VARIANTS, _VARIANTS_URL),
    power_watts=Figure(250.0, _VARIANTS, _VARIANTS_URL),
    context_bytes=Figure(None, "no source found for the 40 GB part"),
    aliases=("a100-pcie-40gb",),
)

DEVICES = (A100_40GB_PCIE, A100_80GB_PCIE, A100_40GB_SXM, A100_80GB_SXM)
