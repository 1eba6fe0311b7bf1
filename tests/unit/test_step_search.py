"""A search's step times are those of each case's own plan, run by the engine; nothing is kept too long."""

from __future__ import annotations

from itertools import product

import pytest

from parallelism.schedules.orders import Action, Pass
from parallelism.simulator import sensitivity
from parallelism.simulator.engine import Deadlock, run
from parallelism.simulator.on_cluster import cluster_simulator
from parallelism.simulator.program import program_of
from parallelism.simulator.search import StepSearch
from parallelism.simulator.sensitivity import sensitivities
from parallelism.simulator.turns import turns_of
from reports.step_speed import StepSpeed, lines
from suite.case import Case
from suite.layout import ContextMethod, Layout, Recompute, Reduction, Schedule
from suite.models.decoder import DecoderSpec
from suite.parse import SpecError
from suite.spec import Cluster, Precision, Workload

pytestmark = pytest.mark.unit

SHAPE = {"layers": 6, "hidden": 64, "heads": 4, "kv_heads": 4, "ffn": 160, "vocab": 256, "max_positions": 64}
MODELS = (DecoderSpec(**SHAPE, tied=False), DecoderSpec(**SHAPE, tied=True))  # type: ignore[arg-type]
SIMULATOR = cluster_simulator()
#: settings that differ in what one piece of a plan depends on and another does not
SETTINGS: tuple[dict[str, object], ...] = (
    {},
    {"dp": 2},
    {"dp": 4, "bucket_mib": 1, "reduction": Reduction.MICRO_BATCH},
    {"fsdp": 4},
    {"fsdp": 4, "reshard_after_forward": False},
    {"fsdp": 4, "reshard_after_forward": 2, "forward_prefetch": 2},
    {"dp": 2, "fsdp": 2, "recompute": Recompute.parse("every-2")},
    {"tp": 2, "recompute": Recompute.parse("full")},
    {"dp": 2, "tp": 2},
    {"fsdp": 2, "tp": 2, "sequence_parallel": False, "recompute": Recompute.parse("selective")},
    {"fsdp": 2, "cp": 2, "context": ContextMethod.ULYSSES},
    {"cp": 2, "load_balance": False},
)
PIPELINES: tuple[dict[str, object], ...] = (
    {},
    {"pp": 2},
    {"pp": 2, "schedule": Schedule.INTERLEAVED, "virtual_stages": 2},
    {"pp": 2, "schedule": Schedule.ZBV, "virtual_stages": 2},
)
ENGINES = tuple(Layout(dp=2, zero=stage) for stage in (1, 2, 3))


def cases() -> list[Case]:
    """Every combination that the rules take, of few micro-batches."""
    found = []
    for (settings, pipeline), model, count in product(product(SETTINGS, PIPELINES), MODELS, (2, 4)):
        work = Workload(seq_len=64, micro_batches=count, precision=Precision.BF16_MIXED)
        try:
            layout = Layout(**settings, **pipeline)  # type: ignore[arg-type]
            found.append(Case(model, layout, work, Cluster("h100-sxm", per_node=layout.world_size)))
        except SpecError:
            continue
    two = Cluster("h100-sxm", per_node=2)
    return [*found, *(Case(MODELS[0], layout, Workload(seq_len=64), two) for layout in ENGINES)]


def alone(case: Case) -> float:
    """The case's own plan, by the engine, with no queue slowing another down."""
    return run(program_of(SIMULATOR.plan_of(case, None)).graph).total


def test_one_search_gives_every_case_what_it_takes_alone() -> None:
    asked = cases()
    assert len(asked) > 80
    found = StepSearch().seconds(asked)
    assert found == pytest.approx([alone(case) for case in asked], rel=1e-12)


def test_equal_stages_of_equal_cases_are_planned_once() -> None:
    search, case = StepSearch(), cases()[-3]
    first, again = search.candidate(case).plan, search.candidate(case).plan
    assert first.orders is again.orders
    assert all(one is other for one, other in zip(first.stages, again.stages, strict=True))


def test_a_named_plan_is_the_search_s_with_the_names_of_blocks() -> None:
    case = next(case for case in cases() if case.layout.pp == 2 and case.layout.fsdp == 4)
    own, shared = SIMULATOR.plan_of(case, None), StepSearch().candidate(case).plan
    names = [unit.name for stage in own.stages for unit in stage.units if unit.name.startswith("blocks.")]
    assert names == [f"blocks.{index}" for index in range(6)]
    costs = [[(unit.forward, unit.inputs, unit.gather) for stage in plan.stages for unit in stage.units]
             for plan in (own, shared.stages and shared)]  # fmt: skip
    assert costs[0] == costs[1]
    assert own.finish == shared.finish


def test_what_more_buys_a_long_step_is_what_simulating_it_again_says(monkeypatch: pytest.MonkeyPatch) -> None:
    case = next(case for case in cases() if case.layout.pp == 2 and case.layout.tp == 2 and case.layout.dp == 1)
    before = SIMULATOR(case)
    whole = {each.resource: each.gain for each in sensitivities(before, SIMULATOR)}
    monkeypatch.setattr(sensitivity, "RUN_WHOLE", 0)
    quick = {each.resource: each.gain for each in sensitivities(before, SIMULATOR)}
    assert quick == pytest.approx(whole, abs=1e-9)  # nothing is gathered or reduced beside this step's compute
    assert max(whole.values()) > 0.01


def test_actions_that_wait_for_each_other_are_refused() -> None:
    forward = [Action(stage, Pass.FORWARD, 0) for stage in range(2)]
    backward = [Action(stage, Pass.BACKWARD, 0) for stage in range(2)]
    good = ((forward[0], backward[0]), (forward[1], backward[1]))
    assert [turn.action for turn in turns_of(good)] == [forward[0], forward[1], backward[1], backward[0]]
    with pytest.raises(Deadlock, match="4 actions"):
        turns_of(((backward[0], forward[0]), (forward[1], backward[1])))


def test_the_speed_of_step_times_is_said_in_milliseconds() -> None:
    said = lines(StepSpeed({"dp": 0.004}, {"dp": 0.012}, 10_000, 0.0005))
    assert said == [
        "step time alone, ms: dp 4.00",
        "step simulated with its timeline, ms: dp 12",
        "step time in a search of 10,000 layouts, ms a layout: 0.500",
    ]
