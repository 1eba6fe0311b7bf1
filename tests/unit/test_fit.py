"""What fits: the answer is right, the next step is not, and what cannot be answered is said in one line."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from typing import Any

import pytest
from rich.console import Console

from memory.assessment import Assessment
from memory.estimate import MemoryModel
from memory.fit import Search, Target, _first
from memory.verdict import Verdict
from reports.fit import fit_mapping, print_fit, said_fit
from run_all import main
from suite.case import Case, case_from
from suite.hardware import Device, device
from suite.hardware.device import Figure
from suite.parse import SpecError

pytestmark = pytest.mark.unit

MIB, GIB = 2**20, 2**30


def case(layout: dict[str, Any] | None = None, name: str = "h100-sxm", **workload: Any) -> Case:
    return case_from({"model": "llama-1m", "layout": layout or {}, "workload": {"seq_len": 256} | workload,
                      "cluster": {"device": name}})  # fmt: skip


def small(mebibytes: int) -> Device:
    """A GPU that has so much besides what is taken without a tensor."""
    return replace(device("h100-sxm"), memory_bytes=Figure(1_060_000_000 + mebibytes * MIB, "made up"))


def verdict_of(described: Case, hardware: Device) -> Verdict:
    return Assessment(MemoryModel(described), hardware).verdict


@pytest.mark.parametrize("border", range(1, 20))
@pytest.mark.parametrize("most", [1, 2, 7, 19])
def test_the_border_is_found_wherever_it_is(border: int, most: int) -> None:
    asked: list[int] = []

    def holds(size: int) -> bool:
        asked.append(size)
        return size >= border

    assert _first(holds, most) == (border if border <= most else None)
    assert set(asked) <= set(range(1, most + 1))


@pytest.mark.parametrize("accept", [Verdict.FITS, Verdict.TIGHT])
@pytest.mark.parametrize("target", [Target.MICRO_BATCH, Target.SEQ_LEN])
def test_the_verdict_flips_between_the_answer_and_the_next_step(target: Target, accept: Verdict) -> None:
    hardware = small(800)
    start = case({"recompute": "full"}, micro_batch=128, precision="fp32")
    answer = Search(start, hardware, accept).answer(target)
    assert answer.best is not None
    assert answer.next is not None
    assert isinstance(answer.best.value, int)
    assert answer.next.value == answer.best.value + 1
    good = {Verdict.FITS, accept}
    key = answer.varied.split(".")[1]
    for candidate, is_good in ((answer.best, True), (answer.next, False)):
        assert (verdict_of(candidate.case, hardware) in good) is is_good
        assert candidate.case == replace(start, workload=replace(start.workload, **{key: candidate.value}))


def test_more_is_accepted_where_tight_will_do() -> None:
    searches = [Search(case(), small(300), accept) for accept in (Verdict.FITS, Verdict.TIGHT)]
    found = [search.answer(Target.MICRO_BATCH).best for search in searches]
    sizes = [int(item.value) for item in found if item is not None]
    assert 0 < sizes[0] < sizes[1]


def test_sequences_grow_by_what_the_layout_divides_up_to_the_models_positions() -> None:
    search = Search(case({"tp": 2, "cp": 2}), device("h200-sxm"))  # balanced: 2 cp parts, tp of each
    answer = search.answer(Target.SEQ_LEN)
    assert answer.best is not None
    assert (answer.best.value, answer.next) == (search.case.model.max_positions, None)
    assert "multiples of 8" in answer.note
    assert f"max_positions are {search.case.model.max_positions}" in answer.note
    assert {item.case.workload.seq_len % 8 for item in search.tried.values()} == {0}


def test_sequences_grow_up_to_the_models_window_where_it_has_one() -> None:
    described = case()
    windowed = replace(described, model=replace(described.model, window=300))
    answer = Search(windowed, device("h100-sxm")).answer(Target.SEQ_LEN)
    assert answer.best is not None
    assert answer.best.value == 300
    assert "window is 300" in answer.note


def test_gpus_are_the_fewest_whose_shards_fit() -> None:
    described = case(micro_batch=1, seq_len=16)
    hardware = replace(device("h100-sxm"), memory_bytes=Figure(7 * GIB, "made up"))
    described = replace(described, model=case_from({"model": "gpt2-medium"}).model)
    answer = Search(described, hardware).answer(Target.GPUS)
    assert answer.best is not None
    assert answer.next is not None
    assert answer.varied == "layout.fsdp"
    fewest = answer.best.case.layout.fsdp
    assert answer.best.value == fewest > 1
    assert answer.next.case.layout.fsdp == fewest - 1
    for count in range(1, fewest):
        layout, cluster = replace(described.layout, fsdp=count), replace(described.cluster, per_node=0)
        assert verdict_of(replace(described, layout=layout, cluster=cluster), hardware) is not Verdict.FITS


def test_gpus_keep_what_else_divides_the_model() -> None:
    answer = Search(case({"tp": 2, "fsdp": 2}), device("h100-sxm")).answer(Target.GPUS)
    assert answer.best is not None
    assert (answer.best.value, answer.best.case.layout.fsdp, answer.best.case.layout.tp) == (2, 1, 2)
    assert "tp 2 left as given" in answer.note
    zero = Search(case({"dp": 2, "zero": 1}), device("h100-sxm")).answer(Target.GPUS)
    assert zero.varied == "layout.dp"
    assert zero.best is not None
    assert (zero.best.value, zero.next) == (2, None)  # DeepSpeed needs two
    assert "allow no layout.dp below it" in zero.note


def test_machines_keep_their_size() -> None:
    start = case_from({"model": "llama-1m", "layout": {"fsdp": 4}, "workload": {"seq_len": 256},
                       "cluster": {"device": "h100-sxm", "nodes": 2}})  # fmt: skip
    search = Search(start, device("h100-sxm"))
    search.answer(Target.GPUS)
    shapes = {(item.case.cluster.nodes, item.case.cluster.per_node) for item in search.tried.values()}
    assert shapes == {(1, 1)}
    assert search._cluster(replace(start.layout, fsdp=8)).nodes == 4


def test_the_least_recomputation_is_the_first_that_fits() -> None:
    described = case(micro_batch=64)
    free = Assessment(MemoryModel(described), device("h100-sxm")).reserved_upper_bytes
    hardware = replace(device("h100-sxm"), memory_bytes=Figure(1_060_000_000 + free * 9 // 10, "made up"))
    search = Search(described, hardware)
    answer = search.answer(Target.RECOMPUTE)
    assert answer.best is not None
    assert answer.next is not None
    modes = [str(item.case.layout.recompute) for item in search._modes()]
    assert (modes[0], modes[-1]) == ("none", "full")
    place = modes.index(str(answer.best.value))
    assert modes[place - 1] == answer.next.value
    for name in modes[:place]:
        tried = case({"recompute": name}, micro_batch=64)
        assert verdict_of(tried, hardware) is not Verdict.FITS


def test_nothing_fits_a_device_that_does_not_hold_the_least() -> None:
    for target in Target:
        answer = Search(case(), small(4)).answer(target)
        assert answer.best is None
        assert "nothing fits" in answer.note
        assert "\n" not in answer.note


@pytest.mark.parametrize(
    "layout, name, target, words",
    [
        ({"dp": 2}, "h100-sxm", "gpus", "layout.dp(2) replicas hold everything"),
        ({}, "cpu", "gpus", "ranks on a CPU share its memory"),
        ({}, "h100-sxm", "micro_batch", "--for: 'micro_batch' is not known"),
    ],
)
def test_refusals_are_one_line(layout: dict[str, Any], name: str, target: str, words: str) -> None:
    with pytest.raises(SpecError) as caught:
        said_fit(case(layout, name), target, "fits", None)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_device_without_published_memory_is_refused() -> None:
    unknown = replace(device("h100-sxm"), memory_bytes=Figure(None, "no source found"))
    with pytest.raises(SpecError, match="h100-sxm has no published memory"):
        Search(case(), unknown)


def test_what_a_program_and_a_person_are_told() -> None:
    said = fit_mapping(Search(case({"dp": 2}), small(2300)), tuple(Target))
    assert [answer["for"] for answer in said["answers"]] == [target.value for target in Target]
    assert json.loads(json.dumps(said, allow_nan=False)) == said
    found = said["answers"][0]
    assert case_from(found["best"]["case"]).workload.micro_batch == found["best"]["value"]
    assert (found["best"]["memory"]["verdict"], found["next"]["memory"]["verdict"]) == ("fits", "tight")
    assert found["next"]["memory"]["reserved_upper_bytes"] > found["best"]["memory"]["reserved_upper_bytes"]
    assert said["answers"][2]["best"] is None
    file = io.StringIO()
    print_fit(said, "llama-1m", Console(file=file, width=200, color_system=None))
    text = file.getvalue()
    assert f"largest micro-batch: {found['best']['value']}" in text
    assert "layout.dp(2) replicas hold everything" in text


def test_the_verb(capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--model", "llama-1m", "--seq-len", "64", "--device", "h100-sxm", "--for", "seq-len"]
    assert main(["fit", *flags, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["answers"][0]["best"]["value"] == case().model.max_positions
    assert main(["fit", *flags, "--accept", "oom"]) == 2
    assert "--accept" in capsys.readouterr().err
    assert main(["fit", *flags, "--seq-len", "999999"]) == 2
    assert "max_positions" in capsys.readouterr().err
    assert main(["fit", *flags, "--alloc-conf", "expandable_segments:True"]) == 0
    assert main(["estimate", *flags[:6], "--alloc-conf", "nonsense:1"]) == 2
    assert "--alloc-conf: 'nonsense' is not modelled" in capsys.readouterr().err
    assert main(["estimate", *flags[:4], "--alloc-conf", "expandable_segments:True"]) == 2
    assert "has no caching allocator" in capsys.readouterr().err
    huge = ["--model", "llama3-405b", "--device", "rtx-4090", "--for", "seq-len"]
    assert main(["fit", *huge]) == 1
    assert "longest sequence: nothing fits" in capsys.readouterr().out
