"""Which layout of a group wins where: fastest, leanest, fewest bytes sent, best trade. Within noise it is a tie."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from statistics import median

from reports.compare import CaseComparison
from reports.comparison import Comparison
from reports.serving_rows import ServingComparison, Timing, decode_steps
from reports.side_by_side.apart import LEAST_TIME, Rule, lowest
from reports.side_by_side.groups import Choice, Group
from reports.speed import slowest, step_seconds
from reports.summary import ERROR_BAND
from suite.record import Quantity
from suite.stats import summarize
from suite.units import bytes_text, seconds_text

#: measured bytes that differ by less are the same: a scalar more or less
LEAST_BYTES = 1e-4
#: predictions that differ by less say nothing about which is lower: what the formulas promise to keep to
PREDICTED_BYTES, PREDICTED_TIME = ERROR_BAND, 0.05


class Basis(StrEnum):
    """How the numbers that a win rests on are known."""

    MEASURED = "measured"
    PREDICTED = "predicted"


@dataclass(frozen=True)
class Criterion:
    """Something of which less is better."""

    title: str
    what: str
    readings: Callable[[CaseComparison], Sequence[float]]
    predicted: Callable[[CaseComparison], float | None]
    measured_rule: Rule
    predicted_rule: Rule
    text: Callable[[CaseComparison, Basis], str]

    def values(self, case: CaseComparison, basis: Basis) -> Sequence[float]:
        """The case's numbers of that basis; none where they are not known."""
        if basis is Basis.MEASURED:
            return self.readings(case)
        value = self.predicted(case)
        return () if value is None else (value,)

    def rule(self, basis: Basis) -> Rule:
        """When two of them are told apart."""
        return self.measured_rule if basis is Basis.MEASURED else self.predicted_rule

    def value(self, case: CaseComparison, basis: Basis) -> float | None:
        """The median of a case's numbers."""
        found = summarize(self.values(case, basis))
        return found.median if found else None


@dataclass(frozen=True)
class Win:
    """Who wins by a criterion: the lowest first, then those that are not told from it, which tie with it."""

    criterion: Criterion
    basis: Basis
    winners: tuple[Choice, ...]
    known: int
    """layouts of which the number is known"""
    next: Choice | None = None
    """the lowest that is told from the first winner"""
    promised: Choice | None = None
    """the lowest by prediction, where the basis is measurement"""

    @property
    def margin(self) -> float | None:
        """By how much the next one has more, as a fraction of the first winner's; None without either."""
        first = self.criterion.value(self.winners[0].case, self.basis) if self.winners else None
        other = self.criterion.value(self.next.case, self.basis) if self.next else None
        return other / first - 1 if first and other is not None else None

    @property
    def held(self) -> bool | None:
        """Is the prediction's lowest among the winners? None where nothing is measured or predicted."""
        if self.promised is None or not self.winners:
            return None
        return self.promised.name in {choice.name for choice in self.winners}

    @property
    def regret(self) -> float | None:
        """What choosing by prediction costs: the promised one's measured number over the lowest, less one."""
        if self.promised is None or not self.winners:
            return None
        first = self.criterion.value(self.winners[0].case, self.basis)
        other = self.criterion.value(self.promised.case, self.basis)
        return other / first - 1 if first and other is not None else None


def wins(group: Group) -> tuple[Win, ...]:
    """A win a criterion; one without winners where fewer than two layouts have the number. None for bytes sent where
    nobody sends any."""
    found = (_win(group.choices, criterion) for criterion in (SERVED if group.serves else TRAINED))
    return tuple(win for win in found if win.criterion is not _BYTES or not _is_silent(win))


def _is_silent(win: Win) -> bool:
    """Does even the one that has more send nothing?"""
    return bool(win.winners) and win.next is None and not win.criterion.value(win.winners[0].case, win.basis)


def front(group: Group) -> tuple[Basis, frozenset[str]]:
    """The names of the layouts that no other beats on time and bytes, and what that rests on.

    One beats another that is told to be better in one of the two and is not told to be worse in the other. Layouts
    of which either number is not known are not on it.
    """
    pair = (SERVED[1], SERVED[2]) if group.serves else (TRAINED[0], TRAINED[1])
    for basis in Basis:
        numbers = {
            choice.name: [criterion.values(choice.case, basis) for criterion in pair] for choice in group.choices
        }
        known = {name: both for name, both in numbers.items() if all(both)}
        if len(known) > 1:
            break
    rules = [criterion.rule(basis) for criterion in pair]

    def beats(one: str, other: str) -> bool:
        found = [_sign(*values) for values in zip(rules, known[one], known[other], strict=True)]
        return max(found) > 0 and min(found) >= 0

    return basis, frozenset(one for one in known if not any(beats(other, one) for other in known))


def _sign(rule: Rule, first: Sequence[float], second: Sequence[float]) -> int:
    """1 where the first is told to be less, -1 where the second is, 0 where they tie."""
    if not rule.apart(first, second):
        return 0
    return 1 if median(first) < median(second) else -1


def _win(choices: Sequence[Choice], criterion: Criterion) -> Win:
    for basis in Basis:
        values = [criterion.values(choice.case, basis) for choice in choices]
        known = sum(bool(each) for each in values)
        best = lowest(values, criterion.rule(basis))
        if best is None:
            continue
        winners = tuple(choices[place] for place in (best.place, *best.ties))
        later = choices[best.next] if best.next is not None else None
        promised = _promised(choices, criterion) if basis is Basis.MEASURED else None
        return Win(criterion, basis, winners, known, later, promised)
    return Win(criterion, Basis.PREDICTED, (), 0)


def _promised(choices: Sequence[Choice], criterion: Criterion) -> Choice | None:
    """The lowest by prediction, of those that were measured."""
    known = [
        (predicted, place)
        for place, choice in enumerate(choices)
        if (predicted := criterion.predicted(choice.case)) is not None and criterion.readings(choice.case)
    ]
    return choices[min(known)[1]] if len(known) > 1 else None


# --- what is compared --------------------------------------------------------------------------------------------


def sent_row(case: CaseComparison) -> Comparison | None:
    """Bytes sent in a step by the rank that sends most; zeros where the ranks are known to send nothing."""
    return case.sent or next((row for row in case.traffic if row.collective is None), None)


def _step(case: CaseComparison) -> Sequence[float]:
    return step_seconds(case.result.measurement) if case.is_ok else ()


def _peak(case: CaseComparison) -> Sequence[float]:
    return (case.peak.measured.bytes,) if case.peak.measured else ()


def _predicted_peak(case: CaseComparison) -> float | None:
    return case.peak.predicted.bytes if case.peak.predicted else None


def _sent(case: CaseComparison) -> Sequence[float]:
    row = sent_row(case)
    return () if row is None or row.measured is None else (row.measured,)


def _predicted_sent(case: CaseComparison) -> float | None:
    row = sent_row(case)
    return row.predicted if row else None


def _prefill(case: CaseComparison) -> Sequence[float]:
    return slowest(case.result.measurement, Quantity.PREFILL_TIME)[1:] if case.is_ok else ()


def _decode(case: CaseComparison) -> Sequence[float]:
    return slowest(case.result.measurement, Quantity.DECODE_TIME)[decode_steps(case.case) :] if case.is_ok else ()


def _cache_row(case: CaseComparison) -> Comparison | None:
    return case.serving.fullest(Quantity.CACHE) if case.serving else None


def _cache(case: CaseComparison) -> Sequence[float]:
    row = _cache_row(case)
    return () if row is None or row.measured is None else (row.measured,)


def _predicted_cache(case: CaseComparison) -> float | None:
    row = _cache_row(case)
    return row.predicted if row else None


def _timing(which: Callable[[ServingComparison], Timing]) -> Callable[[CaseComparison], float | None]:
    return lambda case: which(case.serving).predicted if case.serving else None


_Readings = Callable[[CaseComparison], Sequence[float]]
_Predicted = Callable[[CaseComparison], float | None]


def _timed(title: str, what: str, readings: _Readings, predicted: _Predicted) -> Criterion:
    rules = (Rule(LEAST_TIME, scatters=True), Rule(PREDICTED_TIME))
    return Criterion(title, what, readings, predicted, *rules, _text(seconds_text, readings, predicted))


def _counted(title: str, what: str, readings: _Readings, predicted: _Predicted, least: float, band: float) -> Criterion:
    text = _text(bytes_text, readings, predicted)
    return Criterion(title, what, readings, predicted, Rule(least), Rule(band), text)


def _text(
    text: Callable[[float | None], str], readings: _Readings, predicted: _Predicted
) -> Callable[[CaseComparison, Basis], str]:
    def said(case: CaseComparison, basis: Basis) -> str:
        found = summarize(readings(case)) if basis is Basis.MEASURED else None
        return text(found.median if found else predicted(case))

    return said


def _trade(time: Criterion, room: Criterion) -> Criterion:
    """Time and bytes as one number, their product: a layout that takes a tenth longer has to need a tenth less."""

    def readings(case: CaseComparison) -> Sequence[float]:
        held = room.value(case, Basis.MEASURED)
        return () if held is None else [seconds * held for seconds in time.readings(case)]

    def predicted(case: CaseComparison) -> float | None:
        seconds, held = time.predicted(case), room.predicted(case)
        return None if seconds is None or held is None else seconds * held

    return Criterion(
        title="best trade",
        what=f"least {time.what} x {room.what}",
        readings=readings,
        predicted=predicted,
        measured_rule=time.measured_rule,
        predicted_rule=time.predicted_rule,
        text=lambda case, basis: f"{time.text(case, basis)} with {room.text(case, basis)}",
    )


_STEP = _timed("fastest", "step time", _step, lambda case: case.speed.predicted_seconds)
_ROOM = _counted("leanest", "peak memory", _peak, _predicted_peak, LEAST_BYTES, PREDICTED_BYTES)
_BYTES = _counted("fewest bytes sent", "bytes sent in a step", _sent, _predicted_sent, 0.0, 0.0)
TRAINED = (_STEP, _ROOM, _BYTES, _trade(_STEP, _ROOM))

_FIRST = _timed("first token soonest", "time to the first token", _prefill, _timing(lambda found: found.prefill))
_NEXT = _timed("next token soonest", "time per token", _decode, _timing(lambda found: found.decode))
_CACHE = _counted("smallest cache", "cache", _cache, _predicted_cache, LEAST_BYTES, PREDICTED_BYTES)
SERVED = (_FIRST, _NEXT, _CACHE, _trade(_NEXT, _CACHE))
