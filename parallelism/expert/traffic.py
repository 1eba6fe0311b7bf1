"""What expert parallelism sends: counts, rows and their outputs, and the gradients of both."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from suite.collectives import Collective, Message
from suite.layout import Recompute
from suite.tape_exchange import COMBINE, COUNTS, DISPATCH

if TYPE_CHECKING:
    from suite.case import Case
    from suite.operators import Array, Ledger, Operator

SOURCE = "parallelism/expert/exchange.py; Lepikhin et al. 2020, arXiv:2006.16668, section 3.2"


def messages(case: Case, ledger: Ledger, rank: int) -> tuple[Message, ...]:
    """A rank's all-to-alls of one step, block by block, of the routing that the ledger has.

    Counted, in every micro-batch: int64 counts, one an expert; a row of the compute type for each token and expert that
    it goes to, this rank's own among them; the outputs of the rows that came, which the routing decides; the gradients
    of both; and where checkpointing reruns a block, counts, rows and outputs again. Exact where all micro-batches are
    routed as the ledger has it: balanced, or as recorded (parallelism/traffic.py sums over ledgers of micro-batches).
    """
    rows: list[Message] = []
    reruns = case.layout.recompute != Recompute()
    for segment, count in ledger.counts.items():
        rerun = segment.recomputed
        for operator in segment.operators():
            often = count * case.workload.micro_batches
            rows += _of_operator(case, operator, often, often * (reruns and operator in rerun))
    return tuple(rows)


def _of_operator(case: Case, operator: Operator, passes: int, reruns: int) -> Iterator[Message]:
    """An exchange's messages in so many forward passes, and again in reruns."""
    if operator.name not in (COUNTS, DISPATCH, COMBINE):
        return
    there, back = _payloads(operator)
    what = {COUNTS: "counts of rows", DISPATCH: "rows for experts", COMBINE: "outputs of experts"}[operator.name]
    kept = Collective.ALL_TO_ALL, "ep", case.layout.ep
    yield Message(*kept, there.nbytes, passes, what, there.formula, SOURCE)
    yield Message(*kept, there.nbytes, reruns, f"{what}, again", there.formula, SOURCE)
    if operator.name != COUNTS:
        yield Message(*kept, back.nbytes, passes, f"gradients of {what}", back.formula, SOURCE)


def _payloads(operator: Operator) -> tuple[Array, Array]:
    """What an exchange hands over forward, and backward: as large as what it then received."""
    (sends,) = (kernel for kernel in operator.kernels if kernel.name == "all_to_all")
    return sends.reads[0], sends.writes[0]
