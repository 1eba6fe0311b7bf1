"""What expert parallelism sends: counts, rows and their outputs, and the gradients of both."""

from __future__ import annotations

from typing import TYPE_CHECKING

from suite.collectives import Message

if TYPE_CHECKING:
    from suite.case import Case
    from suite.operators import Ledger


def messages(case: Case, ledger: Ledger, rank: int) -> tuple[Message, ...]:
    """To come."""
    return ()
