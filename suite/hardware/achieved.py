"""What shipped devices achieve, by microbenchmarks that others published: matrix products, attention, memory, launches.

Nothing here was fitted on a training run. Where a device has no figure of its own the source says what stands in.
"""

from __future__ import annotations

from dataclasses import dataclass

from suite.hardware.attention_rates import cudnn_on_h100, flash_2_on_a100, flash_2_on_h100
from suite.hardware.curve import Curve
from suite.hardware.device import Device, DeviceKind, MatmulDtype
from suite.hardware.speeds import Speeds
from suite.hardware.tiles import WAVE_GUIDE, tile_curve
from suite.parse import require

#: Best shape of a sweep over the dense peak in bf16: hw-0004 (whose notes say the H200 is the same) and hw-0001.
HOPPER_SHARE, AMPERE_SHARE = 794.5 / 989.4, 271.2 / 312.0

#: Seconds between two kernels when the host is ahead: 3.8 us a kernel of 2.9 us.
LAUNCH_S = 0.9e-6
LAUNCH_SOURCE = "launch: 20 kernels in a stream, V100 (developer.nvidia.com/blog/cuda-graphs), stands in for every GPU"
#: hw-0298 (10 kernels forward, 79.68 us) and hw-0305 (18 backward, 253.63 us): rotary embedding in eager torch on an
#: A100's host, both at sizes where larger tensors take no longer.
HOST_S = (79.68e-6 + 253.63e-6) / 28
HOST_SOURCE = (
    "host: hw_micro.csv hw-0298, hw-0305, rotary embedding in eager torch, an A100's host; an H100's issues no faster"
    " (hw-0227 and hw-0395: 0.27 ms of host time on both)"
)

#: (rows, columns, ms): a fused layer norm forward, fp32, one kernel that reads and writes 4 bytes an element.
_A100_NORM = (
    (4096, 1024, 0.03027),
    (4096, 2048, 0.04992),
    (4096, 4096, 0.08816),
    (4096, 8192, 0.16522),
    (4096, 16384, 0.3223),
)
_H100_NORM = (
    (4096, 1024, 0.01885),
    (4096, 2048, 0.02915),
    (4096, 4096, 0.05104),
    (4096, 8192, 0.09475),
    (4096, 16384, 0.18477),
)
_A100_BANDWIDTH, _H100_BANDWIDTH = 2.039e12, 3.35e12
_TIMED_ALONE = "a fused layer norm timed alone, ramp included"


@dataclass(frozen=True)
class Achieved:
    """What a device's speeds are made of. `share`: best matrix rate over the peak where no format has a row."""

    units: int
    share: float
    share_note: str
    attention: Curve | None = None
    memory_like: tuple[tuple[float, float], ...] = ()
    memory_note: str = ""


def _memory_shares(rows: tuple[tuple[int, int, float], ...], bandwidth: float) -> tuple[tuple[float, float], ...]:
    """(bytes, share of the datasheet's bandwidth), LAUNCH_S taken off."""
    points = []
    for height, width, milliseconds in rows:
        nbytes = 2 * 4 * height * width
        points.append((float(nbytes), nbytes / (milliseconds / 1e3 - LAUNCH_S) / bandwidth))
    return tuple(points)


_A100_MEMORY = (
    _memory_shares(_A100_NORM, _A100_BANDWIDTH),
    f"A100 80 GB, hw_micro.csv hw-0217 to hw-0221, {_TIMED_ALONE}",
)
_H100_MEMORY = (
    _memory_shares(_H100_NORM, _H100_BANDWIDTH),
    f"H100 SXM, hw_micro.csv hw-0375 to hw-0379, {_TIMED_ALONE}",
)
_A100_SHARE = "the A100 SXM's share of its peak in bf16 (hw-0001) stands in"
_H100_SHARE = "the H100 SXM's share of its peak in bf16 (hw-0004) stands in"
_OWN_SHARE = "its own share of the peak in bf16 stands in"


def _blackwell(peak: float, units: int) -> Achieved:
    attention = cudnn_on_h100(peak, "; its share of the peak stands in for Blackwell's")
    return Achieved(units, HOPPER_SHARE, _H100_SHARE, attention, *_H100_MEMORY)


def _ampere(attention: Curve) -> Achieved:
    return Achieved(108, AMPERE_SHARE, _A100_SHARE, attention, *_A100_MEMORY)


def _ada(peak: float, units: int) -> Achieved:
    attention = flash_2_on_a100(peak, "; the A100's share of the peak stands in for Ada's")
    return Achieved(units, AMPERE_SHARE, _A100_SHARE, attention, *_A100_MEMORY)


_V100 = Achieved(80, AMPERE_SHARE, _A100_SHARE, None, *_A100_MEMORY)
_A100 = _ampere(flash_2_on_a100())
_OTHER_H100 = "; the H100 SXM's share of the peak stands in"


def _sxm(peak: float, note: str) -> Achieved:
    return Achieved(132, HOPPER_SHARE, note, flash_2_on_h100(peak, _OTHER_H100), *_H100_MEMORY)


#: Multiprocessors: NVIDIA's V100, A100, H100 and Ada whitepapers, CUDA's device query on Blackwell, AMD's data sheet.
ACHIEVED: dict[str, Achieved] = {
    "v100-16gb-sxm": _V100,
    "v100-32gb-sxm": _V100,
    "a100-40gb-pcie": _A100,
    "a100-80gb-pcie": _A100,
    "a100-40gb-sxm": _A100,
    "a100-80gb-sxm": _A100,
    "h100-pcie": Achieved(114, HOPPER_SHARE, _H100_SHARE, flash_2_on_h100(756e12, _OTHER_H100), *_H100_MEMORY),
    "h100-sxm": Achieved(132, HOPPER_SHARE, _H100_SHARE, flash_2_on_h100(), *_H100_MEMORY),
    "h100-96gb-500w": _sxm(989e12, f"{_H100_SHARE}, measured at 700 W"),
    "h200-sxm": _sxm(989.5e12, f"{_H100_SHARE}: the row's notes say the H200 is the same"),
    "b200": _blackwell(2250e12, 148),
    "b300": _blackwell(2250e12, 148),
    "gb200": _blackwell(2500e12, 152),
    "gb300": _blackwell(2500e12, 152),
    "mi300x": Achieved(304, HOPPER_SHARE, _H100_SHARE, None, *_H100_MEMORY),
    "rtx-4090": _ada(165.2e12, 128),
    "l40s": _ada(362.05e12, 142),
}  # fmt: skip


def speeds_of(device: Device) -> Speeds:
    """Achieved rates of a shipped GPU; a format without a peak has none, and so has memory without a bandwidth.

    SpecError for the CPU, which a calibration measures, and for a device that no figures are known of.
    """
    require(
        device.kind is not DeviceKind.CPU, "cluster.device: 'cpu' has no published speeds; `calibrate` measures them"
    )
    require(device.name in ACHIEVED, f"cluster.device: no achieved rates are known for {device.name!r}; calibrate it")
    parts = ACHIEVED[device.name]
    attention = {} if parts.attention is None else dict.fromkeys((MatmulDtype.BF16, MatmulDtype.FP16), parts.attention)
    if not device.peak(MatmulDtype.BF16).value:
        attention.pop(MatmulDtype.BF16, None)
    return Speeds(
        device.name,
        matmul={dtype: curve for dtype in MatmulDtype if (curve := _matmul(device, parts, dtype)) is not None},
        attention=attention,
        memory=_memory(device, parts),
        launch_s=LAUNCH_S,
        host_s=HOST_S,
        source=f"{LAUNCH_SOURCE}; {HOST_SOURCE}; compute is not slowed down beside communication, for want of a figure",
    )


def _matmul(device: Device, parts: Achieved, dtype: MatmulDtype) -> Curve | None:
    """By side: the best shape of a sweep, an upper bound, times what tiles and waves leave of it.

    A format without a row has the bf16 row's share of the peak, a device without rows that of `parts`.
    """
    best, peak = device.achieved(dtype), device.peak(dtype)
    if best.value is not None:
        return tile_curve(best.value, parts.units, f"{best.source}; by size: {WAVE_GUIDE}")
    if not peak.value:
        return None
    row, row_peak = device.achieved(MatmulDtype.BF16), device.peak(MatmulDtype.BF16)
    share, note = parts.share, parts.share_note
    if row.value and row_peak.value:
        share, note = row.value / row_peak.value, f"{_OWN_SHARE} ({row.source})"
    return tile_curve(peak.value * share, parts.units, f"{note}; by size: {WAVE_GUIDE}")


def _memory(device: Device, parts: Achieved) -> Curve | None:
    bandwidth = device.memory_bandwidth_bytes_per_second.value
    if not bandwidth:
        return None
    return Curve.of(
        ((nbytes, share * bandwidth) for nbytes, share in parts.memory_like),
        f"share of the datasheet: {parts.memory_note}",
    )
