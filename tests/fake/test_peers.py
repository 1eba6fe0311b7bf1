"""What other tools really answer, against their own published rules counted by hand; and what they refuse."""

from __future__ import annotations

import importlib
from types import ModuleType

import pytest

from parallelism.peers import __main__ as process
from parallelism.peers import deepspeed_states
from suite.case import Case, case_from
from suite.environment import package_version
from suite.peers import Peer

pytestmark = pytest.mark.fake

#: hidden 32, 2 blocks, 4 heads of which 2 hold keys and values, a gated MLP of 64, 100 tokens, an untied head
MODEL = {
    "family": "decoder", "name": "tiny", "layers": 2, "hidden": 32, "heads": 4, "kv_heads": 2, "ffn": 64, "vocab": 100,
    "max_positions": 64,
}  # fmt: skip
BLOCK = 2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 64 + 2 * 32
HEAD = 100 * 32
PARAMETERS = 2 * BLOCK + 32 + 2 * HEAD
#: a LLaMA in transformers keeps its rotary frequencies twice, and accelerate counts buffers too
ROTARY = 2 * 8 // 2


def case_of(layout: dict[str, object] | None = None, **workload: object) -> Case:
    work = {"seq_len": 16, "micro_batch": 2, **workload}
    return case_from({"model": MODEL, "layout": layout or {}, "workload": work})


def installed(peer: Peer) -> ModuleType:
    """The module that runs a peer; the test is skipped where the extra `peers` is not installed."""
    if package_version(peer) is None:
        pytest.skip(f"{peer} is not installed: the extra `peers`")
    return importlib.import_module(process.MODULES[peer])


def test_deepspeed_counts_2_and_18_bytes_over_the_ranks() -> None:
    two = deepspeed_states.answer(case_of({"dp": 2, "zero": 2}))
    assert two.states.nbytes == 2 * PARAMETERS + 18 * PARAMETERS // 2
    assert two.peak.nbytes is None
    four = deepspeed_states.answer(case_of({"dp": 4, "zero": 2}))
    assert four.states.nbytes == 2 * PARAMETERS + int(18 * PARAMETERS / 4)
    three = deepspeed_states.answer(case_of({"dp": 2, "zero": 3}))
    assert three.states.nbytes == 4 * HEAD + 18 * PARAMETERS // 2  # the largest module is the head


@pytest.mark.parametrize(
    "layout, workload, reason",
    [
        ({"fsdp": 2}, {}, "its estimators are for its own ZeRO-2 and ZeRO-3"),
        ({"dp": 2, "zero": 1}, {}, "its estimators are for its own ZeRO-2 and ZeRO-3"),
        ({"dp": 2, "zero": 3}, {"precision": "fp32"}, "it counts 16-bit weights and gradients, the run is fp32"),
        ({"dp": 2, "zero": 2}, {"optimizer": "sgd"}, "it counts Adam's two moments, the run's optimizer is sgd"),
    ],
)
def test_deepspeed_states_nothing_of_the_rest(
    layout: dict[str, object], workload: dict[str, object], reason: str
) -> None:
    answer = deepspeed_states.answer(case_of(layout, **workload))
    assert answer.states.nbytes is answer.peak.nbytes is None
    assert answer.states.reason == answer.peak.reason == reason


def test_accelerate_counts_16_bytes_a_parameter_in_fp32_and_8_in_bf16() -> None:
    peer = installed(Peer.ACCELERATE)
    assert peer.answer(case_of(precision="fp32")).states.nbytes == 16 * (PARAMETERS + ROTARY)
    assert peer.answer(case_of({"dp": 2})).peak.nbytes == 8 * (PARAMETERS + ROTARY)
    assert peer.answer(case_of({"fsdp": 2})).states.reason.startswith("knows no sharding")


def test_accelerate_counts_a_tied_head_once() -> None:
    peer = installed(Peer.ACCELERATE)
    tied = case_from({"model": {**MODEL, "tied": True}, "layout": {}, "workload": {"seq_len": 16, "precision": "fp32"}})
    assert peer.answer(tied).states.nbytes == 16 * (PARAMETERS - HEAD + ROTARY)


def test_llm_analysis_counts_the_head_as_tied_and_shards_the_rest() -> None:
    peer = installed(Peer.LLM_ANALYSIS)
    counted = PARAMETERS - HEAD
    assert peer.answer(case_of(precision="fp32")).states.nbytes == 16 * counted
    assert peer.answer(case_of({"fsdp": 2})).states.nbytes == 8 * counted
    # bf16 weights, fp32 gradients, master copy and two moments; the stage divides all but the weights
    assert peer.answer(case_of({"dp": 2, "zero": 2})).states.nbytes == (2 + 16 / 2) * counted


def test_llm_analysis_counts_activations_by_korthikanti() -> None:
    """Full recomputation keeps each block's input (2 s b h, here 16-bit), and it adds the logits (2 s b V)."""
    peer = installed(Peer.LLM_ANALYSIS)
    answer = peer.answer(case_of({"recompute": "full"}))
    assert answer.peak.nbytes is not None
    assert answer.states.nbytes is not None
    tokens = 2 * 16
    assert answer.peak.nbytes - answer.states.nbytes == 2 * (2 * tokens * 32) + 2 * tokens * 100
    assert peer.answer(case_of({"recompute": "every-2"})).peak.reason == "knows no such recomputation"


def test_a_tool_that_crashes_on_a_case_answers_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    good, bad = case_of({"dp": 2, "zero": 2}), case_of({"dp": 2, "zero": 3})

    def broken(case: Case) -> object:
        if case is bad:
            raise AssertionError("first line\nsecond line")
        return deepspeed_states._refusal(case)

    monkeypatch.setattr(deepspeed_states, "answer", broken)
    found = process.answers(Peer.DEEPSPEED, [bad, good])
    assert found[0].states.reason == found[0].peak.reason == "crashed: AssertionError: first line"
    assert found[1] == ""
