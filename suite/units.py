"""The only place where a number becomes text. Inside, everything is SI: bytes, seconds, FLOP.

GiB is 2^30 bytes; decimal "GB" is never written. A number that is not known is printed `n/a`.
"""

from __future__ import annotations

NOT_KNOWN = "n/a"
KIB, MIB, GIB, TIB = 2**10, 2**20, 2**30, 2**40


def bytes_text(value: float | None, digits: int = 2) -> str:
    """Bytes in the largest binary unit that keeps the number at or above one: 1536 -> '1.50 KiB'."""
    if value is None:
        return NOT_KNOWN
    for size, unit in ((TIB, "TiB"), (GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")):
        if abs(value) >= size:
            return f"{value / size:.{digits}f} {unit}"
    return f"{value:.0f} B"


def seconds_text(value: float | None) -> str:
    """Seconds in the unit a reader would pick: us, ms, s, min, h."""
    if value is None:
        return NOT_KNOWN
    if abs(value) < 1e-3:
        return f"{value * 1e6:.1f} us"
    if abs(value) < 1:
        return f"{value * 1e3:.1f} ms"
    if abs(value) < 120:
        return f"{value:.2f} s"
    if abs(value) < 7200:
        return f"{value / 60:.1f} min"
    return f"{value / 3600:.1f} h"


def percent_text(fraction: float | None, digits: int = 2, signed: bool = False) -> str:
    """A fraction as a percentage: 0.0123 -> '1.23 %'. What rounds to nothing has no sign."""
    if fraction is None:
        return NOT_KNOWN
    rounded = round(fraction * 100, digits) or 0.0
    return f"{rounded:{'+' if signed and rounded else ''}.{digits}f} %"


def count_text(value: float | None) -> str:
    """A count with thousands separated: 124439808 -> '124,439,808'."""
    return NOT_KNOWN if value is None else f"{value:,.0f}"


def short_count_text(value: float | None) -> str:
    """A count in K, M, B or T (powers of 1000): 8030261248 -> '8.03 B'."""
    if value is None:
        return NOT_KNOWN
    for size, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K")):
        if abs(value) >= size:
            return f"{value / size:.2f} {unit}"
    return f"{value:.0f}"


def rate_text(flops_per_second: float | None) -> str:
    """FLOP/s in the unit a reader would pick: GFLOP/s, TFLOP/s, PFLOP/s."""
    if flops_per_second is None:
        return NOT_KNOWN
    for size, unit in ((1e15, "PFLOP/s"), (1e12, "TFLOP/s"), (1e9, "GFLOP/s")):
        if abs(flops_per_second) >= size:
            return f"{flops_per_second / size:.1f} {unit}"
    return f"{flops_per_second / 1e6:.1f} MFLOP/s"


def number_text(value: float | None, digits: int = 4) -> str:
    """A bare number with so many significant digits."""
    return NOT_KNOWN if value is None else f"{value:.{digits}g}"


def energy_text(joules: float | None) -> str:
    """Energy in the unit of a bill: kWh, MWh, GWh."""
    if joules is None:
        return NOT_KNOWN
    for size, unit in ((3.6e12, "GWh"), (3.6e9, "MWh")):
        if abs(joules) >= size:
            return f"{joules / size:.2f} {unit}"
    return f"{joules / 3.6e6:.2f} kWh"


def mass_text(kilograms: float | None) -> str:
    """Kilograms, from a thousand on in tonnes."""
    if kilograms is None:
        return NOT_KNOWN
    return f"{kilograms / 1000:.2f} t" if abs(kilograms) >= 1000 else f"{kilograms:.2f} kg"


def days_text(seconds: float | None) -> str:
    """Seconds in days, below two of them as `seconds_text`."""
    if seconds is None or abs(seconds) < 2 * 86400:
        return seconds_text(seconds)
    return f"{seconds / 86400:.1f} days"
