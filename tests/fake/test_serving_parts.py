"""What is timed of a served model: every operator that a pass has, and attention over as many entries as it has."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from parallelism.calibration.serving_asking import PROMPT_BLOCKS, _row
from parallelism.calibration.serving_frames import Frames, frames_from
from parallelism.calibration.serving_parts import Modules, Passing
from parallelism.simulator.serving_cpu import Pass, serving_wanted
from suite.case import Case, case_from
from suite.hardware.serving_times import SERVED_BLOCK, SERVED_PASS

pytestmark = pytest.mark.fake

SMALL = {"layers": 3, "hidden": 64, "heads": 4, "kv_heads": 2, "vocab": 128, "max_positions": 64, "ffn": 96}
GPT = SMALL | {"norm": "layernorm", "activation": "gelu", "position": "learned", "bias": True, "tied": True}
LATENT = SMALL | {"kv_heads": 4, "latent": {"kv_rank": 24, "rope_dim": 8, "nope_dim": 16, "v_dim": 16}}


def case_of(model: dict[str, Any], precision: str = "fp32", **parts: Any) -> Case:
    serving = {"new_tokens": 4, "prefill_tokens": 20} | parts.pop("serving", {})
    work = {"seq_len": 48, "micro_batch": 2, "precision": precision}
    return case_from({"model": model, "workload": work, "serving": serving, **parts})


CASES = {
    "full": case_of(SMALL),
    "learned": case_of(GPT, "bf16", serving={"sampling": "top-p", "shortest_prompt": 9}),
    "window": case_of(SMALL, cache={"window": 16, "cache_dtype": "int8"}),
    "pages": case_of(SMALL, cache={"page_tokens": 8}, serving={"sampling": "beam", "beams": 2}),
    "sinks": case_of(SMALL, cache={"window": 16, "sinks": 2}),
    "latent": case_of(LATENT),
    "tp": case_of(SMALL, "bf16", layout={"tp": 2}),
}


def passes_of(case: Case) -> list[tuple[Pass, Case]]:
    wanted = serving_wanted([case], 2)
    return [(each, wanted.cases[each.core]) for found in wanted.passes.values() for each in found]


@pytest.mark.parametrize("name", CASES)
def test_every_part_of_every_pass_is_timed_over_as_many_entries_as_it_finds(name: str) -> None:
    found = passes_of(CASES[name])
    sizes = [(each.core.queries, each.core.entries) for each, _ in found]
    assert sizes == [(20, 20), (20, 40), (8, 48), (1, 50)]  # a chunk, the next, what is left; the middle token
    for each, case in found:
        with torch.no_grad():
            passing = Passing(_row(each, case), Modules())
            reading = passing.readings()
        uses = {*each.ends, *each.before, *each.after}
        assert set(reading.operators) == {(use.operator.value, use.shape, each.core.format.value) for use in uses}
        assert min(*reading.operators.values(), reading.layer, reading.once) > 0
        shape = torch.Size((2 if name != "pages" else 4, each.core.queries, each.core.heads, each.core.width))
        assert passing.answering.given[0].shape == shape  # the queries
        if each.core.queries > 1:
            assert passing.answering.length == each.core.entries
            assert passing.blocks == PROMPT_BLOCKS
        else:
            assert 48 < passing.answering.length <= 52
            assert passing.blocks == 3


def test_tokens_go_on_from_one_another_and_begin_again_when_the_answer_is_whole() -> None:
    each, case = passes_of(CASES["full"])[-1]
    with torch.no_grad():
        answering = Passing(_row(each, case), Modules()).answering
        lengths = []
        for _ in range(5):
            answering.begin()
            lengths.append(answering.length)
    assert lengths == [49, 50, 51, 49, 50]


def test_what_is_around_operators_is_found_without_them() -> None:
    readings = {"block": [40.0], "pass": [25.0], "call": [1.0], "pointwise": [10.0]}
    assert frames_from(readings) == {SERVED_BLOCK: 20.0, SERVED_PASS: 22.0}  # 10 and 3 calls of stand-ins
    with torch.no_grad():
        assert set(Frames().readings()) == set(readings)
