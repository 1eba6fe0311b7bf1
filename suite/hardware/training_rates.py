"""Rates of whole training steps of torch: one fitted constant a device, its rows beside it; the rest is cited.

`reports/published/torch_fit.py` fits the constants again from the published tables.
"""

from __future__ import annotations

from dataclasses import dataclass

from suite.hardware.achieved import HOST_S, LAUNCH_S
from suite.hardware.attention_rates import H100_BF16_PEAK, flash_2_on_a100, flash_2_on_h100
from suite.hardware.curve import Curve
from suite.hardware.device import TERA, Device, MatmulDtype
from suite.hardware.speeds import Speeds


@dataclass(frozen=True)
class FittedRate:
    """FLOP/s that large bf16 products reach in a training step, and the published rows that it was fitted on: with it
    the mean of the logs of predicted over published is 0 over them."""

    flops_per_second: float
    rows: tuple[str, ...]


_A100 = FittedRate(253.2 * TERA, ("llm_foundry-0173", "llm_foundry-0299", "llm_foundry-0411", "llm_foundry-0413"))
FITTED: dict[str, FittedRate] = {
    "a100-80gb-sxm": _A100,
    "a100-40gb-sxm": _A100,
    "h100-sxm": FittedRate(614.3 * TERA, ("llm_foundry-0031", "llm_foundry-0049", "llm_foundry-0061")),
    "h100-96gb-500w": FittedRate(604.0 * TERA, ("torchtitan-0001",)),
}

#: share of the memory's bandwidth that norms reach, forward and backward, counted as torch's kernels read them: the
#: median of hw_micro.csv hw-0224 to hw-0226, hw-0234 to hw-0236 (A100), hw-0382 to hw-0384, hw-0402 to hw-0404 (H100)
MEMORY_SHARE = 0.8
#: hw_micro.csv hw-0019 over hw-0004, H100: best shapes in fp8 and in bf16
FP8_OVER_BF16 = 1402.6 / 794.5
#: compute beside communication over compute alone, "an average computational slowdown of 18.9 %" (arXiv:2507.03114)
SLOWDOWN = 1.189


def training_speeds(device: Device, fitted: FittedRate | None = None) -> Speeds | None:
    """The speeds of a device that published training runs speak of, or with another rate; None where none do."""
    fitted, bandwidth = fitted or FITTED.get(device.name), device.memory_bandwidth_bytes_per_second.value
    if fitted is None or bandwidth is None:
        return None
    top, moved = fitted.flops_per_second, MEMORY_SHARE * bandwidth
    source = f"fitted on {', '.join(fitted.rows)}"
    wide = product_curve(top, moved, 2, source)
    products = {MatmulDtype.BF16: wide, MatmulDtype.FP16: wide}
    if device.name.startswith("h100"):
        words = f"{source}; fp8 over bf16: hw-0019 over hw-0004"
        products[MatmulDtype.FP8] = product_curve(top * FP8_OVER_BF16, moved, 1, words)
    flash = _flash(device.name, top)
    return Speeds(
        device.name, products, {MatmulDtype.BF16: flash, MatmulDtype.FP16: flash},
        Curve.flat(moved, "0.8 of the datasheet's bandwidth, as norms reach in hw_micro.csv"),
        LAUNCH_S, HOST_S, SLOWDOWN, source,
    )  # fmt: skip


def _flash(name: str, top: float) -> Curve:
    """FlashAttention-2. A part that its power holds down attends as much slower as it multiplies."""
    if name.startswith("a100"):
        return flash_2_on_a100()
    held = top / FITTED["h100-sxm"].flops_per_second if name == "h100-96gb-500w" else 1.0
    return flash_2_on_h100(H100_BF16_PEAK * held)


def product_curve(top: float, bandwidth: float, nbytes: int, source: str) -> Curve:
    """The rate of products over their equivalent side s, where each takes FLOPs / top + bytes / bandwidth: its tiles'
    first loads and last stores hide behind no arithmetic. That is top / (1 + 1.5 w top / (bandwidth s)).

    `top` FLOP/s of large ones, `bandwidth` bytes/s of the device's memory, operands of `nbytes` (w) an element.
    """
    return Curve.of(((side, product_rate(top, bandwidth, nbytes, side)) for side in _SIDES), source)


def product_rate(top: float, bandwidth: float, nbytes: int, side: float) -> float:
    """The same at one side."""
    return top / (1 + 1.5 * nbytes * top / (bandwidth * side))


_SIDES = tuple(2.0**power for power in range(4, 18))
