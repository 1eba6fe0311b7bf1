"""Seconds that a unit's tensor- and context-parallel messages take, pass by pass, and what of a step is sent once."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from parallelism.context.strategy import CONTEXT
from parallelism.expert.strategy import EXPERT
from parallelism.simulator.plan import Part
from parallelism.tensor.strategy import TENSOR
from parallelism.tensor.traffic import ONCE_A_STEP, whole_gradients
from suite.case import Case
from suite.collectives import Message
from suite.layout import ContextMethod, Recompute
from suite.operators import Ledger, Placed

#: whose messages a unit's operators wait for
STRATEGY_OF = {Part.TENSOR: TENSOR, Part.CONTEXT: CONTEXT, Part.EXPERT: EXPERT}
#: a message -> seconds of one call of it
Seconds = Callable[[Message], float]


@dataclass(frozen=True)
class PassSeconds:
    """Seconds on a link of one unit and one micro-batch."""

    forward: float = 0.0
    backward: float = 0.0
    rerun: float = 0.0

    def less(self, forward: float, backward: float, rerun: float) -> PassSeconds:
        """What is left when so much of each is hidden."""
        return PassSeconds(
            max(0.0, self.forward - forward), max(0.0, self.backward - backward), max(0.0, self.rerun - rerun)
        )


def total_seconds(messages: Iterable[Message], seconds: Seconds) -> float:
    """Of all calls, one after the other; groups of one say nothing."""
    return sum(message.count * seconds(message) for message in messages if message.ranks > 1 and message.count)


def pass_seconds(case: Case, ledger: Ledger, placed: Placed, rank: int, part: Part, seconds: Seconds) -> PassSeconds:
    """The messages of one unit over tp (Part.TENSOR), cp (Part.CONTEXT) or ep (Part.EXPERT), for one micro-batch.

    They are the strategy's own (parallelism.traffic), of a ledger with this unit alone. What checkpointing sends again
    is what the case sends more than the same case without it.
    """
    strategy = STRATEGY_OF[part]
    if not strategy.is_used(case.layout):
        return PassSeconds()
    alone = replace(ledger, segments=(placed,))
    again = [row for row in strategy.messages(case, alone, rank) if row.purpose != ONCE_A_STEP]
    rows = again
    if case.layout.recompute != Recompute():
        plain = replace(case, layout=replace(case.layout, recompute=Recompute()))
        rows = [row for row in strategy.messages(plain, alone, rank) if row.purpose != ONCE_A_STEP]
    count = case.workload.micro_batches
    total = total_seconds(rows, seconds)
    backward = total_seconds(filter(is_backward, rows), seconds)
    rerun = total_seconds(again, seconds) - total
    return PassSeconds((total - backward) / count, backward / count, max(0.0, rerun) / count)


def is_backward(message: Message) -> bool:
    """Is it a gradient, or what a ring sends round once more for gradients?"""
    return "gradient" in message.purpose or message.purpose.endswith("again")


def hides_ring(case: Case) -> float:
    """Share of an attention core's time beside which a ring's messages travel: all of its n steps but one."""
    layout = case.layout
    return (layout.cp - 1) / layout.cp if layout.context is ContextMethod.RING else 0.0


def once_a_step(case: Case, ledger: Ledger, rank: int) -> list[Message]:
    """Tensor parallelism's sum of the gradients of what is whole on every rank; the ledger is all that the rank
    holds."""
    if not TENSOR.is_used(case.layout):
        return []
    return whole_gradients(case, ledger, rank)
