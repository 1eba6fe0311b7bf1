"""What is asked of a simulated step: parts, speed, utilisation, communication, bottleneck, what more would buy."""

from __future__ import annotations

from dataclasses import replace

import pytest

from parallelism.schedules.orders import order_of
from parallelism.simulator.machine import Simulator
from parallelism.simulator.on_cluster import cluster_simulator
from parallelism.simulator.plan import NOTHING, Cost, Part, StagePlan, StepPlan, Unit
from parallelism.simulator.plan_changes import faster, kinds_of
from parallelism.simulator.sensitivity import one_more_micro_batch, sensitivities
from parallelism.simulator.simulation import MEANING, Communication, simulate
from reports.simulation_text import bottleneck_sentence, simulation_mapping, term_rows
from suite.case import case_from
from suite.parse import SpecError
from tests.unit.simulated import BY_HAND, case_of, machine_of, plan_of, two_stages

pytestmark = pytest.mark.unit

ON_CLUSTER = cluster_simulator()


def lasting(parts: dict[Part, float]) -> dict[Part, float]:
    return {part: seconds for part, seconds in parts.items() if seconds}


def test_the_parts_of_1f1b_are_the_closed_forms() -> None:
    found = two_stages()
    assert found.step_seconds == 9.0  # (m + p - 1) (F + B)
    assert lasting(found.parts) == {Part.COMPUTE: 6.0, Part.BUBBLE: 3.0}  # bubble / compute = (p - 1) / m
    assert found.tokens_per_second == pytest.approx(2 * 256 / 9)
    assert (found.bottleneck, found.overhead) == (Part.COMPUTE, Part.BUBBLE)
    assert not found.communication


def test_what_other_stages_send_is_waited_for() -> None:
    # rank 0: F0 F1 end at 2; 1B0 ends at 1.5 + 3 = 4.5, on its way until 5; B0 5 to 7; 1B1 ends at 7.5, B1 8 to 10
    found = two_stages(send=0.5)
    assert found.step_seconds == 10.0
    assert lasting(found.parts) == {Part.COMPUTE: 6.0, Part.PIPELINE: 1.0, Part.BUBBLE: 3.0}
    assert found.communication == {Part.PIPELINE: Communication(total=1.0, exposed=1.0)}


def test_gathers_hide_behind_compute_but_for_the_first() -> None:
    # 0.25 s to gather, twice a micro-batch: the first is waited for, the rest go on beside 3 s of compute each
    found = BY_HAND(case_of({"fsdp": 8}, micro_batches=4))
    assert found.step_seconds == 0.25 + 4 * 3 + 0.5
    assert found.communication[Part.GATHER] == Communication(total=8 * 0.25, exposed=0.25)
    assert found.communication[Part.GATHER].hidden_share == pytest.approx(7 / 8)
    assert found.communication[Part.REDUCTION] == Communication(total=0.5, exposed=0.5)


def test_waiting_for_another_rank_to_reduce_is_bubble() -> None:
    case = case_of({"pp": 2, "schedule": "gpipe"}, micro_batches=1)
    quick, slow = Unit("block", Cost(1.0), Cost(1.0), Cost(1.0)), Unit("block", Cost(1), Cost(1), Cost(1), reduce=9.0)
    orders = tuple(order_of(case.layout, 1, rank) for rank in range(2))
    plan = StepPlan(orders, (StagePlan((quick,)), StagePlan((slow,))), (NOTHING, NOTHING), agree=0.5)
    # rank 0: F 0 to 1, B 4 to 6; rank 1: F, B 1 to 4, reduces until 13; then both agree
    assert lasting(simulate(case, plan, place=0).parts) == {Part.COMPUTE: 3.0, Part.BUBBLE: 10.0, Part.NORM: 0.5}
    assert lasting(simulate(case, plan, place=1).parts) == {
        Part.COMPUTE: 3.0, Part.BUBBLE: 1.0, Part.REDUCTION: 9.0, Part.NORM: 0.5,
    }  # fmt: skip


def test_parts_sum_to_the_step_of_a_real_case() -> None:
    layout = {"pp": 2, "fsdp": 2, "tp": 2, "recompute": "full"}
    found = ON_CLUSTER(case_of(layout, micro_batches=4))
    assert sum(found.parts.values()) == pytest.approx(found.step_seconds, rel=1e-12)
    assert found.parts[Part.RECOMPUTE] > 0
    for part, each in found.communication.items():
        assert each.exposed <= each.total * (1 + 1e-9), part


def test_utilisation_under_both_conventions() -> None:
    # 6 FLOPs a token and weight of a product, and 12 L s h of attention, half of which a causal model needs
    case = case_of({"tp": 2}, micro_batches=3)
    spec, tokens = case.model, 256 * 3
    kv = spec.kv_heads * (spec.hidden // spec.heads)
    block = 2 * spec.hidden**2 + 2 * spec.hidden * kv + 3 * spec.hidden * spec.ffn
    weights = spec.layers * block + spec.hidden * spec.vocab
    attention = 12 * spec.layers * 256 * spec.hidden * tokens / 2
    found = BY_HAND(case)
    causal, full = (6 * weights * tokens / 2 + share * attention for share in (0.5, 1.0))
    assert found.flops[0].model == pytest.approx(causal, rel=0.01)  # a causal square keeps its diagonal
    assert found.flops[1].model == pytest.approx(full)
    assert found.full_attention.tflops_per_gpu == pytest.approx(full / 9 / 1e12)
    assert found.full_attention.mfu == pytest.approx(full / 9 / 989.4e12, rel=1e-3)  # H100 SXM, dense bf16


def test_recomputation_counts_for_hfu_alone() -> None:
    without, full = (BY_HAND(case_of({"recompute": mode})) for mode in ("none", "full"))
    assert without.causal.hfu == without.causal.mfu == full.causal.mfu
    assert full.causal.hfu
    assert full.causal.mfu
    assert full.causal.mfu < full.causal.hfu < full.causal.mfu * 4 / 3  # blocks' forward again, the head's not
    assert full.full_attention.mfu == without.full_attention.mfu


def test_a_step_without_time_and_a_rank_that_is_not_there_are_refused() -> None:
    case = case_of()
    plan = plan_of(case, machine_of(case))
    with pytest.raises(SpecError, match="place: 1, of 1 pipeline ranks"):
        simulate(case, plan, place=1)
    idle = replace(plan, stages=(StagePlan((Unit("block", NOTHING, NOTHING, NOTHING),)),))
    with pytest.raises(SpecError, match=r"the step takes 0\.0 s"):
        simulate(case, idle)


def test_an_order_that_cannot_run_names_the_schedule() -> None:
    case = case_of({"pp": 2}, micro_batches=2)
    plan = plan_of(case, machine_of(case))
    stuck = replace(plan, orders=(plan.orders[0][::-1], plan.orders[1]))
    with pytest.raises(SpecError, match=r"layout\.schedule: 1f1b cannot run 2 stages on 2 ranks with 2 micro-batches"):
        Simulator(machine_of, lambda case, machine: stuck)(case)


def test_the_bottleneck_is_said_in_words() -> None:
    said = bottleneck_sentence(two_stages())
    assert said.startswith("Bottleneck: compute, 66.7 % of the step: kernels")
    assert "most goes to bubble, 33.3 % of the step" in said
    assert set(MEANING) == set(Part)


def test_the_document_says_all_of_it() -> None:
    said = simulation_mapping(two_stages(send=0.5))
    assert said["step_seconds"] == 10.0
    assert sum(said["parts"].values()) == 10.0
    assert said["communication"]["pipeline_communication"] == {
        "total_seconds": 1.0, "exposed_seconds": 1.0, "hidden_share": 0.0,
    }  # fmt: skip
    assert (said["bottleneck"]["part"], said["bottleneck"]["share"]) == ("compute", 0.6)
    assert said["basis"] == "by hand"


def test_the_estimate_is_the_simulation() -> None:
    found = two_stages().estimate
    assert (found.step_seconds, found.parts_seconds["bubble"]) == (9.0, 3.0)
    assert found.mfu == two_stages().causal.mfu
    assert found.mfu_full_attention == two_stages().full_attention.mfu


def test_the_basis_names_the_links_that_are_used() -> None:
    machine = machine_of(case_of())
    assert machine.basis(case_of()).endswith("; products: by hand")
    assert machine.basis(case_of({"dp": 2})).endswith("; products: by hand; node: by hand")
    wide = case_from({"model": "llama-1m", "layout": {"dp": 16}, "cluster": {"device": "h100-sxm", "nodes": 2}})
    assert [len(machine.levels_of(case)) for case in (case_of(), case_of({"dp": 8}), wide)] == [0, 1, 2]


def test_equal_neighbours_are_one_term() -> None:
    case = case_of()
    unit = Unit("layers.0", Cost(1.0, 0.25), Cost(2.0), Cost(3.0), gather=0.5)
    units = (*(replace(unit, name=f"layers.{place}") for place in range(3)), replace(unit, name="head", gather=0.0))
    plan = replace(plan_of(case, machine_of(case)), stages=(StagePlan(units),))
    blocks, head = term_rows(simulate(case, plan))
    assert (blocks["unit"], blocks["count"], head["unit"]) == ("layers.0 to layers.2", 3, "head")
    assert (blocks["forward_seconds"], blocks["weights_seconds"], blocks["gather_seconds"]) == (1.0, 3.0, 0.5)
    assert blocks["host_seconds"] == 0.25


# --- what more would buy -------------------------------------------------------------------------------------


def test_a_step_of_products_alone_gains_what_their_rate_does() -> None:
    gains = {each.resource: each.gain for each in sensitivities(BY_HAND(case_of()), BY_HAND)}
    assert gains["matrix rate"] == pytest.approx(0.1)
    assert gains["memory bandwidth"] == 0
    assert "node bandwidth" not in gains  # a rank alone talks to nobody
    assert gains["micro-batches a step"] == pytest.approx(0)


def test_a_pipeline_gains_from_its_slowest_link_and_from_micro_batches() -> None:
    found = sensitivities(BY_HAND(case_of({"pp": 2}, micro_batches=2)), BY_HAND)
    gains = {each.resource: each.gain for each in found}
    assert gains["node bandwidth"] == pytest.approx(10 / (9 + 1 / 1.1) - 1)  # 1 s of 10 is exposed sends
    assert gains["matrix rate"] == pytest.approx(10 / (1 + 9 / 1.1) - 1)
    assert gains["memory bandwidth"] == 0
    assert "rail bandwidth" not in gains  # two ranks share a node
    assert [each.gain for each in found] == sorted(gains.values(), reverse=True)


def test_of_a_measured_machine_each_kind_of_work_is_asked_for() -> None:
    measured = Simulator(lambda case: None, plan_of, lambda case: "measured here")
    case = case_of({"pp": 2}, micro_batches=2)
    gains = {each.resource: each.gain for each in sensitivities(measured(case), measured)}
    assert gains == {
        "compute": pytest.approx(10 / (1 + 9 / 1.1) - 1),
        "pipeline communication": pytest.approx(10 / (9 + 1 / 1.1) - 1),
        "micro-batches a step": pytest.approx(3 / 14 * 10 / 2 - 1),  # sends of 0.5 s: 10 s, then 14 s
    }
    assert measured(case).basis == "measured here"


def test_every_kind_of_work_can_go_faster() -> None:
    pair = ((Part.TENSOR, 2.0), (Part.CONTEXT, 4.0))
    unit = Unit("block", Cost(2.0, 4.0, pair), Cost(2.0), Cost(2.0), rerun=Cost(2.0, 4.0), gather=6.0, reduce=8.0)
    orders = tuple(order_of(case_of({"pp": 2}, micro_batches=2).layout, 2, rank) for rank in range(2))
    plan = StepPlan(orders, (StagePlan((unit,), send=10.0),) * 2, (Cost(12.0),) * 2, agree=14.0)
    assert list(kinds_of(plan)) == [
        Part.COMPUTE, Part.HOST, Part.TENSOR, Part.CONTEXT, Part.GATHER, Part.REDUCTION, Part.PIPELINE, Part.NORM,
    ]  # fmt: skip
    halved = {kind: faster(plan, kind, 2.0) for kind in kinds_of(plan)}
    first = {kind: each.stages[1].units[0] for kind, each in halved.items()}
    assert (first[Part.COMPUTE].rerun.compute, halved[Part.COMPUTE].finish[1].compute) == (1, 6)
    assert first[Part.HOST].forward == Cost(2, 2, pair)
    assert first[Part.TENSOR].forward.blocking == ((Part.TENSOR, 1), (Part.CONTEXT, 4))
    assert first[Part.CONTEXT].forward.blocking == ((Part.TENSOR, 2), (Part.CONTEXT, 2))
    assert first[Part.GATHER] == replace(unit, gather=3)
    assert first[Part.REDUCTION] == replace(unit, reduce=4)
    assert halved[Part.PIPELINE] == replace(plan, stages=(replace(plan.stages[0], send=5),) * 2)
    assert halved[Part.NORM] == replace(plan, agree=7)


def test_one_more_micro_batch_is_what_the_schedule_takes() -> None:
    interleaved = {"pp": 2, "schedule": "interleaved-1f1b", "virtual_stages": 2}
    plain, rounds = case_of({"pp": 2}, micro_batches=2), case_of(interleaved, micro_batches=4)
    counts = [more.workload.micro_batches for case in (plain, rounds) if (more := one_more_micro_batch(case))]
    assert counts == [3, 6]  # rounds of 2


def test_no_resource_makes_a_real_step_slower() -> None:
    case = case_from(
        {
            "model": "llama3-8b",
            "layout": {"fsdp": 16},
            "workload": {"seq_len": 1024},
            "cluster": {"device": "h100-sxm", "nodes": 2, "per_node": 8},
        }
    )
    found = {each.resource: each for each in sensitivities(ON_CLUSTER(case), ON_CLUSTER)}
    assert {"matrix rate", "memory bandwidth", "nvlink bandwidth", "network bandwidth"} <= set(found)
    assert all(each.gain >= -1e-12 for name, each in found.items() if name != "micro-batches a step")
    assert found["nvlink bandwidth"].gain > 0  # rings of 8 adapters a node are quicker than one device's links
