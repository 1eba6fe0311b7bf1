"""Measures this machine's collectives, in processes of their own: those of a list, or of a grid. Torch-free."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import astuple
from itertools import product

from suite.collectives import Collective
from suite.hardware.collective_times import IN_A_ROW, CollectiveTime, Exchange, Form, distinct
from suite.launch import rank_variables
from suite.parse import require
from suite.stats import summarize

WORKER = "suite.hardware.collective_times_worker"
KIB = 2**10
#: (ranks in a group, groups at once)
CROWDS = ((2, 1), (2, 2), (2, 4), (4, 1), (4, 2), (8, 1))
PAYLOADS = (KIB, 64 * KIB, 1024 * KIB, 16 * 1024 * KIB)
KINDS = (
    (Collective.ALL_REDUCE, Form.DIRECT),
    (Collective.ALL_GATHER, Form.DIRECT),
    (Collective.REDUCE_SCATTER, Form.DIRECT),
    (Collective.ALL_TO_ALL, Form.DIRECT),
    (Collective.BROADCAST, Form.DIRECT),
    (Collective.SEND, Form.DIRECT),
    (Collective.ALL_GATHER, Form.FUNCTIONAL),
    (Collective.REDUCE_SCATTER, Form.FUNCTIONAL),
    (Collective.SEND, Form.RING),
)
#: the quick grid: what the others are made of
QUICK_CROWDS, QUICK_PAYLOADS = ((2, 1), (4, 1)), (KIB, 256 * KIB)
#: seconds for torch's import and the forks; and how much longer than their slots slow exchanges may take
START_ALLOWANCE_S, SLOWNESS_ALLOWANCE = 90.0, 12.0


class CollectiveTimeError(RuntimeError):
    """The measuring process failed; one line says how."""


def grid(quick: bool = False) -> tuple[Exchange, ...]:
    """What a calibration measures with no case in view."""
    crowds, payloads = (QUICK_CROWDS, QUICK_PAYLOADS) if quick else (CROWDS, PAYLOADS)
    pairs = product(KINDS, crowds, payloads)
    return distinct(Exchange(*kind, *crowd, payload) for kind, crowd, payload in pairs)


def measure_collectives(exchanges: Iterable[Exchange], seconds: float) -> tuple[tuple[CollectiveTime, ...], float]:
    """Times of these exchanges, about `seconds` for all (more where one call outlasts its slot), and the cores that
    other processes kept busy meanwhile.

    Raises SpecError for bad arguments, CollectiveTimeError (one line) where the measuring process fails or hangs.
    """
    from suite.child import ChildError, ask  # here, because looking a time up does not need it

    wanted = distinct(exchanges)
    require(0 < seconds < 3600, f"seconds: must be above 0 and below 3600, got {seconds}")
    if not wanted:
        return (), 0.0
    request = {
        "exchanges": [[str(kind), str(form), *sizes] for kind, form, *sizes in map(astuple, wanted)],
        "slot_seconds": seconds / len(wanted),
    }
    try:
        answer = ask(WORKER, request, START_ALLOWANCE_S + SLOWNESS_ALLOWANCE * seconds, rank_variables(1))
    except ChildError as error:
        raise CollectiveTimeError(f"collectives: the measuring process: {error}") from None
    rows = zip(wanted, answer["rows"], strict=True)
    return tuple(_time(exchange, row, answer["between_seconds"]) for exchange, row in rows), answer["other_cores"]


def _time(exchange: Exchange, readings: list[float], between: float) -> CollectiveTime:
    """Median and IQR of all ranks' readings; a median below nothing is noise around it. A ring's batch is two
    messages."""
    summary = summarize(readings)
    assert summary is not None  # the worker takes several readings of each
    share = 0.5 if exchange.form is Form.RING else 1.0
    return CollectiveTime(
        collective=exchange.collective,
        form=exchange.form,
        ranks=exchange.ranks,
        groups=exchange.groups,
        payload_bytes=exchange.payload_bytes,
        seconds=max(0.0, summary.median) * share,
        iqr_seconds=summary.iqr * share,
        readings=summary.count,
        between_seconds=0.0 if exchange.collective in IN_A_ROW else between,
    )
