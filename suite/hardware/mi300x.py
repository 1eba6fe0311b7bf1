"""AMD Instinct MI300X (CDNA 3), undivided (SPX, NPS1)."""

from __future__ import annotations

from suite.hardware.device import (
    BLAS_128_MIB,
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

_DATASHEET = "AMD Instinct MI300X data sheet (without sparsity)"
_DATASHEET_URL = (
    "https://www.amd.com/content/dam/amd/en/documents/instinct-tech-docs/data-sheets/amd-instinct-mi300x-data-sheet.pdf"
)

MI300X = Device(
    name="mi300x",
    product="AMD Instinct MI300X",
    kind=DeviceKind.ROCM,
    memory_bytes=Figure(
        196592 * MIB,
        "rocminfo's global pool, 201310208 KiB; torch's total_memory says the same 196592 MiB",
        "https://github.com/ROCm/vllm/issues/397",
    ),
    peak_flops_per_second=tera_rates(
        _DATASHEET, _DATASHEET_URL, fp32=163.4, tf32=653.7, bf16=1307.4, fp16=1307.4, fp8=2614.9
    ),
    memory_bandwidth_bytes_per_second=Figure(5.3 * TERA, _DATASHEET, _DATASHEET_URL),
    power_watts=Figure(750.0, _DATASHEET, _DATASHEET_URL),
    blas_workspace_bytes=BLAS_128_MIB,
    achieved_flops_per_second=MatmulRates(
        bf16=Figure(668.4 * TERA, best_shape("hw-0011", "MI300X", "tunable ops on"), SWEEP_URL)
    ),
)

DEVICES = (MI300X,)
