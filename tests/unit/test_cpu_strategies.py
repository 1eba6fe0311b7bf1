"""What strategies add to a CPU rank's step: every message is waited for once, and units cost what was measured."""

from typing import Any

import pytest

from memory.estimate import MemoryModel
from parallelism.simulator.cpu_strategies import StrategyCosts, strategy_costs
from parallelism.simulator.cpu_wanted import half_of, wanted_of
from parallelism.simulator.plan import Part
from parallelism.traffic import messages_of
from suite.case import Case, case_from
from suite.cases import DIVISIBLE
from suite.collectives import Collective
from suite.hardware.calibration import Calibration, Machine
from suite.hardware.collective_times import CollectiveTime, Form
from suite.hardware.overheads import Engine, Kept, Overhead, ZeroEngine
from suite.parse import SpecError

pytestmark = pytest.mark.unit

BATCHES = 3


def case_of(**layout: Any) -> Case:
    work = {"micro_batch": 2, "micro_batches": BATCHES, "seq_len": 64, "precision": "fp32"}
    return case_from({"model": DIVISIBLE, "layout": layout, "workload": work})


def calibration(case: Case, cores: int, message_s: float, **overheads: float) -> Calibration:
    """Every message takes `message_s`; a FSDP unit kept 2 ms, freed 3, reduced 7; an attention core 1 ms forward and
    4 in all; hosts nothing but what is named."""
    wanted = wanted_of([(case, MemoryModel(case).ledger_of_share(0))])
    known = dict.fromkeys(map(str, Overhead), 0.0) | overheads
    for unit in wanted.units:
        known |= {unit.name(Kept.KEPT): 2e-3, unit.name(Kept.FREED): 3e-3, unit.name(Kept.REDUCED): 7e-3}
    for core in wanted.cores:
        known |= {core.name(whole=False): 1e-3, core.name(whole=True): 4e-3}
    times = [
        CollectiveTime(each.collective, each.form, each.ranks, each.groups, each.payload_bytes, message_s, 0.0, 1, 3e-4)
        for each in wanted.exchanges
    ]
    return Calibration(Machine("a CPU", cores, "2.13", "passive"), collectives=tuple(times), overheads=known)


def costs_of(case: Case, cores: int = 8, message_s: float = 0.0, **overheads: float) -> StrategyCosts:
    return strategy_costs(case, calibration(case, cores, message_s, **overheads), MemoryModel(case).ledger_of_rank(0))


def waited(costs: StrategyCosts, part: Part) -> float:
    """Seconds of a step's waiting of one kind."""
    passes = [cost for each in costs.segments for cost in (each.forward, each.backward, each.rerun)]
    each = sum(dict(cost.blocking).get(part, 0.0) for cost in passes)
    return BATCHES * each + dict(costs.finish.blocking).get(part, 0.0)


@pytest.mark.parametrize(
    "layout",
    [
        {"tp": 2},
        {"tp": 4, "recompute": "full"},
        {"tp": 2, "sequence_parallel": False},
        {"tp": 2, "dp": 2},
        {"tp": 2, "recompute": "selective-op"},
    ],
    ids=str,
)
def test_a_tensor_parallel_rank_waits_for_each_of_its_messages_once(layout: dict[str, Any]) -> None:
    case = case_of(**layout)
    costs = costs_of(case, message_s=1.0)
    said = sum(row.count for row in messages_of(case, MemoryModel(case).ledger_of_share(0)))
    assert sum(waited(costs, part) for part in (Part.TENSOR, Part.REDUCTION, Part.NORM)) == pytest.approx(said)


def test_ranks_that_share_cores_are_not_stretched_twice() -> None:
    case = case_of(tp=4)
    alone, shared = (waited(costs_of(case, cores, 1.0), Part.TENSOR) for cores in (4, 2))
    assert shared == pytest.approx(alone / 2)  # the engine gives each of 4 ranks on 2 cores half of one


def test_a_freed_block_is_gathered_for_both_passes_and_the_root_for_each_forward() -> None:
    # freed - kept = 1 ms a gather; 2 kept - freed = 1 ms of hooks; reduced - freed = 4 ms a reduction
    costs = costs_of(case_of(fsdp=2))
    units = [each for each in costs.segments if each.reduce]
    assert len(units) == DIVISIBLE["layers"] + 1
    assert all(each.reduce == pytest.approx(4e-3) for each in units)
    assert all((each.forward + each.backward).compute == pytest.approx(1e-3) for each in units)
    assert [each.gather for each in units] == pytest.approx([0.0] + [1e-3] * DIVISIBLE["layers"])
    assert waited(costs, Part.GATHER) == pytest.approx(BATCHES * 1e-3)


def test_what_is_kept_is_gathered_once_a_micro_batch_and_in_a_pipeline_once_a_step() -> None:
    kept = costs_of(case_of(fsdp=2, reshard_after_forward=False))
    assert waited(kept, Part.GATHER) == pytest.approx(BATCHES * (DIVISIBLE["layers"] + 1) * 1e-3)
    assert not any(each.gather for each in kept.segments)
    piped = costs_of(case_of(fsdp=2, pp=2, reshard_after_forward=False))
    assert waited(piped, Part.GATHER) == 0
    gathered = [each for each in piped.segments if each.gather]
    assert gathered
    assert all(each.is_kept for each in gathered)


def test_a_block_left_in_parts_is_gathered_from_them_in_backward() -> None:
    costs = costs_of(case_of(fsdp=4, reshard_after_forward=2))
    # 8 blocks, forward from all ranks and backward from two, and the root: 1 ms each
    assert waited(costs, Part.GATHER) == pytest.approx(BATCHES * (2 * DIVISIBLE["layers"] + 1) * 1e-3)


def test_replicas_of_shards_are_averaged_once_for_each_unit() -> None:
    plain, hybrid = (sum(each.reduce for each in costs_of(case_of(fsdp=2, dp=dp), 8, 1e-3).segments) for dp in (1, 2))
    assert hybrid - plain == pytest.approx((DIVISIBLE["layers"] + 1) * 1e-3)


@pytest.mark.parametrize(("recompute", "passes"), [("none", 4), ("selective", 5), ("full", 5)])
def test_a_context_core_takes_the_place_of_attention_and_is_rerun_with_it(recompute: str, passes: int) -> None:
    costs = costs_of(case_of(cp=2, recompute=recompute))
    assert waited(costs, Part.CONTEXT) == pytest.approx(BATCHES * DIVISIBLE["layers"] * passes * 1e-3)
    assert sum(each.has_core for each in costs.segments) == DIVISIBLE["layers"]


def test_divided_parameters_cost_each_use_each_sum_and_the_update() -> None:
    host = {Overhead.DIVIDED_USE: 1e-3, Overhead.DIVIDED_ADD: 3e-3, Overhead.DIVIDED_UPDATE: 5e-3}
    costs = costs_of(case_of(tp=2), **{str(name): seconds for name, seconds in host.items()})
    weights = 7 * DIVISIBLE["layers"] + 2  # q, k, v, o, gate, up, down; embedding and head
    each = sum((part.forward + part.backward).compute for part in costs.segments)
    assert each * BATCHES == pytest.approx(weights * (BATCHES * 1e-3 + (BATCHES - 1) * 3e-3))
    assert costs.finish.compute == pytest.approx(weights * 5e-3)


@pytest.mark.parametrize(
    ("recompute", "sequence_parallel", "rerun"),
    # calls of a forward pass: two gathers, two sums; of a full rerun both gathers and the first sum, or that sum alone
    [("none", True, 0.0), ("full", True, 2 * 2e-3 * 3 / 4), ("full", False, 2 * 2e-3 / 2)],
)
def test_halves_of_blocks_that_were_measured_take_the_place_of_their_messages(
    recompute: str, sequence_parallel: bool, rerun: float
) -> None:
    case = case_of(tp=4, recompute=recompute, sequence_parallel=sequence_parallel)
    half = half_of(case)
    known = {half.name(whole=False): 2e-3, half.name(whole=True): 5e-3, str(Overhead.DIVIDED_USE): 1.0}
    costs = costs_of(case, 2, 7.0, **known)
    blocks = [each for each in costs.segments if 0 < dict(each.forward.blocking).get(Part.TENSOR, 0.0) < 1]
    assert len(blocks) == DIVISIBLE["layers"]
    for block in blocks:
        # 4 ranks on 2 cores: the engine stretches what was measured with all at work
        said = [dict(each.blocking).get(Part.TENSOR, 0.0) * 2 for each in (block.forward, block.backward, block.rerun)]
        assert said == pytest.approx([2 * 2e-3, 2 * (5e-3 - 2e-3), rerun])
        # of 7 divided weights the halves hold 6
        assert (block.forward + block.backward).compute == pytest.approx(1.0)


def test_a_unit_that_was_not_measured_itself_is_added_up_from_its_parameters_and_collectives() -> None:
    case = case_of(fsdp=4)
    host = {
        Overhead.FSDP_HOOKS_UNIT: 2e-3, Overhead.FSDP_HOOKS_PARAMETER: 1e-3,
        Overhead.FSDP_GATHER_UNIT: 3e-3, Overhead.FSDP_GATHER_PARAMETER: 0.0,
        Overhead.FSDP_REDUCE_UNIT: 0.0, Overhead.FSDP_REDUCE_PARAMETER: 2e-3,
    }  # fmt: skip
    known = dict.fromkeys(map(str, Overhead), 0.0) | {str(name): seconds for name, seconds in host.items()}
    kinds = ((Collective.ALL_GATHER, 10e-3), (Collective.REDUCE_SCATTER, 20e-3), (Collective.ALL_REDUCE, 0.0))
    times = [CollectiveTime(kind, Form.DIRECT, 4, 1, 1000, seconds, 0.0, 1, 3e-4) for kind, seconds in kinds]
    wide = Calibration(Machine("a CPU", 2, "2.13", "passive"), collectives=tuple(times), overheads=known)
    costs = strategy_costs(case, wide, MemoryModel(case).ledger_of_rank(0))
    block = next(each for each in costs.segments if each.gather)
    # 4 ranks on 2 cores: the engine stretches everything by two, so measured collectives count half
    assert block.gather == pytest.approx(3e-3 + 10e-3 / 2)
    assert block.reduce == pytest.approx(9 * 2e-3 + 20e-3 / 2)
    assert (block.forward + block.backward).compute == pytest.approx(2e-3 + 9 * 1e-3)


def test_a_deepspeed_rank_pays_each_module_each_micro_batch() -> None:
    case = case_of(dp=2, zero=3, recompute="full")
    parts = {
        Engine.MODULE: 1.0,
        Engine.RERUN: 100.0,
        Engine.MICRO_BATCH: 0.0,
        Engine.MODULE_STEP: 0.0,
        Engine.STEP: 7.0,
    }
    engine = {ZeroEngine(3, 2).name(part): seconds for part, seconds in parts.items()}
    costs = costs_of(case, **engine)
    # of a block: q, k, v, o, gate, up, down and two norms, all but the last rerun; embedding, norm and head
    modules, reruns = 9 * DIVISIBLE["layers"] + 3, 8 * DIVISIBLE["layers"]
    assert waited(costs, Part.GATHER) == pytest.approx(BATCHES * (modules + 100 * reruns))
    assert costs.finish.compute == pytest.approx(7.0)


def test_what_was_not_measured_is_named() -> None:
    case = case_of(fsdp=2)
    empty = Calibration(Machine("a CPU", 2, "2.13", "passive"))
    with pytest.raises(SpecError, match=r"calibration.overheads.fsdp.hooks.unit: was not measured"):
        strategy_costs(case, empty, MemoryModel(case).ledger_of_rank(0))
