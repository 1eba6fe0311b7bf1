"""The replay of a step through the allocator: what holds of every layout, and what can be counted by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from memory.allocator_settings import AllocatorSettings
from memory.estimate import MemoryModel
from memory.events import Event, Label
from memory.gathers import SOURCE
from memory.holding import owned_weights
from memory.replay import ON_GATHER, ON_REDUCE, Stream, replay, segregated_bytes, stream_of
from memory.tensors import tensor_sizes
from suite.case import Case, case_from
from suite.record import Component

pytestmark = pytest.mark.unit

MIB = 2**20
LAYOUTS: dict[str, dict[str, Any]] = {
    "single": {},
    "checkpointed": {"recompute": "full"},
    "ddp": {"dp": 2},
    "fsdp": {"fsdp": 4},
    "fsdp, kept": {"fsdp": 4, "reshard_after_forward": False},
    "fsdp, resharded to 2": {"fsdp": 4, "reshard_after_forward": 2},
    "fsdp, reduced each time": {"fsdp": 4, "reduction": "micro-batch"},
    "fsdp, bf16 reduced": {"fsdp": 4, "reduce_type": "bf16"},
    "hsdp": {"dp": 2, "fsdp": 2},
    "tp": {"tp": 2},
    "tp, fsdp": {"tp": 2, "fsdp": 2},
    "ring": {"cp": 2},
    "1f1b": {"pp": 2},
    "1f1b, fsdp": {"pp": 2, "fsdp": 2},
    "zbv": {"pp": 2, "schedule": "zbv", "virtual_stages": 2},
    "zero 0": {"dp": 2, "engine": "deepspeed"},
    "zero 1": {"dp": 2, "zero": 1},
    "zero 3": {"dp": 2, "zero": 3},
    "zero 1, torch": {"dp": 2, "zero": 1, "engine": "torch"},
    "ep": {"ep": 2, "recompute": "full"},
    "ep, fsdp": {"ep": 2, "fsdp": 2, "recompute": "full"},
    "ep, fsdp, kept": {"ep": 2, "fsdp": 2, "reshard_after_forward": False},
    "ep, fsdp beyond experts": {"ep": 4, "fsdp": 4},
    "ep, fsdp, tp": {"ep": 2, "fsdp": 2, "tp": 2},
}


def case(layout: dict[str, Any], **workload: Any) -> Case:
    sizes = {"seq_len": 256, "micro_batch": 4, "micro_batches": 4} | workload
    model = "mixtral-1m" if "ep" in layout else "llama-1m"
    return case_from({"model": model, "layout": layout, "workload": sizes, "cluster": {"device": "h100-sxm"}})


def event_count(model: MemoryModel) -> int:
    return sum(len(stretch.phase.events) for stretch in model.step(0).stretches)


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_free_finds_what_it_undoes_and_nothing_shrinks(name: str) -> None:
    """Blocks hold at least the walk's bytes, each at most 512 and a split's 1 MiB more; segments hold the blocks."""
    model = MemoryModel(case(LAYOUTS[name]))
    found = replay(model, 0)
    assert found.unpaired == 0
    peak = model.peak_bytes(0)
    assert peak <= found.allocated_bytes <= found.reserved_bytes
    alive = max(1, event_count(model))
    assert found.allocated_bytes <= peak + alive * (MIB + 512)
    assert (found.retries, found.is_full) == (0, False)
    expandable = replay(model, 0, AllocatorSettings(expandable_segments=True))
    assert peak <= expandable.allocated_bytes <= found.allocated_bytes
    assert expandable.unpaired == 0


@pytest.mark.parametrize("name", ["single", "ddp", "fsdp", "1f1b", "zero 0", "zero 1, torch", "tp, fsdp"])
def test_tensors_sum_to_what_is_held(name: str) -> None:
    model = MemoryModel(case(LAYOUTS[name]))
    ledger = model.ledger_of_rank(0)
    tensors = sum(count for count, _ in owned_weights(ledger))
    for item in model.held(0):
        sizes = tensor_sizes(model.case, ledger, item)
        assert sum(sizes) == item.nbytes
        assert min(sizes) > 0
        if item.component is Component.PARAMETERS:
            assert len(sizes) == tensors
        if item.name == "adamw state" and name != "zero 1, torch":
            assert len(sizes) == 2 * tensors  # two moments each


def test_parameters_are_the_models_own_tensors() -> None:
    """llama-1m: per block four projections, three matrices of the MLP and two norms, each 4 bytes an element."""
    model = MemoryModel(case({}))
    spec, ledger = model.case.model, model.ledger_of_rank(0)
    parameters = next(item for item in model.held(0) if item.component is Component.PARAMETERS)
    sizes = tensor_sizes(model.case, ledger, parameters)
    assert len(sizes) == 9 * spec.layers + (2 if spec.tied else 3)
    assert sizes.count(4 * spec.hidden) == 2 * spec.layers + 1
    assert max(sizes) == 4 * spec.vocab * spec.hidden


@pytest.mark.parametrize("name", ["single", "fsdp", "1f1b", "zbv", "zero 1"])
def test_a_third_step_is_like_the_second(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is left behind: gradients go, buffers are there again."""
    model = MemoryModel(case(LAYOUTS[name]))
    two = replay(model, 0)
    monkeypatch.setattr("memory.replay.STEPS", 4)
    four = replay(model, 0)
    assert four.allocated_bytes == two.allocated_bytes
    assert four.reserved_bytes <= two.reserved_bytes + 2 * MIB


def test_a_device_that_is_too_small_is_full_and_one_that_just_holds_it_empties_its_cache() -> None:
    model = MemoryModel(case(LAYOUTS["fsdp"]))
    free = replay(model, 0)
    tight = replay(model, 0, limit=free.reserved_bytes - 2 * MIB)
    assert not tight.is_full
    assert tight.retries > 0
    assert tight.reserved_bytes <= free.reserved_bytes - 2 * MIB
    assert replay(model, 0, limit=free.allocated_bytes - MIB).is_full
    assert replay(model, 0, limit=free.reserved_bytes).retries == 0


def test_workspaces_are_reserved_too() -> None:
    model = MemoryModel(case({}))
    bare, kept = replay(model, 0), replay(model, 0, workspaces=(32 * MIB, 32 * MIB))
    assert kept.allocated_bytes == bare.allocated_bytes + 64 * MIB
    assert kept.reserved_bytes >= bare.reserved_bytes + 32 * MIB


@pytest.mark.parametrize("name", ["single", "fsdp", "1f1b", "zero 3"])
def test_blocks_of_one_size_each_hold_the_peak(name: str) -> None:
    model = MemoryModel(case(LAYOUTS[name]))
    assert segregated_bytes(model, 0) >= model.peak_bytes(0)
    assert segregated_bytes(model, 0, (32 * MIB,)) == segregated_bytes(model, 0) + 32 * MIB


def test_the_streams_of_fsdp2_are_told_by_names_that_the_walk_uses() -> None:
    """Each name occurs in some layout, so that none is misspelt; the gathers' stream is not the reductions'."""
    seen: dict[str, Stream] = {}
    for layout in (LAYOUTS["fsdp"], LAYOUTS["fsdp, bf16 reduced"], LAYOUTS["hsdp"] | {"reduction": "micro-batch"}):
        for reduced in ({}, {"reduction": "micro-batch"}):
            for stretch in MemoryModel(case(layout | reduced)).step(0).stretches:
                seen |= {event.label.name: stream_of(event.label) for event in stretch.phase.events}
    assert set(seen) >= ON_GATHER | ON_REDUCE
    assert {name for name, stream in seen.items() if stream is Stream.GATHER} == ON_GATHER
    assert {name for name, stream in seen.items() if stream is Stream.REDUCE} == ON_REDUCE
    whole = Label(Component.GRADIENTS, "gradients", "", 0, "autograd")
    assert stream_of(Event(1, whole).label) is Stream.MAIN  # without FSDP they are the caller's
    assert stream_of(replace(whole, source=SOURCE)) is Stream.REDUCE


def test_a_long_1f1b_is_replayed_as_a_short_one() -> None:
    """Beyond two micro-batches a rank they repeat; only what is held for each of them grows."""
    layout = LAYOUTS["1f1b"]
    models = [MemoryModel(case(layout, micro_batches=count)) for count in (4, 16)]
    held = [sum(item.nbytes for item in model.held(0)) for model in models]
    peaks = [model.peak_bytes(0) for model in models]
    assert peaks[1] - held[1] == peaks[0] - held[0]
    short, long = (replay(model, 0) for model in models)
    assert long.allocated_bytes - short.allocated_bytes == pytest.approx(held[1] - held[0], abs=MIB)
