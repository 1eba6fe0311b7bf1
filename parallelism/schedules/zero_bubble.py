"""Zero-bubble pipelines by hand, ZB-H1 and ZB-H2 (arXiv:2401.10241): orders to simulate, none that a trainer runs."""

from __future__ import annotations

from enum import IntEnum

from parallelism.schedules.orders import Action, Pass
from suite.parse import require


class HandMade(IntEnum):
    """The paper's two hand-made schedules, by how many micro-batches a rank runs ahead of the next one."""

    ZB_H1 = 1  # as many activations as 1F1B's first rank, on every rank
    ZB_H2 = 2  # about twice as many; the ranks' steps end as far apart as they began


def hand_made_orders(kind: HandMade, pp: int, micro_batches: int) -> tuple[tuple[Action, ...], ...]:
    """What each pipeline rank runs, one stage a rank (section 2.1 and figures 2 and 3 of the paper).

    Forward alone until a rank is `kind` micro-batches a coming rank ahead, then a forward pass and an input gradient in
    turn. Weight gradients lag so far behind their inputs that every rank holds equally many micro-batches: `kind` for
    each rank before it. With fewer micro-batches than the warm-up takes, all are run forward first. SpecError for
    fewer than one rank or micro-batch.
    """
    for name, size in (("pp", pp), ("micro_batches", micro_batches)):
        require(size >= 1, f"{name}: must be at least 1, got {size}")
    return tuple(
        _order(rank, min(micro_batches, kind * (pp - 1 - rank)), kind * rank, micro_batches) for rank in range(pp)
    )


def _order(rank: int, warm: int, lag: int, micro_batches: int) -> tuple[Action, ...]:
    line = [Action(rank, Pass.FORWARD, item) for item in range(warm)]
    for item in range(micro_batches):
        if warm + item < micro_batches:
            line.append(Action(rank, Pass.FORWARD, warm + item))
        line.append(Action(rank, Pass.INPUT, item))
        if item >= lag:
            line.append(Action(rank, Pass.WEIGHT, item - lag))
    return (*line, *(Action(rank, Pass.WEIGHT, item) for item in range(max(0, micro_batches - lag), micro_batches)))
