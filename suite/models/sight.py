"""What a query may see of a text: the tokens up to its own, within a window, and beside it the first ones."""

from __future__ import annotations

from torch import Tensor


def may_see(queries: Tensor, entries: Tensor, window: int | None = None, sinks: int = 0) -> Tensor:
    """The one rule of attention to the past, [..., s, t]: a query at place p [..., s] may read entries at places e
    [..., t] with 0 <= e <= p, of which p - window < e where there is a window (arXiv:2310.06825, section 2), or
    e < sinks (arXiv:2309.17453, section 3.2)."""
    query, entry = queries.unsqueeze(-1), entries.unsqueeze(-2)
    may = (entry >= 0) & (entry <= query)
    if window is not None:
        may &= (entry > query - window) | (entry < sinks)
    return may
