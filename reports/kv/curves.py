"""The curves of `kv --page`: a cache over the context, tokens a second over the batch, and the roofline."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from memory.caches.model import cache_terms
from memory.published_inference import resized
from parallelism.simulator.serving_time import roofline_of
from parallelism.simulator.serving_work import decode_work
from reports.kv.answer import AS_IT_IS, stored_bytes, times_of
from reports.kv.options import Asked
from suite.case import Case
from suite.models.served import served_model_of
from suite.parse import SpecError

#: where the context's axis begins, or so much below its end
_SHORTEST, _BELOW = 512, 64
#: the batch's axis goes so many times beyond what fits
_BEYOND = 4


@dataclass(frozen=True)
class Line:
    """One choice's points: (context, bytes a rank) or (batch, tokens a second)."""

    name: str
    points: tuple[tuple[int, float], ...]


def cases_compared(asked: Asked) -> Iterator[tuple[str, Case]]:
    """The case as it is, and every choice."""
    yield AS_IT_IS, asked.case
    for choice in asked.choices:
        yield choice.name, choice.of(asked.case)


def cache_lines(asked: Asked, rank: int) -> tuple[Line, ...]:
    """Bytes of a rank's cache over the context, at the asked batch; choices without a formula are left out."""
    return tuple(
        line for name, case in cases_compared(asked) if (line := _cache_line(name, case, asked, rank)) is not None
    )


def _cache_line(name: str, case: Case, asked: Asked, rank: int) -> Line | None:
    longest = max(asked.context, case.model.max_positions)
    sizes = sorted(
        {*_doublings(max(2, min(_SHORTEST, asked.context, longest // _BELOW)), longest), asked.context, longest}
    )
    try:
        return Line(
            name,
            tuple(
                (size, stored_bytes(cache_terms(resized(case, asked.batch, size, asked.step_tokens), rank)))
                for size in sizes
                if size <= max(case.model.max_positions, asked.context)
            ),
        )
    except SpecError:
        return None


def rate_lines(asked: Asked, rows: list[dict[str, Any]]) -> tuple[Line, ...]:
    """Tokens a second over the batch, at the asked context, of each choice up to its largest batch; a calibration need
    not know every batch, and the asked one alone decides whether there is a line."""
    lines = []
    for (name, case), row in zip(cases_compared(asked), rows, strict=True):
        largest = row["largest_batch"]
        if not largest or row["time"]["tokens_per_second"] is None:
            continue
        found = (
            (batch, times_of(resized(case, batch, asked.context, asked.step_tokens), asked)["tokens_per_second"])
            for batch in sorted({*_doublings(1, largest), largest})
        )
        lines.append(Line(name, tuple((batch, rate) for batch, rate in found if rate is not None)))
    return tuple(lines)


def roof_lines(asked: Asked, largest: int) -> tuple[Line, ...]:
    """What the case could do at most if reading, and if computing, were all that took time: tokens a second over the
    batch, on all replicas (Williams et al. 2009). Empty where a rate is not known."""
    if served_model_of(asked.case.decoder) is not None:
        return ()
    try:
        roof = roofline_of(asked.case)
    except SpecError:
        return ()
    reading, computing = [], []
    for batch in sorted({*_doublings(1, largest * _BEYOND), largest * _BEYOND}):
        case = resized(asked.case, batch, asked.context, asked.step_tokens)
        work = decode_work(case, cache_terms(case))
        tokens = batch * case.layout.data_ranks
        reading.append((batch, tokens / roof.memory_seconds(work)))
        computing.append((batch, tokens / roof.compute_seconds(work)))
    return Line("reading alone", tuple(reading)), Line("computing alone", tuple(computing))


def _doublings(first: int, last: int) -> Iterator[int]:
    """Powers of two from `first`, rounded up to one, to `last`."""
    size = 1 << max(0, (first - 1).bit_length())
    while size <= last:
        yield size
        size *= 2
