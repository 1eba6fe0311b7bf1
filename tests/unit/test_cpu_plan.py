"""A step on the CPU as a plan, from a calibration in which every operator takes a microsecond."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest

from memory.estimate import MemoryModel
from parallelism.data.ddp import DDP
from parallelism.schedules.orders import Pass
from parallelism.simulator.cpu_costs import items_of
from parallelism.simulator.cpu_plan import cpu_plan, interpolated
from parallelism.simulator.engine import run
from parallelism.simulator.parts import parts_of
from parallelism.simulator.plan import Part, StepPlan
from parallelism.simulator.program import Label, Stream, program_of
from suite.case import Case, case_from
from suite.collectives import Collective
from suite.hardware.calibration import Calibration, Machine
from suite.hardware.collective_times import CollectiveTime, Form
from suite.hardware.operator_times import Crowd, Frame, OperatorTime, Timed
from suite.hardware.overheads import Overhead
from suite.parse import SpecError

US = 1e-6
AT_THE_END = (Timed.CLIP, Timed.ADAMW, Timed.ACCUMULATE)
#: calls of llama-1m's block (tests/unit/test_operator_times.py), weights of a block, blocks
BLOCK_CALLS, BLOCK_WEIGHTS, BLOCKS = 20, 9, 4


def a_case(layout: dict[str, Any] | None = None, micro_batches: int = 2) -> Case:
    work = {"seq_len": 64, "micro_batch": 2, "micro_batches": micro_batches, "precision": "fp32"}
    return case_from({"model": "llama-1m", "layout": layout or {}, "workload": work})


def calibration_of(case: Case, at_the_end: float = US, **overheads: float) -> Calibration:
    """A microsecond for each pass of every operator, nothing for overheads that are not given, 2 cores."""
    crowd = Crowd.of(case.cluster.per_node, 2)
    times = []
    for use, kind in items_of(case, MemoryModel(case).ledger_of_share(0)):
        passes = (at_the_end, 0.0, 0.0) if use.operator in AT_THE_END else (US, US, US)
        times.append(OperatorTime(use.operator, use.shape, kind, crowd.ranks, crowd.threads, *passes, 0.0, 9))
    collectives = tuple(
        CollectiveTime(kind, Form.DIRECT, 2, 1, payload, payload * 1e-12, 0.0, 9, 0.0)
        for kind in (Collective.ALL_REDUCE, Collective.SEND)
        for payload in (4, 2**20)
    )
    named = {str(name): 0.0 for name in (*Frame, *Overhead)} | overheads
    return Calibration(Machine("a CPU", 2, "2.13", "passive"), tuple(times), (), (), collectives, named)


def plan_of(case: Case, calibration: Calibration | None = None) -> StepPlan:
    return cpu_plan(case, MemoryModel(case).ledger_of_share(0), calibration or calibration_of(case))


def seconds_of(plan: StepPlan) -> float:
    program = program_of(plan)
    return run(program.graph, program.sharing).total


@pytest.mark.unit
def test_a_step_is_its_operators_one_after_the_other() -> None:
    # 2 micro-batches of 3 passes of 4 blocks, the embedding, the norm, the head and the loss; half of the micro-batches
    # add their gradients; two kernels a weight at the end
    calls, weights = BLOCKS * BLOCK_CALLS + 4, BLOCKS * BLOCK_WEIGHTS + 3
    expected = (2 * 3 * calls + 2 * weights / 2 + 2 * weights) * US
    assert seconds_of(plan_of(a_case())) == pytest.approx(expected)


@pytest.mark.unit
def test_full_recomputation_runs_every_block_forward_once_more() -> None:
    more = seconds_of(plan_of(a_case({"recompute": "full"}))) - seconds_of(plan_of(a_case()))
    assert more == pytest.approx(2 * BLOCKS * BLOCK_CALLS * US)


@pytest.mark.unit
def test_frames_count_once_a_step_a_micro_batch_and_a_module() -> None:
    case = a_case()
    frames = {Frame.STEP: 1000 * US, Frame.MICRO_BATCH: 100 * US, Frame.MODULE: 10 * US}
    calibration = calibration_of(case, **{str(name): value for name, value in frames.items()})
    more = seconds_of(plan_of(case, calibration)) - seconds_of(plan_of(case))
    assert more == pytest.approx((1000 + 2 * (100 + (BLOCKS * 6 + 3) * 10)) * US)


@pytest.mark.unit
@pytest.mark.parametrize("bucket_mib", [0, 1])
def test_ddp_reduces_all_buckets_once(bucket_mib: int) -> None:
    case = a_case({"dp": 2, "bucket_mib": bucket_mib})
    plan = plan_of(case)
    rows = DDP.messages(case, MemoryModel(case).ledger_of_share(0), 0)
    sent = sum(row.payload * row.count for row in rows)
    assert sum(unit.reduce for unit in plan.stages[0].units) == pytest.approx(sent * 1e-12)
    assert plan.stages[0].units[0].reduce > 0  # what is left over goes with the last gradient
    assert plan.ranks_a_place == 2


@pytest.mark.unit
def test_a_pipeline_waits_as_its_bubble_says() -> None:
    # The first stage has 41 calls a pass, the last, with norm, head and loss, 43. One forward turn of the first, all of
    # the last's forward and backward turns, one backward turn of the first: what the first does not compute is bubble.
    case = a_case({"pp": 2, "schedule": "gpipe"}, micro_batches=4)
    program = program_of(plan_of(case, calibration_of(case, at_the_end=0.0)))
    times = run(program.graph, program.sharing)
    parts = parts_of(program, times, 0)
    total = 41 + 4 * 43 + 4 * 2 * 43 + 2 * 41
    assert times.total == pytest.approx(total * US, rel=1e-3)  # but for what is sent
    assert parts[Part.BUBBLE] == pytest.approx((total - 4 * 3 * 41) * US, rel=1e-2)
    assert sum(parts.values()) == pytest.approx(times.total)


@pytest.mark.unit
def test_more_ranks_than_cores_take_turns() -> None:
    case = a_case({"dp": 4})
    calibration = calibration_of(case)
    # 4 ranks of 2 cores: all that is computed takes twice as long
    four = CollectiveTime(Collective.ALL_REDUCE, Form.DIRECT, 4, 1, 4, 0.0, 0.0, 9, 0.0)
    slow = seconds_of(plan_of(case, replace_collectives(calibration, four)))
    assert slow == pytest.approx(2 * seconds_of(plan_of(a_case())), rel=1e-3)


def replace_collectives(calibration: Calibration, *times: CollectiveTime) -> Calibration:
    data = calibration.to_mapping() | {"collectives": []}
    found = Calibration.from_mapping(data)
    return Calibration(found.machine, found.operators, (), (), times, found.overheads)


@pytest.mark.unit
def test_what_is_not_timed_and_what_was_not_measured_are_refused() -> None:
    dropping = {"family": "decoder", "dropout": 0.1}
    for given, words in (
        ({"model": "llama-1m", "workload": {"optimizer": "muon"}}, "workload.optimizer: muon by fused kernels"),
        ({"model": dropping}, "model.dropout: 0.1: drawing masks is not timed on the CPU"),
    ):
        case = case_from(given)
        with pytest.raises(SpecError, match=re.escape(words)):
            cpu_plan(case, MemoryModel(case).ledger_of_share(0), calibration_of(a_case()))
    other = a_case({"dp": 2})
    with pytest.raises(SpecError, match="was not measured"):
        cpu_plan(other, MemoryModel(other).ledger_of_share(0), calibration_of(a_case()))


@pytest.mark.unit
def test_operators_of_other_shapes_are_named() -> None:
    case = a_case()
    longer = replace(case, workload=replace(case.workload, seq_len=128))
    ledger = MemoryModel(longer).ledger_of_share(0)
    assert interpolated(longer, ledger, calibration_of(longer)) == ()
    assert any(text.startswith("linear") for text in interpolated(longer, ledger, calibration_of(case)))


def costs_of(case: Case, **overheads: float) -> dict[tuple[int, Pass], float]:
    """Seconds that overheads add to each stage's passes."""
    plans = [plan_of(case, calibration_of(case, **given)) for given in ({}, overheads)]
    found = []
    for plan in plans:
        labels = [
            (label.action, seconds)
            for label, seconds in zip(program_of(plan).graph.label, program_of(plan).graph.seconds, strict=True)
            if isinstance(label, Label) and label.action and label.stream is Stream.COMPUTE
        ]
        sums: dict[tuple[int, Pass], float] = {}
        for action, seconds in labels:
            if action.micro_batch == 0:
                sums[action.stage, action.kind] = sums.get((action.stage, action.kind), 0.0) + seconds
        found.append(sums)
    return {key: found[1][key] - found[0][key] for key in found[0]}


@pytest.mark.unit
def test_a_pipelines_passes_carry_the_schedule_and_the_messages_of_their_neighbours() -> None:
    case = a_case({"pp": 2, "schedule": "zbv", "virtual_stages": 2}, micro_batches=4)
    # a V: rank 0 has stages 0 and 3, rank 1 stages 1 and 2; 1 and 2 hand over within their rank
    each = {str(Overhead.PIPELINE_PASS): 100 * US, str(Overhead.PIPELINE_MESSAGE): 10 * US}
    added = costs_of(case, **each)
    assert {stage: added[stage, Pass.FORWARD] for stage in range(4)} == pytest.approx(dict.fromkeys(range(4), 110 * US))
    assert added[1, Pass.INPUT] == pytest.approx(110 * US)
    assert added[1, Pass.WEIGHT] == pytest.approx(100 * US)  # says nothing
    loop = a_case({"pp": 2, "schedule": "interleaved-1f1b", "virtual_stages": 2}, micro_batches=4)
    assert costs_of(loop, **each)[1, Pass.FORWARD] == pytest.approx(120 * US)  # the other rank is on both sides


@pytest.mark.unit
def test_torch_splits_no_backward_pass_of_the_first_stage() -> None:
    case = a_case({"pp": 2, "schedule": "zbv", "virtual_stages": 2}, micro_batches=4)
    split = {str(Overhead.INPUTS_PARAMETER): US, str(Overhead.WEIGHTS_PARAMETER): 2 * US, str(Overhead.INPUTS): 50 * US}
    added = costs_of(case, **split)
    assert added[0, Pass.INPUT] == added[0, Pass.WEIGHT] == pytest.approx(0.0)
    assert added[1, Pass.INPUT] == pytest.approx((50 + BLOCK_WEIGHTS) * US)  # a block a stage
    assert added[1, Pass.WEIGHT] == pytest.approx(2 * BLOCK_WEIGHTS * US)
    first = plan_of(case).stages[0].units
    assert sum(unit.inputs.seconds for unit in first) == 0


@pytest.mark.unit
def test_a_bias_is_of_its_weights_group() -> None:
    case = a_case({"pp": 2, "schedule": "zbv", "virtual_stages": 2}, micro_batches=4)
    biased = replace(case, model=replace(case.model, bias=True))
    each = {str(Overhead.WEIGHTS_PARAMETER): US}
    assert costs_of(biased, **each)[1, Pass.WEIGHT] == pytest.approx(BLOCK_WEIGHTS * US)


@pytest.mark.unit
def test_hosts_work_is_no_part_of_a_messages_way() -> None:
    case = a_case({"pp": 2, "schedule": "1f1b"}, micro_batches=4)
    whole = plan_of(case).stages[0].send
    host = {str(Overhead.PIPELINE_MESSAGE): whole / 8}
    assert plan_of(case, calibration_of(case, **host)).stages[0].send == pytest.approx(whole * 6 / 8)
