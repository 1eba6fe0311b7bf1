"""`estimate --json`: the keys that programs rely on, sums that are right, and JSON that every reader takes."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from memory.estimate import MemoryModel
from reports.contract import estimate_mapping, worst_estimate
from reports.predict import Predictor
from suite.case import Case, case_from
from suite.record import Component, Moment
from suite.units import GIB

pytestmark = pytest.mark.unit

CASES = {
    "single": {"model": "gpt-1m", "workload": {"seq_len": 64, "precision": "fp32"}},
    "eager, selective": {
        "model": "llama-1m",
        "layout": {"recompute": "selective"},
        "workload": {"seq_len": 64, "attention": "eager", "micro_batches": 3},
    },
    "ddp, sgd": {"model": "gpt-1m", "layout": {"dp": 3}, "workload": {"seq_len": 7, "optimizer": "sgd"}},
    "fsdp, uneven": {"model": "llama-1m", "layout": {"fsdp": 3}, "workload": {"seq_len": 64, "loss": "chunked"}},
    "fsdp, kept": {
        "model": "gpt2",
        "layout": {"fsdp": 16, "reshard_after_forward": False, "recompute": "every-2"},
        "cluster": {"device": "a100-80gb-sxm", "nodes": 2},
    },
    "no bf16 units": {"model": "llama-7b", "cluster": {"device": "v100-32gb-sxm"}},
    "a cluster": {
        "model": "llama3-405b",
        "layout": {"fsdp": 512},
        "workload": {"seq_len": 8192},
        "cluster": {"device": "h100-sxm", "nodes": 64},
    },
}


def answer(name: str) -> dict[str, Any]:
    """The verb's answer as another program reads it."""

    def refuse(word: str) -> float:
        raise AssertionError(f"{word} is not JSON")

    text = json.dumps(estimate_mapping(case(name), Predictor()), allow_nan=False)
    read: dict[str, Any] = json.loads(text, parse_constant=refuse)
    return read


def case(name: str) -> Case:
    return case_from(CASES[name])


@pytest.mark.parametrize("name", CASES)
def test_every_key_of_the_contract_is_there(name: str) -> None:
    said = answer(name)
    assert {"case_id", "world_size", "memory", "time"} <= set(said)
    memory = {"peak_bytes", "peak_moment", "rank", "reserved_upper_bytes", "verdict", "components", "terms"}
    memory |= {"reserved_bytes", "device_bytes", "available_bytes", "device_terms"}
    assert memory <= set(said["memory"])
    time = {"step_seconds", "tokens_per_second", "tflops_per_gpu", "mfu", "hfu", "parts"}
    assert time <= set(said["time"])
    assert {"parameters", "gradients", "optimizer", "activations"} <= set(said["memory"]["components"])
    assert set(said["memory"]["components"]) <= {component.value for component in Component}
    assert said["memory"]["verdict"] in {"fits", "tight", "oom", "unknown"}
    assert said["memory"]["peak_moment"] in {moment.value for moment in Moment}


@pytest.mark.parametrize("name", CASES)
def test_bytes_are_whole_and_sum_up(name: str) -> None:
    memory = answer(name)["memory"]
    assert sum(memory["components"].values()) == memory["peak_bytes"]
    assert max(memory["moments"].values()) == memory["moments"][memory["peak_moment"]] == memory["peak_bytes"]
    for moment, nbytes in memory["moments"].items():
        terms = [term for term in memory["terms"] if term["moment"] == moment]
        assert sum(term["bytes"] for term in terms) == nbytes
    counts = [*memory["components"].values(), *(term["bytes"] for term in memory["terms"])]
    assert all(type(count) is int and count >= 0 for count in counts)
    assert all(type(memory[key]) is int for key in ("peak_bytes", "reserved_upper_bytes", "available_bytes"))
    assert memory["reserved_upper_bytes"] >= memory["peak_bytes"]
    assert memory["device_bytes"] >= memory["available_bytes"]
    if case(name).cluster.device == "cpu":
        assert (memory["reserved_bytes"], memory["device_terms"]) == (None, [])
        return
    assert memory["peak_bytes"] <= memory["reserved_bytes"] <= memory["reserved_upper_bytes"]
    terms = memory["device_terms"]
    assert all(set(term) == {"name", "place", "bytes", "upper_bytes", "formula", "source"} for term in terms)
    beside = sum(term["bytes"] or 0 for term in terms if term["place"] == "device")
    assert memory["available_bytes"] == memory["device_bytes"] - beside


@pytest.mark.parametrize("name", CASES)
def test_every_term_says_why(name: str) -> None:
    for term in answer(name)["memory"]["terms"]:
        assert set(term) == {"component", "moment", "bytes", "formula", "source"}
        assert term["bytes"] > 0
        assert len(term["formula"]) > 3
        assert len(term["source"]) > 3


@pytest.mark.parametrize("name", CASES)
def test_the_case_in_the_answer_gives_the_same_answer(name: str) -> None:
    said = answer(name)
    again = case_from(said["case"])
    assert again == case(name)
    assert again.case_id == said["case_id"]
    assert said["world_size"] == again.layout.world_size
    assert said["global_batch"] == again.global_batch


@pytest.mark.parametrize("name", CASES)
def test_the_parts_of_the_time_are_the_step(name: str) -> None:
    time = answer(name)["time"]
    if time["step_seconds"] is None:
        assert (time["parts"], time["mfu"], time["tokens_per_second"]) == ({}, None, None)
        assert "calibrate" in time["basis"]
        return
    assert {"compute", "exposed_communication", "bubble"} <= set(time["parts"])
    assert sum(time["parts"].values()) == pytest.approx(time["step_seconds"])
    assert time["tokens_per_second"] * time["step_seconds"] == pytest.approx(case(name).tokens_per_step)
    assert 0 < time["mfu"] <= time["hfu"] < 1
    assert math.isfinite(time["tflops_per_gpu"])


def test_a_figure_of_a_device_that_has_none_is_null() -> None:
    assert answer("no bf16 units")["time"]["step_seconds"] is None
    assert answer("no bf16 units")["memory"]["verdict"] == "oom"


def test_state_derived_by_hand() -> None:
    """llama-7b in bf16-mixed: fp32 weights, gradients and two moments, 16 bytes a parameter, 4 for each tensor's step.

    A block has 9 tensors (four projections, three matrices of the MLP, two norms); embedding, head and last norm
    are three more.
    """
    said = answer("no bf16 units")
    parameters, tensors = 6_738_415_616, 32 * 9 + 3
    assert said["parameters"] == parameters
    at_end = {
        component: sum(
            term["bytes"]
            for term in said["memory"]["terms"]
            if (term["component"], term["moment"]) == (component, "after_backward")
        )
        for component in ("parameters", "gradients", "optimizer")
    }
    assert at_end == {
        "parameters": 4 * parameters,
        "gradients": 4 * parameters,
        "optimizer": 8 * parameters + 4 * tensors,
    }


def test_the_worst_rank_is_told_where_shards_are_uneven() -> None:
    model = MemoryModel(case("fsdp, uneven"))
    peaks = [model.peak_bytes(rank) for rank in range(3)]
    worst = worst_estimate(model.case, model)
    assert worst.peak_bytes == max(peaks)
    assert worst.rank == peaks.index(max(peaks))
    assert len(set(peaks)) > 1


def test_a_large_cluster_shards_its_state() -> None:
    """405,853,388,800 parameters, 4 bytes each, over 512 ranks: 2.95 GiB, and a row or so of padding."""
    nbytes = answer("a cluster")["memory"]["components"]["parameters"]
    assert 405_853_388_800 * 4 / 512 <= nbytes < 405_853_388_800 * 4 / 512 * 1.001
    assert nbytes == pytest.approx(2.95 * GIB, rel=0.01)
