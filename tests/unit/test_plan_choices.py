"""Which layouts prove a plan's order, and which plans this machine refuses to run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from reports.plan import run as plan_run
from reports.plan.asked import Asked
from reports.plan.choices import FASTEST, covering, layouts_of, questions
from reports.plan.run import check_run
from reports.plan.timing import Timing
from suite.case import Case, case_from
from suite.gpus import gpu_names, is_called
from suite.parse import SpecError

pytestmark = pytest.mark.unit


def unasked(case: Case) -> None:
    raise AssertionError("no layout is simulated whole here")


def timing(seconds: dict[str, float]) -> Timing:
    def of(cases: Sequence[Case]) -> list[float]:
        return [seconds[case.case_id] for case in cases]

    return Timing(of, unasked, None)  # type: ignore[arg-type]


def numbered(count: int) -> tuple[list[Case], Timing]:
    """Cases whose predicted seconds are 1, 2, 3, ..., given slowest first."""
    cases = [case_from({"model": "gpt-1m", "recipe": {"steps": number}}) for number in range(1, count + 1)]
    return cases[::-1], timing({case.case_id: case.recipe.steps for case in cases})


def test_a_sample_has_the_fastest_and_every_nth_of_the_others() -> None:
    """Of 25, nine: the first five, then of the other 20 every fifth, the slowest among them."""
    cases, times = numbered(25)
    assert [case.recipe.steps for case in covering(cases, times, 9)] == [1, 2, 3, 4, 5, 10, 15, 20, 25]
    assert FASTEST == 5


def test_a_few_layouts_are_taken_whole_in_the_order_predicted() -> None:
    cases, times = numbered(7)
    assert [case.recipe.steps for case in covering(cases, times, 7)] == [1, 2, 3, 4, 5, 6, 7]


def test_layouts_of_two_ranks_are_each_of_the_question_and_none_twice() -> None:
    first = questions()[0]
    cases = list(layouts_of(first.asked))
    assert len({case.case_id for case in cases}) == len(cases) <= first.most
    assert {case.global_batch for case in cases} == {8}
    assert {case.layout.world_size for case in cases} == {2}
    assert {str(case.layout.recompute) for case in cases} == {"none"}
    names = {str(case.layout) for case in cases}
    assert {"dp2", "fsdp2", "tp2", "pp2-1f1b", "pp2-zbv", "dp2+zero1-torch", "dp2+zero3"} <= names


def test_the_questions_are_of_two_to_eight_ranks() -> None:
    asked = [question.asked for question in questions()]
    assert {each.gpus for each in asked} == {2, 4, 8}
    assert {each.base.workload.precision.value for each in asked} == {"fp32", "bf16-mixed"}


# --- what is refused ------------------------------------------------------------------------------------


def question(device: str = "cpu", nodes: int = 1, per_node: int = 2) -> Asked:
    return Asked(case_from({"model": "gpt-1m", "cluster": {"device": device}}), nodes, per_node, 8)


def having(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    monkeypatch.setattr(plan_run, "gpu_names", lambda: names)


@pytest.mark.parametrize(
    ("asked", "count", "names", "said"),
    [
        (question(), 11, (), "--run: 11 layouts of the best 10; give --best 11 too"),
        (question(nodes=2), 2, (), "cluster.nodes: 2 machines, and this is one"),
        (question("h100-sxm"), 2, (), "h100-sxm is not what this machine has (no GPU that its driver tells of)"),
        (question("h100-sxm"), 2, ("NVIDIA H200",), "h100-sxm is not what this machine has (NVIDIA H200)"),
        (question("h100-sxm"), 2, ("NVIDIA H100 80GB HBM3",), "this machine has 1 of h100-sxm; give --per-node 1"),
    ],
)
def test_what_this_machine_cannot_run_is_refused_in_one_line(
    monkeypatch: pytest.MonkeyPatch, asked: Asked, count: int, names: tuple[str, ...], said: str
) -> None:
    having(monkeypatch, *names)
    with pytest.raises(SpecError) as refusal:
        check_run(asked, count)
    assert said in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_the_cpu_and_gpus_that_are_here_are_run(monkeypatch: pytest.MonkeyPatch) -> None:
    having(monkeypatch)
    check_run(question(), 10)
    having(monkeypatch, "NVIDIA H100 80GB HBM3", "NVIDIA H100 80GB HBM3")
    check_run(question("h100-sxm"), 3)


def test_gpus_are_what_the_driver_lists(tmp_path: Path) -> None:
    tool = tmp_path / "tool"
    tool.write_text("#!/bin/sh\necho 'NVIDIA H200'\necho 'NVIDIA H200 '\n", encoding="ascii")
    tool.chmod(0o755)
    assert gpu_names(str(tool)) == ("NVIDIA H200", "NVIDIA H200")
    assert gpu_names(str(tmp_path / "missing")) == ()
    tool.write_text("#!/bin/sh\nexit 9\n", encoding="ascii")
    assert gpu_names(str(tool)) == ()


@pytest.mark.parametrize(
    ("device", "name", "expected"),
    [
        ("a100-80gb-sxm", "NVIDIA A100-SXM4-80GB", True),
        ("v100-32gb-sxm", "Tesla V100-SXM2-32GB", True),
        ("h100-sxm", "NVIDIA H1000", False),
        ("rtx-4090", "NVIDIA GeForce RTX 4090", True),
        ("rtx-a6000", "NVIDIA GeForce RTX 4090", False),
        ("h200-sxm", "NVIDIA H100 PCIe", False),
    ],
)
def test_a_device_is_known_by_its_model(device: str, name: str, expected: bool) -> None:
    assert is_called(device, name) is expected
