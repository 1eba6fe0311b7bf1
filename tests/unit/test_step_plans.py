"""Steps of hand-made plans against closed forms: bubbles of schedules, what prefetching and buckets hide."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parallelism.schedules.orders import order_of
from parallelism.simulator.engine import run
from parallelism.simulator.parts import critical_place, parts_of
from parallelism.simulator.plan import Cost, Issue, Part, StagePlan, StepPlan, Unit
from parallelism.simulator.program import program_of
from suite.layout import Layout, Schedule

pytestmark = pytest.mark.unit

F, B = 1.0, 2.0  # seconds of a whole stage's passes; weights take half of the backward pass


def seconds_of(plan: StepPlan) -> float:
    """Of the step."""
    program = program_of(plan)
    return run(program.graph, program.sharing).total


def breakdown(plan: StepPlan) -> dict[Part, float]:
    """Parts of the rank that computes most."""
    program = program_of(plan)
    times = run(program.graph, program.sharing)
    parts = parts_of(program, times, critical_place(program, times))
    assert sum(parts.values()) == pytest.approx(times.total)
    return {part: seconds for part, seconds in parts.items() if seconds}


def unit(forward: float = F, backward: float = B, **more: float) -> Unit:
    """A unit whose two halves of backward are equally long."""
    return Unit("block", Cost(forward), Cost(backward / 2), Cost(backward / 2), **more)  # type: ignore[arg-type]


def pipeline(schedule: Schedule, pp: int, micro_batches: int, send: float = 0.0) -> StepPlan:
    """Equal stages; a rank's together take F and B whatever their number."""
    v = 1 if schedule in (Schedule.GPIPE, Schedule.ONE_F_ONE_B) else 2
    layout = Layout(pp=pp, schedule=schedule, virtual_stages=v)
    stage = StagePlan((unit(F / v, B / v),), send)
    orders = tuple(order_of(layout, micro_batches, place) for place in range(pp))
    return StepPlan(orders, (stage,) * (pp * v), (Cost(),) * pp)


def one_rank(units: tuple[Unit, ...], micro_batches: int = 1, **settings: object) -> StepPlan:
    """No pipeline."""
    order = order_of(Layout(schedule=Schedule.ONE_F_ONE_B), micro_batches, 0)
    return StepPlan((order,), (StagePlan(units),), (Cost(),), **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("schedule", [Schedule.GPIPE, Schedule.ONE_F_ONE_B])
@pytest.mark.parametrize(("pp", "micro_batches"), [(1, 3), (2, 2), (4, 8), (8, 8), (4, 32)])
def test_gpipe_and_1f1b_wait_p_minus_1_of_m(schedule: Schedule, pp: int, micro_batches: int) -> None:
    """Bubble over ideal time (p - 1) / m: arXiv:2104.04473, section 2.2.1."""
    ideal = micro_batches * (F + B)
    assert seconds_of(pipeline(schedule, pp, micro_batches)) == pytest.approx(ideal * (1 + (pp - 1) / micro_batches))


@pytest.mark.parametrize(("pp", "micro_batches"), [(2, 2), (4, 8), (8, 16)])
def test_interleaving_divides_the_bubble_by_the_stages_of_a_rank(pp: int, micro_batches: int) -> None:
    """(p - 1) / (v m): arXiv:2104.04473, section 2.2.2."""
    ideal = micro_batches * (F + B)
    found = seconds_of(pipeline(Schedule.INTERLEAVED, pp, micro_batches))
    assert found == pytest.approx(ideal * (1 + (pp - 1) / (2 * micro_batches)))


@pytest.mark.parametrize("schedule", [Schedule.ZBV, Schedule.DUAL_PIPE_V, Schedule.INTERLEAVED_ZERO_BUBBLE])
def test_splitting_backward_leaves_the_warm_up_alone(schedule: Schedule) -> None:
    """With F = I = W the V schedules wait (p - 1) forward passes of one of a rank's two stages, no gradient: 3 x 0.5 s
    here (arXiv:2405.15362, section 3)."""
    found = seconds_of(pipeline(schedule, 4, 8))
    assert found == pytest.approx(8 * (F + B) + 3 * F / 2)


def test_a_send_delays_every_hop_of_the_first_and_the_last_micro_batch() -> None:
    # GPipe: down the pipeline once forward, once backward; everything else is hidden behind compute
    assert seconds_of(pipeline(Schedule.GPIPE, 4, 8, send=0.1)) == pytest.approx((8 + 3) * 3.0 + 2 * 3 * 0.1)


def test_the_slowest_stage_sets_the_pace() -> None:
    slow = StagePlan((unit(2 * F, 2 * B),))
    plan = pipeline(Schedule.ONE_F_ONE_B, 2, 8)
    # stage 0 runs 8 x 6 s; the last stage's 3 s come once between its first forward and backward pass
    assert seconds_of(replace(plan, stages=(slow, plan.stages[1]))) == pytest.approx(8 * 6.0 + 3.0 - 2.0)


def test_sharded_gathers_hide_behind_the_block_before() -> None:
    # forward: the first gather is exposed, the others run beside compute; backward gathers in reverse, and its
    # first gather starts once the block before the last forward one is done: it is hidden
    units = (unit(gather=0.4),) * 4
    parts = breakdown(one_rank(units))
    assert parts == {Part.COMPUTE: pytest.approx(12.0), Part.GATHER: pytest.approx(0.4)}


def test_sharding_bound_by_its_gathers_takes_as_long_as_they_do() -> None:
    # 8 gathers of 5 s one after another, then the last block's backward pass
    units = (unit(gather=5.0),) * 4
    assert seconds_of(one_rank(units, gathers_ahead=(8, 8))) == pytest.approx(8 * 5.0 + B)


def test_blocking_gathers_are_all_exposed() -> None:
    units = (unit(gather=0.5, reduce=0.25),) * 4
    plan = one_rank(units, 2, gathers=Issue.BLOCKING, reductions=Issue.BLOCKING, gathers_ahead=(0, 0))
    # two micro-batches, each gathered twice; reduced once
    assert breakdown(plan) == {
        Part.COMPUTE: pytest.approx(24.0),
        Part.GATHER: pytest.approx(2 * 8 * 0.5),
        Part.REDUCTION: pytest.approx(4 * 0.25),
    }


def test_of_gradients_only_the_last_bucket_is_exposed() -> None:
    units = (unit(reduce=1.5),) * 4
    # each reduction fits beside the 2 s backward pass of the next block
    assert breakdown(one_rank(units, 3)) == {Part.COMPUTE: pytest.approx(36.0), Part.REDUCTION: pytest.approx(1.5)}


def test_reductions_of_every_micro_batch_hide_behind_the_next() -> None:
    units = (unit(reduce=1.5),) * 4
    assert seconds_of(one_rank(units, 3, reduces_each=True)) == pytest.approx(36.0 + 1.5)


def test_a_host_that_is_slower_than_its_device_sets_the_pace() -> None:
    slow = Unit("block", Cost(1.0, 1.5), Cost(1.0, 1.5), Cost(1.0, 1.5))
    # 4 units x 3 pieces of 1.5 s, and the device's last piece, which starts when its host's does: it is done before
    parts = breakdown(one_rank((slow,) * 4))
    assert sum(parts.values()) == pytest.approx(8 * 1.5 + 4 * 1.5)
    assert parts[Part.COMPUTE] == pytest.approx(12.0)
    assert parts[Part.HOST] + parts.get(Part.BUBBLE, 0.0) == pytest.approx(6.0)


def test_recomputation_is_a_part_of_its_own() -> None:
    units = (replace(unit(), rerun=Cost(F)),) * 4
    assert breakdown(one_rank(units)) == {Part.COMPUTE: pytest.approx(12.0), Part.RECOMPUTE: pytest.approx(4.0)}


def test_ranks_that_share_cores_take_turns() -> None:
    plan = replace(pipeline(Schedule.ONE_F_ONE_B, 4, 8), cores=(2.0, 1.0))
    # 4 ranks x 24 s of work on 2 cores; the ends, where fewer than two work, add to it
    work = 4 * 24 / 2
    assert work < seconds_of(plan) < work + 3 * (F + B)


@given(st.integers(1, 4), st.integers(1, 6), st.floats(0.0, 2.0), st.floats(0.0, 2.0), st.floats(1.0, 2.0))
def test_slower_links_and_devices_never_make_a_step_faster(
    blocks: int, micro_batches: int, gather: float, reduce: float, factor: float
) -> None:
    def step(links: float, device: float, slowdown: float = 1.2) -> float:
        units = (unit(F * device, B * device, gather=gather * links, reduce=reduce * links),) * blocks
        return seconds_of(one_rank(units, micro_batches, slowdown=slowdown))

    base = step(1.0, 1.0)
    assert step(factor, 1.0) >= base * (1 - 1e-9)
    assert step(1.0, factor) >= base * (1 - 1e-9)
    assert step(1.0, 1.0, 1.2 * factor) >= base * (1 - 1e-9)
