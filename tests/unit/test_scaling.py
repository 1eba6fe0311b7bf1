"""Sweeps: which cases they are made of, the ideal and the efficiency by hand, and what is refused or left out."""

from __future__ import annotations

import io
import json
from dataclasses import replace

import pytest
from rich.console import Console

from parallelism.simulator.machine import Machine, Simulator
from parallelism.simulator.plan import StepPlan
from reports.figure_scaling import scaling_charts
from reports.scaling import POINTS, Axis, Scaling, sweep_case
from reports.scaling_text import print_sweep, sweep_mapping
from suite.case import Case
from suite.parse import SpecError
from tests.unit.simulated import BY_HAND, case_of, machine_of, plan_of

pytestmark = pytest.mark.unit


def with_update(case: Case, machine: Machine | None) -> StepPlan:
    """As plan_of, and an update of half a second however many ranks there are."""
    plan = plan_of(case, machine)
    return replace(plan, finish=tuple(replace(cost, compute=0.5) for cost in plan.finish))


SLOW_UPDATE = Simulator(machine_of, with_update)


def test_axes_are_read() -> None:
    assert Axis.parse("gpus=8..100") == Axis("gpus", (8, 16, 32, 64))
    assert Axis.parse("gpus=8..8") == Axis("gpus", (8,))
    assert Axis.parse("seq_len=1024,96,1024") == Axis("seq_len", (96, 1024))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("gpu=8..64", "--sweep: 'gpu' is not known; did you mean gpus?"),
        ("depth=8,9", "--sweep: 'depth' is not known; known: gpus, micro_batch, micro_batches, seq_len"),
        ("gpus", "--sweep: 'gpus' is no range; write gpus=8..64, which doubles, or gpus=8,24,40"),
        ("gpus=8-64", "--sweep: 'gpus=8-64' is no range"),
        ("gpus=64..8", "--sweep: 'gpus=64..8' is empty"),
        ("gpus=0..8", "--sweep: 'gpus=0..8' is empty"),
        ("gpus=" + ",".join(map(str, range(1, POINTS + 2))), f"--sweep: {POINTS + 1} values, at most {POINTS}"),
    ],
)
def test_axes_that_are_not_there_are_refused(text: str, said: str) -> None:
    with pytest.raises(SpecError) as error:
        Axis.parse(text)
    assert str(error.value).startswith(said)


def test_strong_scaling_keeps_the_global_batch_and_weak_scaling_each_rank() -> None:
    found = sweep_case(case_of({"dp": 8}, micro_batches=4), "gpus=4..64", None, SLOW_UPDATE)
    assert (found.grows, found.per_node) == ("dp", 8)
    strong, weak = found.curves
    assert (strong.scaling, weak.scaling) == (Scaling.STRONG, Scaling.WEAK)
    shapes = [
        [(point.value, point.case.layout.dp, point.case.workload.micro_batches, point.case.cluster.nodes)
         for point in curve.run if point.case]
        for curve in found.curves
    ]  # fmt: skip
    assert shapes[0] == [(4, 4, 8, 1), (8, 8, 4, 1), (16, 16, 2, 2), (32, 32, 1, 4)]
    assert shapes[1] == [(4, 4, 4, 1), (8, 8, 4, 1), (16, 16, 4, 2), (32, 32, 4, 4), (64, 64, 4, 8)]
    assert {point.case.global_batch for point in strong.run if point.case} == {32}
    # 3 s a micro-batch and 0.5 s: steps of 24.5, 12.5, 6.5, 3.5 s for one batch
    assert [strong.efficiency(point) for point in strong.run] == pytest.approx(
        [1, 24.5 / 2 / 12.5, 24.5 / 4 / 6.5, 24.5 / 8 / 3.5]
    )
    assert [weak.efficiency(point) for point in weak.run] == pytest.approx([1] * 5)
    first = strong.run[0].simulation
    assert first
    assert strong.ideal(strong.run[2]) == pytest.approx(4 * first.tokens_per_second)
    left = strong.points[-1]
    assert left.reason == "global batch: 32 is not a multiple of micro_batch(1) * data ranks(64) = 64"
    assert strong.efficiency(left) is None


def test_added_gpus_go_to_fsdp_where_it_shards_or_where_told() -> None:
    sharded = case_of({"fsdp": 8, "dp": 2}, micro_batches=4)
    found = sweep_case(sharded, "gpus=16,32", None, BY_HAND)
    assert [point.case.layout.fsdp for point in found.curves[1].run if point.case] == [8, 16]
    told = sweep_case(sharded, "gpus=16,32", "dp", BY_HAND)
    assert [point.case.layout.dp for point in told.curves[1].run if point.case] == [2, 4]
    with pytest.raises(SpecError, match=r"--grow: 'tp' is not known; known: dp, fsdp"):
        sweep_case(sharded, "gpus=16", "tp", BY_HAND)
    with pytest.raises(SpecError, match="--grow: given beside --sweep seq_len"):
        sweep_case(sharded, "seq_len=64", "dp", BY_HAND)


def test_gpus_that_do_not_divide_are_left_out_with_the_reason() -> None:
    found = sweep_case(case_of({"tp": 2, "dp": 4}, micro_batches=4), "gpus=3,8,12,16", None, BY_HAND)
    reasons = [point.reason for point in found.curves[1].points]
    assert reasons[0].startswith("gpus: 3 is not a multiple of the other axes' 2 (dp(4) * tp(2))")
    assert reasons[2].startswith("gpus: 12 does not fill nodes of 8")
    assert reasons[1] == reasons[3] == ""


def test_what_does_not_fit_is_left_out_and_a_sweep_with_nothing_is_refused() -> None:
    large = replace(case_of({"dp": 8}), model=case_of().model)
    from suite.models import preset

    large = replace(large, model=preset("llama3-70b"))
    with pytest.raises(SpecError, match=r"--sweep: nothing runs at any gpus; at 8: does not fit: peak .* a rank"):
        sweep_case(large, "gpus=8..16", None, BY_HAND)


def test_a_size_is_swept_on_the_same_gpus() -> None:
    found = sweep_case(case_of(micro_batch=1), "micro_batch=1..4", None, SLOW_UPDATE)
    (curve,) = found.curves
    assert curve.scaling is Scaling.SIZE
    rates = [point.simulation.tokens_per_second for point in curve.run if point.simulation]
    assert rates == pytest.approx([256 / 3.5, 512 / 6.5, 1024 / 12.5])
    assert curve.efficiency(curve.run[0]) is None
    longer = sweep_case(case_of(), "seq_len=256,2048", None, BY_HAND)
    assert "max_positions" in longer.curves[0].points[1].reason


def test_a_sweep_is_said_in_text_json_and_curves() -> None:
    found = sweep_case(case_of({"dp": 8}, micro_batches=4), "gpus=8..64", None, SLOW_UPDATE)
    said = json.loads(json.dumps(sweep_mapping(found), allow_nan=False))
    assert (said["axis"], said["grows"], said["per_node"]) == ("gpus", "dp", 8)
    rows = said["points"]
    assert [(row["scaling"], row["value"]) for row in rows] == [
        (way, value) for way in ("strong", "weak") for value in (8, 16, 32, 64)
    ]
    assert rows[1]["efficiency"] == pytest.approx(12.5 / 2 / 6.5)
    assert rows[3]["step_seconds"] is None
    assert rows[3]["reason"].startswith("global batch: 32")
    console = Console(file=io.StringIO(), width=120)
    print_sweep(found, console)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    for words in ("Added GPUs go to dp, in nodes of 8", "strong scaling", "96.2 %", "GPUs 64, strong scaling"):
        assert words in text
    rates, shares = scaling_charts(found)
    assert "16 GPUs, strong scaling: 1,260 tokens/s, 96.2 % of the ideal" in rates.svg
    assert shares.key == "scaling-efficiency"
    assert [chart.key for chart in scaling_charts(sweep_case(case_of(), "seq_len=64,128", None, BY_HAND))] == [
        "scaling-rates", "scaling-mfu",
    ]  # fmt: skip
