"""Zero-bubble schedules: by hand, the paper's closed forms in the engine, and what holds for every one of them."""

from __future__ import annotations

from collections.abc import Sequence
from types import MappingProxyType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parallelism.schedules.orders import Action, Pass, kept
from parallelism.schedules.zero_bubble import HandMade, hand_made_orders
from parallelism.schedules.zero_bubble_search import StageMemory, StageTimes, searched_orders
from parallelism.simulator.engine import run
from parallelism.simulator.equal_stages import equal_stages, longest_span
from parallelism.simulator.program import program_of
from reports.published.answers import CannotModel
from reports.published.bubbles import bubble_rate
from suite.parse import SpecError
from suite.published import PublishedRow, TableKind, UnreadableCell

pytestmark = pytest.mark.unit

EVEN = StageTimes(1.0, 1.0, 1.0)
#: profiled, in ms: arXiv:2401.10241, table 6, 6.2B parameters and 24 micro-batches
PROFILED = StageTimes(29.718, 29.444, 19.927)


def span(orders: Sequence[tuple[Action, ...]], times: StageTimes) -> float:
    """Of the rank whose first and last pass are farthest apart; Deadlock where the orders wait for each other."""
    program = program_of(equal_stages(orders, times))
    return longest_span(program, run(program.graph))


def activations(multiple: float, pp: int) -> StageMemory:
    """Room for so many p micro-batches, all of each held until its weight gradient."""
    return StageMemory(multiple * pp, 0.0, 1.0)


@pytest.mark.parametrize(
    "kind, rank, order",
    [
        (HandMade.ZB_H1, 0, "0F0 0F1 0I0 0W0 0F2 0I1 0W1 0I2 0W2"),
        (HandMade.ZB_H1, 1, "1F0 1I0 1F1 1I1 1W0 1F2 1I2 1W1 1W2"),
        # two more forward passes a coming rank; on the last rank weights wait for two more gradients
        (HandMade.ZB_H2, 0, "0F0 0F1 0F2 0I0 0W0 0I1 0W1 0I2 0W2"),
        (HandMade.ZB_H2, 1, "1F0 1I0 1F1 1I1 1F2 1I2 1W0 1W1 1W2"),
    ],
)
def test_orders_by_hand(kind: HandMade, rank: int, order: str) -> None:
    assert " ".join(map(str, hand_made_orders(kind, 2, 3)[rank])) == order


@pytest.mark.parametrize("times", [EVEN, PROFILED])
@pytest.mark.parametrize(("pp", "micro_batches"), [(1, 2), (2, 4), (4, 8), (8, 24)])
def test_bubbles_are_the_papers(times: StageTimes, pp: int, micro_batches: int) -> None:
    """arXiv:2401.10241, table 2: (p-1)(TF + TB - TW) and (p-1)(TF + TB - 2 TW)."""
    ideal, both = micro_batches * times.compute, times.forward + times.inputs
    h1, h2 = (span(hand_made_orders(kind, pp, micro_batches), times) for kind in HandMade)
    assert h1 == pytest.approx(ideal + (pp - 1) * (both - times.weights))
    assert h2 == pytest.approx(ideal + (pp - 1) * (both - 2 * times.weights))


def test_a_message_costs_h2_two_hops_a_rank() -> None:
    # once forward and once back through the pipeline; the rest is hidden behind what runs ahead
    found = span(hand_made_orders(HandMade.ZB_H2, 4, 12), StageTimes(1.0, 1.0, 1.0, 0.25))
    assert found == pytest.approx(12 * 3.0 + 2 * 3 * 0.25)


@pytest.mark.parametrize(("kind", "most"), [(HandMade.ZB_H1, 4), (HandMade.ZB_H2, 7)])
def test_every_rank_holds_as_much(kind: HandMade, most: int) -> None:
    """p and 2p - 1 micro-batches of four ranks: arXiv:2401.10241, table 2."""
    assert [max(kept(order)) for order in hand_made_orders(kind, 4, 12)] == [most] * 4


def test_with_twice_the_memory_the_search_leaves_no_bubble() -> None:
    """Equal passes: the paper's claim for ZB-2p, and for ZB-1p ZB-H1's bubble, (p-1) of one pass."""
    assert span(searched_orders(4, 12, EVEN, activations(2, 4)), EVEN) == pytest.approx(12 * 3.0)
    assert span(searched_orders(4, 12, EVEN, activations(1, 4)), EVEN) == pytest.approx(12 * 3.0 + 3.0)


@st.composite
def searched(draw: st.DrawFn) -> tuple[int, int, StageTimes, StageMemory]:
    """A search's question; room for at least p micro-batches."""
    seconds = st.floats(0.5, 3.0)
    times = StageTimes(draw(seconds), draw(seconds), draw(seconds), draw(st.floats(0.0, 0.5)))
    pp = draw(st.integers(1, 5))
    return pp, draw(st.integers(1, 12)), times, activations(draw(st.floats(1.0, 2.5)), pp)


@given(searched())
def test_every_schedule_is_whole_and_runs(asked: tuple[int, int, StageTimes, StageMemory]) -> None:
    pp, micro_batches, times, memory = asked
    plans = [hand_made_orders(kind, pp, micro_batches) for kind in HandMade]
    plans.append(searched_orders(*asked))
    for orders in plans:
        for rank, order in enumerate(orders):
            assert sorted(map(str, order)) == sorted(
                f"{rank}{kind}{item}"
                for kind in (Pass.FORWARD, Pass.INPUT, Pass.WEIGHT)
                for item in range(micro_batches)
            )
        assert span(orders, times) >= micro_batches * times.compute * (1 - 1e-9)
    assert max(max(kept(order)) for order in plans[-1]) <= memory.limit


def test_impossible_questions_are_refused() -> None:
    with pytest.raises(SpecError, match="pp: must be at least 1, got 0"):
        hand_made_orders(HandMade.ZB_H1, 0, 4)
    with pytest.raises(SpecError, match=r"limit: 0\.5 holds no micro-batch of 1"):
        searched_orders(2, 4, EVEN, StageMemory(0.5, 0.0, 1.0))


def row(**cells: str) -> PublishedRow:
    """A bubble-rate row of two ranks and four micro-batches, F = B = W = 1."""
    given = {"pp": "2", "grad_accum": "4", "extra": "schedule=ZB-H1", "notes": "TF,TB,TW,Tcomm=(1, 1, 1, 0)"}
    return PublishedRow(TableKind.ANALYTIC, "made-up", MappingProxyType({**given, **cells}))


def test_a_rate_is_the_bubbles_share_of_what_a_step_costs() -> None:
    assert bubble_rate(row()).value == pytest.approx(1 / (4 * 3 + 1))
    assert bubble_rate(row(extra="schedule=1F1B")).value == pytest.approx(3 / (4 * 3 + 3))
    assert bubble_rate(row(extra="schedule=1F1B-I", vp="2")).value == pytest.approx(1.5 / (4 * 3 + 1.5))


def test_rows_that_say_too_little_have_no_rate() -> None:
    with pytest.raises(CannotModel, match="schedule 'chimera'"):
        bubble_rate(row(extra="schedule=chimera"))
    with pytest.raises(UnreadableCell, match="no stage times"):
        bubble_rate(row(notes=""))
