"""The search of `plan` finds what an exhaustive enumeration does, and its bounds are never above the estimate."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest

from memory.search import Search as MemorySearch
from reports.plan.asked import Asked
from reports.plan.bounds import Bounds
from reports.plan.solve import Plan, Solver, _may_miss
from reports.plan.space import Grain, Pipe, Space, Spread
from reports.plan.timing import Timing, timing_of
from reports.plan.work import engine_of
from suite.case import Case
from suite.layout import Recompute
from suite.models import PRESETS
from suite.models.base import ModelSpec
from suite.models.decoder import DecoderSpec
from suite.models.experts import Experts
from suite.spec import Cluster, LossKernel, OptimizerKind, Precision, Workload


def asked(
    gpus: int, batch: int, layers: int = 4, hidden: int = 512, sequence: int = 1024, best: int = 10,
    fixed: dict[str, Any] | None = None, experts: Experts | None = None, **work: Any,
) -> Asked:  # fmt: skip
    """Of a small decoder on nodes of four H100s."""
    model = DecoderSpec(
        vocab=4096, hidden=hidden, ffn=4 * hidden, layers=layers, heads=4,
        max_positions=sequence, experts=experts,
    )  # fmt: skip
    per_node = min(gpus, 4)
    base = Case(model, workload=Workload(seq_len=sequence, **work), cluster=Cluster("h100-sxm"))
    return Asked(base, gpus // per_node, per_node, batch, fixed=fixed or {}, best=best)


class Place(NamedTuple):
    grain: Grain
    pipe: Pipe
    spread: Spread
    case: Case


def legal(space: Space) -> Iterator[Place]:
    """Every layout of a space."""
    for grain, pp in space.grains():
        if space.refuses_grain(grain):
            continue
        for pipe in space.pipes(grain, pp).legal:
            for spread in space.spreads(grain, pipe).legal:
                yield Place(grain, pipe, spread, space.case(grain, pipe, spread))


SPACES = {
    "two": asked(2, 2, hidden=256, sequence=512, fixed={"cp": 1}),
    "eight": asked(8, 4, layers=4, hidden=512, fixed={"tp": 2, "cp": 1, "micro_batch": 1}),
}


class Known(NamedTuple):
    """A question, what times its layouts, and all of them, timed and sized, the fastest first."""

    asked: Asked
    timing: Timing
    rows: list[tuple[float, int, Case]]


@pytest.fixture(scope="module", params=SPACES)
def known(request: pytest.FixtureRequest) -> Known:
    question = SPACES[request.param]
    timing, memory = timing_of(question.base, None), MemorySearch()
    rows = [
        (timing.whole(place.case).step_seconds, memory.peak_bytes(place.case), place.case)
        for place in legal(Space(question))
    ]
    return Known(question, timing, sorted(rows, key=lambda row: row[:2]))


def test_search_finds_the_best_of_all(known: Known) -> None:
    peaks = sorted(peak for _, peak, _ in known.rows)
    limit = peaks[len(peaks) // 3]
    best = [row for row in known.rows if row[1] <= limit][:10]

    whole = {row[2]: row[0] for row in known.rows}
    search = Solver(known.timing).search(known.asked, limit)
    found: list[tuple[float, int, Case]] = []
    while len(found) < 10 or search.floor_seconds < sorted(found, key=lambda row: row[:2])[9][0]:
        one = search.next()
        if one is None:
            break
        found.append((whole[one.case], one.peak_bytes, one.case))
    found.sort(key=lambda row: row[:2])

    assert [row[0] for row in found[:10]] == [row[0] for row in best]
    slowest = best[-1][0]  # of which there may be more than ten
    assert {row[2] for row in found[:10] if row[0] < slowest} == {row[2] for row in best if row[0] < slowest}


def test_every_layout_is_accounted_for(known: Known) -> None:
    peaks = sorted(peak for _, peak, _ in known.rows)
    limit = peaks[len(peaks) // 2]
    search = Solver(known.timing).search(known.asked, limit)
    for _ in range(12):
        search.next()
    tally = search.tally
    assert tally.too_large + tally.timed + tally.untimed.total() + tally.left == len(known.rows)
    while search.next() is not None:
        pass
    assert tally.left == 0
    assert tally.timed == sum(peak <= limit for peak in peaks)
    assert tally.too_large == sum(peak > limit for peak in peaks)


class Simulated(NamedTuple):
    """What a plan asks of a simulation."""

    case: Case
    step_seconds: float


def test_a_plan_is_the_best_of_all_whole_simulations(known: Known) -> None:
    """Of which a search only knows about what they will come to."""
    draw = random.Random(7)
    rows = [(seconds * (1 + draw.uniform(0, 0.004)), case) for seconds, _, case in known.rows]
    whole = {case: seconds for seconds, case in rows}
    timing = replace(known.timing, whole=lambda case: Simulated(case, whole[case]))  # type: ignore[arg-type, return-value]
    answers = Solver(timing).plan(known.asked).answers
    assert [answer.seconds for answer in answers] == sorted(whole.values())[:10]


@pytest.mark.parametrize(
    ("known_seconds", "next_seconds", "number", "goes_on"),
    [
        ([], 1.0, 0, True),
        ([1.0, 2.0], 2.011, 2, True),  # 2 s and 0.6 %: 2.012
        ([1.0, 2.0], 2.013, 2, False),
        ([1.0, 2.0, 3.0], 2.5, 3, False),  # the second is what has to be beaten, not the last
        ([1.0, 2.0], 1.5, 99, True),
        ([1.0, 2.0], 1.5, 100, False),  # a hundred are enough
        ([1.0], 9.0, 500, True),  # but never too few
    ],
)
def test_a_plan_goes_on_until_none_of_the_best_is_likely_to_be_missing(
    known_seconds: list[float], next_seconds: float, number: int, goes_on: bool
) -> None:
    """Two are wanted."""
    simulated: Any = [SimpleNamespace(seconds=seconds) for seconds in known_seconds]
    search: Any = SimpleNamespace(next_seconds=next_seconds)
    assert _may_miss(search, simulated, 2, number) is goes_on


#: precision, optimizer, loss: what a rank holds and keeps of them differs most
WORKS = [
    ("bf16-mixed", "adamw", "plain"), ("bf16", "sgd", "chunked"), ("fp32", "adafactor", "plain"),
    ("fp8", "adamw", "chunked"), ("bf16-mixed", "muon", "chunked"), ("bf16-mixed", "adam-8bit", "plain"),
]  # fmt: skip


def some(space: Space, seed: str) -> list[Place]:
    """Of each schedule two layouts, one that reruns and one that does not, drawn at random; and a few more."""
    places = list(legal(space))
    random.Random(seed).shuffle(places)
    first = {(place.pipe.schedule, place.grain.recompute == Recompute()): place for place in places}
    return [*first.values(), *places[:4]]


@pytest.mark.parametrize("work", WORKS, ids=str)
def test_bounds_are_below_the_estimate(work: tuple[str, str, str]) -> None:
    precision, optimizer, loss = work
    question = asked(
        8, 16, layers=8, precision=Precision(precision), optimizer=OptimizerKind(optimizer), loss=LossKernel(loss),
    )  # fmt: skip
    hold_bounds(question, some(Space(question), str(work)))


def test_bounds_are_below_the_estimate_of_divided_experts() -> None:
    question = asked(8, 16, fixed={"cp": 1}, experts=Experts(count=4, top_k=2, ffn=768))
    places = [place for place in legal(Space(question)) if place.grain.ep > 1]
    assert {place.grain.ep for place in places} == {2, 4}
    random.Random(0).shuffle(places)
    hold_bounds(question, places[:12])


def hold_bounds(question: Asked, places: list[Place]) -> None:
    """Every bound of these layouts to what they take."""
    space, timing, memory = Space(question), timing_of(question.base, None), MemorySearch()
    bounds = Bounds(space, timing.prices)
    assert bounds.prices is not None
    for grain, pipe, spread, case in places:
        engine = engine_of(spread)
        peak, seconds = memory.peak_bytes(case), timing.whole(case).step_seconds * (1 + 1e-9)
        flying, piped = bounds.flying(grain, pipe, engine), bounds.piped(grain, pipe, engine)
        assert bounds.least_state(grain, pipe.pp, engine) <= peak, case.label
        assert bounds.least_bytes(grain, pipe.pp, engine) <= peak, case.label
        assert bounds.nbytes(grain, spread, flying, pipe.micro_batches) <= peak, case.label
        assert bounds.busy_seconds(grain, pipe.pp, pipe.micro_batches, engine) <= seconds, case.label
        longest = Bounds(space, timing.prices).longest(grain, pipe, engine)  # 0 where it is not looked for
        assert longest <= seconds, case.label
        assert not longest or piped.seconds <= longest * (1 + 1e-9), case.label
        assert bounds.longest(grain, pipe, engine) <= longest * (1 + 1e-9), case.label
        assert piped.seconds <= bounds.seconds(grain, pipe, spread, piped).seconds * (1 + 1e-9), case.label
        assert bounds.seconds(grain, pipe, spread, piped).seconds <= seconds, case.label
        assert timing.seconds([case])[0] <= seconds, case.label


def test_a_split_backward_does_not_keep_earlier_stages_waiting() -> None:
    """Where weights have a pass of their own, a rank's last pass need not wait for a gradient, and earlier stages not
    for it: only their forward passes are certain. Wide blocks, for in narrow ones the host takes longer than both."""
    question = asked(
        2, 4, layers=4, hidden=8192, sequence=4096,
        fixed={"pp": 2, "schedule": "interleaved-zero-bubble", "micro_batch": 2},
    )  # fmt: skip
    space, timing = Space(question), timing_of(question.base, None)
    bounds = Bounds(space, timing.prices)
    found = [
        (bounds.piped(grain, pipe, engine_of(spread)).seconds, timing.whole(case).step_seconds)
        for grain, pipe, spread, case in legal(space)
        if grain.recompute == Recompute()
    ]
    assert found
    assert all(0 < bound <= seconds for bound, seconds in found)


def _planned(model: ModelSpec, gpus: int, batch: int, fixed: dict[str, Any], **work: Any) -> Plan:
    base = Case(model, workload=Workload(seq_len=64, **work), cluster=Cluster("h100-sxm"))
    question = Asked(base, 1, gpus, batch, fixed=fixed, best=1)
    return Solver(timing_of(base, None)).plan(question)


@pytest.mark.parametrize(
    ("name", "gpus", "batch", "fixed", "why"),
    [
        ("deepseek-v3-1m", 2, 2, {"tp": 1, "pp": 1}, "the engine rounds buffers to bf16"),
        ("mixtral-1m", 2, 2, {"sequence_parallel": False, "pp": 1}, "only sequence_parallel sums the gradients"),
        ("lstm-1m", 2, 2, {"fsdp": 2}, "there is no attention core to run again"),
        ("batchnorm-1m", 1, 2, {}, "a rerun would move the running statistics a second time"),
    ],
)
def test_a_rule_that_some_layouts_break_leaves_those_out_and_says_so(
    name: str, gpus: int, batch: int, fixed: dict[str, Any], why: str
) -> None:
    plan = _planned(PRESETS[name], gpus, batch, fixed)
    assert len(plan.answers) == 1
    assert any(why in reason and count > 0 for reason, count in plan.tally.refused.items())
