"""What the page shows of a served case: its cache part by part, each term with its formula, what its answers are
worth. No markup here."""

from __future__ import annotations

from dataclasses import dataclass
from math import exp

from reports.comparison import Comparison
from reports.serving_rows import ServingComparison
from reports.view import CaseView
from suite.cache_shape import CacheShape
from suite.record import CacheTerm, Component, Quantity
from suite.serving_rules import context_tokens


@dataclass(frozen=True)
class PartRow:
    """A component (None: the total) of the fullest rank's cache: stored, and read by the last token."""

    component: Component | None
    stored: Comparison | None
    read: Comparison | None


@dataclass(frozen=True)
class ServedView:
    """A served case beside what every case's view has."""

    view: CaseView
    found: ServingComparison
    rank: int | None  # the fullest; None where nothing is known of any
    rows: tuple[PartRow, ...]  # the total first
    token_bytes: float | None  # of what that rank stores, a token of one sequence's share
    terms: tuple[CacheTerm, ...]  # of that rank

    def answer(self, quantity: Quantity) -> float | None:
        """What the answers are worth, where it was measured."""
        return self.found.answers.get(quantity)

    @property
    def losses(self) -> tuple[float | None, float | None]:
        """Nats a token of held-out text, without a cache and through it."""
        return self.answer(Quantity.EXACT_LOSS), self.answer(Quantity.CACHED_LOSS)

    @property
    def has_losses(self) -> bool:
        """Was any text read for them?"""
        return any(loss is not None for loss in self.losses)

    @property
    def loss_apart(self) -> float | None:
        """What reading through the cache costs, nats a token."""
        without, through = self.losses
        return None if without is None or through is None else through - without

    @property
    def perplexities(self) -> tuple[float | None, float | None]:
        """e to the losses."""
        without, through = (None if loss is None else exp(loss) for loss in self.losses)
        return without, through


def served_view(view: CaseView, found: ServingComparison) -> ServedView:
    """The view of a served case."""
    total = found.fullest(Quantity.CACHE)
    rank = total.rank if total else None
    stored, read = (
        {row.component: row for row in found.rows if (row.quantity, row.rank) == (quantity, rank)}
        for quantity in (Quantity.CACHE, Quantity.CACHE_READ)
    )
    parts = [component for component in (None, *Component) if component in stored or component in read]
    estimate = view.comparison.result.serving
    return ServedView(
        view=view,
        found=found,
        rank=rank,
        rows=tuple(PartRow(part, stored.get(part), read.get(part)) for part in parts),
        token_bytes=_token_bytes(found, total),
        terms=tuple(term for term in (estimate.cache if estimate else ()) if term.rank == rank),
    )


def _token_bytes(found: ServingComparison, total: Comparison | None) -> float | None:
    """Stored bytes over the tokens of all sequences, prompt and answer: what is rounded up or forgotten included."""
    size = None if total is None else total.measured if total.measured is not None else total.predicted
    if size is None:
        return None
    return size / (CacheShape.of(found.case).sequences * context_tokens(found.case))
