"""NVIDIA Blackwell: B200 and B300 on HGX boards, and one GPU of a GB200 or GB300 superchip (clocked higher)."""

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

_HGX = "NVIDIA HGX specifications, an eighth of the board (dense: half of the sparse figures printed)"
_HGX_URL = "https://www.fibermall.com/de/blog/nvidia-hgx-b300-overview.htm"
_SURVEY = "B200, B300, GB200 and GB300 per-GPU table (dense)"
_SURVEY_URL = "https://verda.com/blog/gb300-nvl72-architecture"
_GB200_NOTES = "GB200 at 1,200 W, per GPU, from NVIDIA's Blackwell brief (dense)"
_GB200_NOTES_URL = "https://glennklockwood.com/garden/processors/B200"


def _best(row: str, device: str, teraflops_per_second: float, note: str = "") -> Figure:
    return Figure(teraflops_per_second * TERA, best_shape(row, device, note), SWEEP_URL)


B200 = Device(
    name="b200",
    product="NVIDIA B200",
    kind=DeviceKind.CUDA,
    memory_bytes=Figure(
        gib(178.35), "CUDA's total global memory, 178.35 GiB", "https://github.com/pytorch/ao/pull/4002"
    ),
    peak_flops_per_second=tera_rates(_HGX, _HGX_URL, fp32=75.0, tf32=1125.0, bf16=2250.0, fp16=2250.0, fp8=4500.0),
    memory_bandwidth_bytes_per_second=Figure(
        7.672 * TERA,
        "bus width and memory clock as the driver has them: 7680 bit x 3996 MHz x 2 (sheets say 7.7 or 8 TB/s)",
        "https://github.com/pytorch/ao/pull/4002",
    ),
    power_watts=Figure(1000.0, _SURVEY, _SURVEY_URL),
    blas_workspace_bytes=BLAS_32_MIB,
    achieved_flops_per_second=MatmulRates(
        bf16=_best("hw-0006", "B200 SXM", 1745.0), fp8=_best("hw-0015", "B200 SXM", 3432.5, "e4m3")
    ),
)

B300 = Device(
    name="b300",
    product="NVIDIA B300 SXM6 AC",
    kind=DeviceKind.CUDA,
    memory_bytes=Figure(275040 * MIB, "nvidia-smi's total, 275040 MiB, in public logs; CUDA's total is a little less"),
    peak_flops_per_second=tera_rates(_HGX, _HGX_URL, fp32=75.0, tf32=1125.0, bf16=2250.0, fp16=2250.0, fp8=4500.0),
    memory_bandwidth_bytes_per_second=Figure(7.7 * TERA, _SURVEY, _SURVEY_URL),
    power_watts=Figure(1100.0, _SURVEY, _SURVEY_URL),
    blas_workspace_bytes=BLAS_32_MIB,
    achieved_flops_per_second=MatmulRates(
        bf16=_best("hw-0005", "B300 SXM", 1769.0), fp8=_best("hw-0016", "B300 SXM", 3353.3, "e4m3")
    ),
)

GB200 = Device(
    name="gb200",
    product="NVIDIA GB200, one GPU",
    kind=DeviceKind.CUDA,
    memory_bytes=Figure(189471 * MIB, "nvidia-smi's total, 189471 MiB, in public logs; CUDA's total is a little less"),
    peak_flops_per_second=MatmulRates(
        fp32=Figure(None, "75, 80 and 90 TFLOP/s are all in print"),
        tf32=Figure(1250.0 * TERA, _GB200_NOTES, _GB200_NOTES_URL),
        bf16=Figure(2500.0 * TERA, _GB200_NOTES, _GB200_NOTES_URL),
        fp16=Figure(2500.0 * TERA, _GB200_NOTES, _GB200_NOTES_URL),
        fp8=Figure(5000.0 * TERA, _GB200_NOTES, _GB200_NOTES_URL),
    ),
    memory_bandwidth_bytes_per_second=Figure(None, "7.7 and 8 TB/s are both in print"),
    power_watts=Figure(1200.0, _SURVEY, _SURVEY_URL),
    blas_workspace_bytes=BLAS_32_MIB,
    achieved_flops_per_second=MatmulRates(
        bf16=_best("hw-0008", "GB200 SXM", 1822.0), fp8=_best("hw-0018", "GB200 SXM", 3615.6, "e4m3")
    ),
)

GB300 = Device(
    name="gb300",
    product="NVIDIA GB300, one GPU",
    kind=DeviceKind.CUDA,
    memory_bytes=Figure(284208 * MIB, "nvidia-smi's total, 284208 MiB, in a public log; CUDA's total is a little less"),
    peak_flops_per_second=tera_rates(
        _SURVEY, _SURVEY_URL, fp32=80.0, tf32=1250.0, bf16=2500.0, fp16=2500.0, fp8=5000.0
    ),
    memory_bandwidth_bytes_per_second=Figure(8.0 * TERA, _SURVEY, _SURVEY_URL),
    power_watts=Figure(1400.0, _SURVEY, _SURVEY_URL),
    blas_workspace_bytes=BLAS_32_MIB,
)

DEVICES = (B200, B300, GB200, GB300)
