"""A case's messages on this machine's CPU: what has to be measured of them, and how long each takes."""

from __future__ import annotations

from collections.abc import Iterable

from parallelism.traffic import messages_of
from suite.case import Case
from suite.collectives import Collective, Message
from suite.hardware.calibration import Calibration
from suite.hardware.collective_times import CollectiveSeconds, CollectiveTimes, Exchange, Form, distinct, exchange_of
from suite.operators import Ledger

_PAIRS = (Collective.ALL_GATHER, Collective.REDUCE_SCATTER)


def form_of(message: Message) -> Form:
    """How its strategy calls it: parallelism/tensor/regions.py, parallelism/context/ring.py, else torch.distributed."""
    if message.axis == "tp" and message.collective in _PAIRS:
        return Form.FUNCTIONAL
    return Form.RING if message.axis == "cp" and message.collective is Collective.SEND else Form.DIRECT


def exchange_for(message: Message, case: Case) -> Exchange:
    """The call to measure for a message: its group, and the case's other groups of that size at once."""
    return exchange_of(message, form_of(message), case.cluster.per_node)


def exchanges_of(ledgers: Iterable[tuple[Case, Ledger]]) -> tuple[Exchange, ...]:
    """Everything that some cases say, each once. A ledger is of a rank's share of the whole model
    (memory.estimate.MemoryModel.ledger_of_share), the first rank's."""
    return distinct(exchange_for(message, case) for case, ledger in ledgers for message in messages_of(case, ledger))


def message_seconds(calibration: Calibration, message: Message, case: Case) -> CollectiveSeconds:
    """Seconds of one call of a message, all the machine's ranks at work, and what they rest on.

    Raises SpecError where no such collective was measured.
    """
    return CollectiveTimes(calibration.collectives).seconds(exchange_for(message, case))
