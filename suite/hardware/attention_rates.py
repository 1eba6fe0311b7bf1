"""Published rates of fused attention on GPUs, forward and backward together, by tokens in the sequence.

FLOPs as their authors count them: 4 s^2 d a head forward, 2.5 times that backward (scores are computed again), half of
both under a causal mask.
"""

from __future__ import annotations

from dataclasses import dataclass

from suite.hardware.curve import Curve

Rates = tuple[float, ...]

LENGTHS = (512, 1024, 2048, 4096, 8192, 16384)
BACKWARD_WORK = 2.5
TERA = 1e12
H100_BF16_PEAK = 989.4 * TERA
A100_BF16_PEAK = 312.0 * TERA
_FIGURES = "Shah et al. 2024, arXiv:2407.08608, figures 5 and 6, H100 SXM, head dimension 128"
_CAUSAL = "backward under a mask: as forward loses by it"


@dataclass(frozen=True)
class AttentionRates:
    """TFLOP/s at LENGTHS: forward without and with the causal mask, backward without."""

    forward: Rates
    forward_causal: Rates
    backward: Rates

    def both_causal(self) -> Rates:
        """FLOP/s of a causal forward and backward pass together; the backward one loses by the mask what forward does.

        work / time of forward plus BACKWARD_WORK times as much of backward.
        """
        rates = []
        for plain, causal, backward in zip(self.forward, self.forward_causal, self.backward, strict=True):
            backward_causal = backward * causal / plain
            rates.append(TERA * (1 + BACKWARD_WORK) / (1 / causal + BACKWARD_WORK / backward_causal))
        return tuple(rates)


FLASH_2_H100 = AttentionRates(
    (309, 350, 362, 368, 370, 370), (191, 260, 298, 319, 333, 335), (214, 260, 291, 310, 318, 322)
)
CUDNN_H100 = AttentionRates(
    (497, 574, 617, 609, 600, 595), (315, 410, 484, 518, 529, 539), (305, 408, 465, 499, 518, 516)
)


def flash_2_on_h100(peak: float = H100_BF16_PEAK, note: str = "") -> Curve:
    """FlashAttention-2, what torch's scaled_dot_product_attention runs there, as a share of the H100's dense peak."""
    rates = FLASH_2_H100.both_causal()
    return _curve(rates, peak / H100_BF16_PEAK, f"FlashAttention-2: {_FIGURES}; {_CAUSAL}{note}")


def cudnn_on_h100(peak: float, note: str) -> Curve:
    """cuDNN's kernel as a share of the H100's dense peak."""
    return _curve(CUDNN_H100.both_causal(), peak / H100_BF16_PEAK, f"cuDNN: {_FIGURES}; {_CAUSAL}{note}")


def flash_2_on_a100(peak: float = A100_BF16_PEAK, note: str = "") -> Curve:
    """FlashAttention-2: at best 73 % of the peak forward and 63 % backward, by length as on the H100."""
    top = AttentionRates((0.73 * 312,), (0.73 * 312,), (0.63 * 312,)).both_causal()[0]
    plain = AttentionRates(FLASH_2_H100.forward, FLASH_2_H100.forward, FLASH_2_H100.backward).both_causal()[-1]
    source = "FlashAttention-2: Dao 2023, arXiv:2307.08691, section 4.1: up to 73 and 63 % of the peak; by length: "
    factor = top / plain * peak / A100_BF16_PEAK
    return _curve(FLASH_2_H100.both_causal(), factor, f"{source}{_FIGURES}; {_CAUSAL}{note}")


def _curve(rates: Rates, factor: float, source: str) -> Curve:
    return Curve.of(((length, rate * factor) for length, rate in zip(LENGTHS, rates, strict=True)), source)
