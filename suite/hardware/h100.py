"""NVIDIA H100 (Hopper, GH100): PCIe, SXM, and the 96 GB, 500 W SXM part that torchtitan's tables were measured on."""

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
    gib,
    tera_rates,
)

_DATASHEET = "NVIDIA H100 datasheet (dense: half of the sparse figures printed)"
_DATASHEET_URL = "https://resources.nvidia.com/en-us-tensor-core/nvidia-tensor-core-gpu-datasheet"
_PCIE_BRIEF = "NVIDIA H100 PCIe product brief PB-11133-001_v02"
_PCIE_BRIEF_URL = "https://manuals.plus/m/56b0c3ef7d0a1c470c0af8f05a0bd1f29a778007472ba941201fbbb185c9bccd"
_TITAN = "torchtitan's H100 benchmark pages: Grand Teton, 96 GB HBM2e, 2.4 TB/s, default power limit 500 W"
_TITAN_URL = "https://github.com/pytorch/torchtitan/blob/b5bcd76c66d0/benchmarks/llama3_h100_202412_torchtitan.md"

H100_SXM = Device(
    name="h100-sxm",
    product="NVIDIA H100 80GB HBM3",
    kind=DeviceKind.CUDA,
    memory_bytes=Figure(
        gib(79.09),
        "torch's total memory, read off a training log: 73.32 GiB is 92.70 % of it",
        "https://github.com/pytorch/torchtitan/issues/1789",
    ),
    peak_flops_per_second=tera_rates(
        _DATASHEET, _DATASHEET_URL, fp32=66.9, tf32=494.7, bf16=989.4, fp16=989.4, fp8=1978.9
    ),
    memory_bandwidth_bytes_per_second=Figure(3.35 * TERA, _DATASHEET, _DATASHEET_URL),
    power_watts=Figure(700.0, _DATASHEET, _DATASHEET_URL),
    blas_workspace_bytes=BLAS_32_MIB,
    achieved_flops_per_second=MatmulRates(
        bf16=Figure(794.5 * TERA, best_shape("hw-0004", "H100 SXM"), SWEEP_URL),
        fp8=Figure(1402.6 * TERA, best_shape("hw-0019", "H100 SXM", "e4m3"), SWEEP_URL),
    ),
)

H100_PCIE = Device(
    name="h100-pcie",
    product="NVIDIA H100 PCIe",
    kind=DeviceKind.CUDA,
    memory_bytes=Figure(81008 * MIB, "torch's total_memory, 81008 MiB, torch 2.0.1+cu117, in a public build log"),
    peak_flops_per_second=tera_rates(
        _DATASHEET, _DATASHEET_URL, fp32=51.2, tf32=378.0, bf16=756.0, fp16=756.0, fp8=1513.0
    ),
    memory_bandwidth_bytes_per_second=Figure(2.0 * TERA, f"{_PCIE_BRIEF}: greater than 2,000 GB/s", _PCIE_BRIEF_URL),
    power_watts=Figure(350.0, _PCIE_BRIEF, _PCIE_BRIEF_URL),
    blas_workspace_bytes=BLAS_32_MIB,
)

_NO_96GB_SHEET = "this part has no public datasheet"

H100_96GB_500W = Device(
    name="h100-96gb-500w",
    product="NVIDIA H100 96GB HBM2e at 500 W",
    kind=DeviceKind.CUDA,
    memory_bytes=Figure(
        gib(95.04),
        "torch's total memory, 95.04 GiB: how published tables name the device (its description, no result of a run)",
        "https://github.com/pytorch/torchtitan/pull/165",
    ),
    peak_flops_per_second=MatmulRates(
        fp32=Figure(None, _NO_96GB_SHEET),
        tf32=Figure(None, _NO_96GB_SHEET),
        bf16=Figure(
            989.0 * TERA,
            f"what torchtitan divides by for its MFU on this part; {_NO_96GB_SHEET}",
            "https://github.com/pytorch/torchtitan/blob/main/torchtitan/tools/utils.py",
        ),
        fp16=Figure(None, _NO_96GB_SHEET),
        fp8=Figure(None, _NO_96GB_SHEET),
    ),
    memory_bandwidth_bytes_per_second=Figure(2.4 * TERA, _TITAN, _TITAN_URL),
    power_watts=Figure(500.0, _TITAN, _TITAN_URL),
    blas_workspace_bytes=BLAS_32_MIB,
)

DEVICES = (H100_PCIE, H100_SXM, H100_96GB_500W)
