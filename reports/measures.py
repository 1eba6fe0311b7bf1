"""What two runs are held to each other by: quantities of which less, or more, is better."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from reports.compare import CaseComparison, Peak
from reports.serving_rows import decode_steps
from reports.speed import slowest, step_seconds
from suite.parse import SpecError, nearest, shown
from suite.record import Quantity
from suite.stats import relative_error
from suite.units import bytes_text, count_text, number_text, percent_text, seconds_text

#: of bytes held and of losses: what is apart by less is the same (a scalar more or less; the order of a sum)
LEAST_BYTES, LEAST_LOSS = 1e-4, 1e-3
#: of errors, in points of a percent as a fraction
LEAST_POINTS = 1e-3


class Better(StrEnum):
    """Which way is better."""

    LESS = "less"
    MORE = "more"


class Kind(StrEnum):
    """How a quantity is known, and so how two of them are told apart."""

    TIMED = "timed"  # readings that scatter: by a test
    COUNTED = "counted"  # the same every time: by its value


class Group(StrEnum):
    """What a quantity says something about."""

    MEASURED = "measured"
    PREDICTION = "prediction"  # how far the formulas are off


@dataclass(frozen=True)
class Measure:
    """One quantity of a case."""

    name: str
    title: str
    better: Better
    kind: Kind
    read: Callable[[CaseComparison], Sequence[float]]
    """its readings of a case that ended well; none where it has none"""
    text: Callable[[float | None], str]
    least: float | None = None
    """the change below which two are the same; None: --least"""
    group: Group = Group.MEASURED
    is_share: bool = False
    """is it a fraction already, so that a change is a difference and no ratio?"""


def measures_named(names: str | None) -> tuple[Measure, ...]:
    """Those of a list with commas, each by its name or the beginning of it; all measured ones and predictions for None.
    SpecError for a name that is none."""
    if names is None:
        return MEASURES
    found = [_named(name.strip()) for name in names.split(",")]
    return tuple(measure for measure in MEASURES if measure in found)


def _named(name: str) -> Measure:
    fitting = [measure for measure in MEASURES if name and measure.name.startswith(name)]
    exact = [measure for measure in fitting if measure.name == name]
    if len(exact or fitting) != 1:
        raise SpecError(f"--quantity: {shown(name)} is not known; {nearest(name, [each.name for each in MEASURES])}")
    return (exact or fitting)[0]


def predicted_seconds(case: CaseComparison) -> float | None:
    """The step (of a served case: the token) as it was predicted from the operators of the machine at that time."""
    return case.serving.decode.predicted if case.serving else case.speed.predicted_seconds


def _step(case: CaseComparison) -> list[float]:
    return step_seconds(case.result.measurement) if case.is_ok else []


def _rate(case: CaseComparison) -> list[float]:
    return [case.case.tokens_per_step / seconds for seconds in _step(case) if seconds > 0]


def _peak(case: CaseComparison) -> list[float]:
    return _one(_peak_of(case.peak))


def _peak_of(peak: Peak) -> float | None:
    return peak.measured.bytes if peak.measured else None


def _sent(case: CaseComparison) -> list[float]:
    return _one(case.sent.measured if case.sent else None)


def _prefill(case: CaseComparison) -> list[float]:
    return slowest(case.result.measurement, Quantity.PREFILL_TIME)[1:] if case.is_ok and case.serving else []


def _decode(case: CaseComparison) -> list[float]:
    found = slowest(case.result.measurement, Quantity.DECODE_TIME) if case.is_ok and case.serving else []
    return found[decode_steps(case.case) :]


def _cache(case: CaseComparison) -> list[float]:
    row = case.serving.fullest(Quantity.CACHE) if case.serving else None
    return _one(row.measured if row else None)


def _cached_loss(case: CaseComparison) -> list[float]:
    return _one(case.serving.answers.get(Quantity.CACHED_LOSS) if case.serving else None)


def _peak_error(case: CaseComparison) -> list[float]:
    return _one(abs(case.peak.error) if case.peak.error is not None else None)


def _step_error(case: CaseComparison) -> list[float]:
    errors = [relative_error(case.speed.predicted_seconds, seconds) for seconds in _step(case)]
    return [abs(error) for error in errors if error is not None]


def _one(value: float | None) -> list[float]:
    return [] if value is None else [value]


def _share_text(value: float | None) -> str:
    return percent_text(value, 3)


def _loss_text(value: float | None) -> str:
    return number_text(value, 6)


_LESS, _TIMED, _COUNTED, _OFF = Better.LESS, Kind.TIMED, Kind.COUNTED, Group.PREDICTION
MEASURES = (
    Measure("step_seconds", "step time", _LESS, _TIMED, _step, seconds_text),
    Measure("tokens_per_second", "tokens/s", Better.MORE, _TIMED, _rate, count_text),
    Measure("memory_bytes", "peak memory, fullest rank", _LESS, _COUNTED, _peak, bytes_text, LEAST_BYTES),
    Measure("bytes_sent", "bytes sent a step, rank that sends most", _LESS, _COUNTED, _sent, bytes_text, 0.0),
    Measure("prefill_seconds", "time to first token", _LESS, _TIMED, _prefill, seconds_text),
    Measure("decode_seconds", "time per token", _LESS, _TIMED, _decode, seconds_text),
    Measure("cache_bytes", "cache, fullest rank", _LESS, _COUNTED, _cache, bytes_text, 0.0),
    Measure(
        "loss_nats", "final loss, nats", _LESS, _COUNTED, lambda case: _one(case.curve.final), _loss_text, LEAST_LOSS
    ),
    Measure("cached_loss_nats", "held-out loss, nats", _LESS, _COUNTED, _cached_loss, _loss_text, LEAST_LOSS),
    Measure(
        "error_memory", "error of the peak", _LESS, _COUNTED, _peak_error, _share_text, LEAST_POINTS, _OFF, True
    ),
    Measure("error_step", "error of the step time", _LESS, _TIMED, _step_error, _share_text, None, _OFF, True),
)  # fmt: skip
