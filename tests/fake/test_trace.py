"""The trace tier against the allocator and against the formulas: one process, every moment, any world."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import psutil
import pytest
import torch
import torch.distributed as dist
from torch._subclasses.fake_tensor import FakeTensorMode

from memory.estimate import MemoryModel
from memory.trace import Trace, trace, trace_case, trace_transformers
from parallelism.fake_world import fake_world
from suite.case import Case, case_from
from suite.fake_storages import track_storages
from suite.record import STATE, Component, MemoryEstimate, Moment, Sample
from tests.fake.measured import LEVELS, measure
from tests.fake.test_memory_single import MODELS, case_of
from tests.fake.workspace import without_workspace

pytestmark = pytest.mark.fake

collectives: Any = torch.ops._c10d_functional
Table = dict[tuple[Moment | None, Component | None], int]
#: a Python number that autograd keeps is 8 bytes in the allocator: one a block at most
NUMBERS = 64
#: AdamW's, a norm's and a loss's scalars: traced, and not modelled
SCALARS = 1024
#: both forms, tied and not; every kind of recomputation; fused and open attention and loss; both optimizers
CHOICES: list[dict[str, Any]] = [
    {"model": "gpt", "precision": "fp32", "attention": "flash", "seq_len": 17},
    {"model": "gpt", "precision": "bf16-mixed", "attention": "eager", "seq_len": 48, "recompute": "selective",
     "micro_batches": 2, "micro_batch": 2},
    {"model": "gqa", "precision": "fp32", "attention": "eager", "seq_len": 48, "recompute": "full", "loss": "chunked",
     "optimizer": "sgd", "micro_batches": 2},
    {"model": "gqa", "precision": "bf16-mixed", "attention": "flash", "seq_len": 192, "recompute": "every-2"},
]  # fmt: skip
GQA = {**MODELS["gqa"], "layers": 4, "heads": 4, "kv_heads": 4, "tied": True}
#: (layout, workload, rank): first, middle and last stages; worlds of 8 to 64 ranks
WORLDS: list[tuple[dict[str, Any], dict[str, Any], int]] = [
    ({"pp": 2, "tp": 2, "fsdp": 2, "schedule": "interleaved-1f1b", "virtual_stages": 2}, {"micro_batches": 2}, 7),
    ({"pp": 4, "tp": 4, "fsdp": 4}, {"micro_batches": 4, "precision": "bf16-mixed"}, 21),
    ({"dp": 8, "cp": 2}, {}, 5),
    ({"dp": 2, "pp": 4, "schedule": "gpipe"}, {"micro_batches": 2}, 7),
]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Workspace grows with the threads: one on every side."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with patch("memory.estimate.threads_of", lambda case: 1), patch("memory.trace.threads_of", lambda case: 1):
        yield
    torch.set_num_threads(before)


def table_of(samples: tuple[Sample, ...]) -> Table:
    return {(item.moment, item.component): int(item.value) for item in samples}


def totals_of(estimate: MemoryEstimate) -> Table:
    return {(moment, None): estimate.total_bytes(moment) for moment in estimate.by_moment}


def apart(left: Table, right: Table, allowed: int) -> list[str]:
    """Keys of either whose bytes are further apart than allowed; what one side does not have is zero."""
    keys = sorted(left.keys() | right.keys(), key=str)
    return [f"{key}: {off:+}" for key in keys if abs(off := left.get(key, 0) - right.get(key, 0)) > allowed]


# --- against the allocator -----------------------------------------------------------------------------------


@pytest.mark.parametrize("choice", CHOICES, ids=lambda choice: "-".join(map(str, choice.values())))
def test_a_trace_is_what_the_allocator_hands_out(choice: dict[str, Any]) -> None:
    """Every component of every moment; in bf16 oneDNN's packing is left out on both sides."""
    case = case_of(choice)
    with without_workspace():
        measured = measure(case).measured
    assert not apart(table_of(trace(case, 0, packs_products=False).samples), measured, NUMBERS)


def test_onednns_packing_is_in_the_trace() -> None:
    """Of a model that the bench trains the trace's peak is the measured one within half a percent."""
    workload = {"seq_len": 128, "micro_batch": 4, "precision": "bf16-mixed"}
    case = case_from({"model": "gpt-1m", "workload": workload})
    found = trace(case, 0)
    traced = max(nbytes for (_, component), nbytes in table_of(found.samples).items() if component is None)
    measured = max(nbytes for (_, component), nbytes in measure(case).measured.items() if component is None)
    assert abs(traced / measured - 1) < 0.005
    assert any(found.workspace_bytes.values())
    assert not any(found.workspace_bytes[moment] for moment in LEVELS)


# --- against the formulas ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("layout", "workload", "rank"), WORLDS, ids=str)
def test_any_rank_of_any_world_is_as_the_formulas_say(
    layout: dict[str, Any], workload: dict[str, Any], rank: int
) -> None:
    """Every total, every state component, and at levels every component, but for scalars."""
    case = case_from({"model": GQA, "layout": layout, "workload": {"seq_len": 48, **workload}})
    found = table_of(tuple(trace(case, rank, packs_products=False).samples))
    with patch("suite.tape.Tape.packs_products", False):
        estimate = MemoryModel(case).estimate(rank)
    totals = {key: nbytes for key, nbytes in found.items() if key[1] is None}
    assert not apart(totals, totals_of(estimate), SCALARS)
    predicted = {(at, part): size for at in LEVELS for part, size in estimate.by_moment[at].items()}
    levels = {key: nbytes for key, nbytes in found.items() if key[0] in LEVELS and key[1] is not None}
    assert not apart(levels, predicted, SCALARS)
    states = {key for key in predicted.keys() | levels.keys() if key[1] in STATE}
    assert not [key for key in states if predicted.get(key, 0) != levels.get(key, 0)]
    assert not dist.is_initialized()


def test_the_largest_models_need_no_memory() -> None:
    """Two layers of Llama 3.1 405B on one rank of 64: gigabytes traced, megabytes used."""
    wide = {"layers": 2, "hidden": 16384, "heads": 128, "kv_heads": 8, "ffn": 53248, "vocab": 128256,
            "max_positions": 8192}  # fmt: skip
    case = case_from({"model": wide, "layout": {"fsdp": 8, "tp": 8}, "workload": {"seq_len": 8192}})
    process = psutil.Process()
    before = process.memory_info().rss
    totals = [sample.value for sample in trace_case(case, 63) if sample.component is None]
    assert max(totals) > 2**33
    assert process.memory_info().rss - before < 2**28
    peak = MemoryModel(case).estimate(63).peak_bytes
    assert max(totals) == pytest.approx(peak, abs=SCALARS)


# --- transformers' models ------------------------------------------------------------------------------------

CONFIG = """{"model_type": "llama", "hidden_size": 96, "intermediate_size": 160, "num_hidden_layers": 3,
"num_attention_heads": 6, "num_key_value_heads": 2, "vocab_size": 1000, "max_position_embeddings": 900,
"rms_norm_eps": 1e-5, "tie_word_embeddings": false}"""


def hf_trace(folder: Path, layout: dict[str, Any]) -> tuple[Case, Trace]:
    path = folder / "config.json"
    path.write_text(CONFIG)
    case = case_from({"model": MODELS["gqa"], "layout": layout, "workload": {"seq_len": 48}})
    return case, trace_transformers(case, 0, str(path))


def test_transformers_model_holds_the_same_state_under_fsdp2(tmp_path: Path) -> None:
    """The same parameters, so the same bytes of them, their gradients and AdamW's state, in a unit a layer."""
    case, found = hf_trace(tmp_path, {"fsdp": 4})
    table, estimate = table_of(found.samples), MemoryModel(case).estimate(0)
    for moment in (Moment.AFTER_BACKWARD, Moment.STEADY):
        for component in (Component.PARAMETERS, Component.GRADIENTS, Component.OPTIMIZER):
            assert table.get((moment, component), 0) == estimate.by_moment[moment].get(component, 0)
    assert table[Moment.BACKWARD_PEAK, Component.GATHERED] > 0


# --- the tracker ---------------------------------------------------------------------------------------------


def test_storages_by_hand() -> None:
    """A view shares its storage; a storage outlives the tensor it was made for; a resized one is another block."""
    with FakeTensorMode(), track_storages() as tracker:
        first = torch.empty(100)
        view = first[10:20]
        del first
        second = torch.empty(7, dtype=torch.bfloat16)
        second.untyped_storage().resize_(0)
        tracker.mark("here")
        del view
    blocks, here = tracker.recorded().blocks, tracker.recorded().marks[0].at
    assert [(block.nbytes, block.is_alive(here)) for block in blocks] == [(400, True), (14, False)]
    assert blocks[0].died is not None
    assert tracker.recorded().totals == [400, 414, 400, 0]


def test_a_tensor_of_given_numbers_is_heard() -> None:
    with FakeTensorMode(), track_storages() as tracker:
        places = torch.tensor([3, 1, 2])
        assert tracker.address(places[1:]) == 1
    assert [block.nbytes for block in tracker.recorded().blocks] == [24]


def test_a_wait_hands_back_what_it_is_given() -> None:
    with fake_world(0, 2), FakeTensorMode(), track_storages() as tracker:
        given = torch.empty(100)
        gathered = collectives.all_gather_into_tensor(given, 2, "0")
        waited = collectives.wait_tensor(gathered)
        tracker.mark("here")
        assert waited.shape == (200,)
    assert [block.nbytes for block in tracker.recorded().blocks] == [400, 800]


@pytest.mark.parametrize("is_shared", [False, True])
def test_the_engine_sums_in_place_only_what_it_alone_holds(is_shared: bool) -> None:
    """Two gradients meet on x: the sum takes the first one's place, unless the first is somebody else's too."""
    with FakeTensorMode(), track_storages() as tracker:
        x = torch.empty(1000, requires_grad=True)
        kept: list[torch.Tensor] = []
        outputs = [x.sin(), x.cos()]
        if is_shared:
            for output in outputs:
                output.grad_fn.register_hook(lambda made, _: kept.extend(made))
        tracker.mark("backward")
        torch.autograd.grad(outputs, [x], [torch.empty(1000), torch.empty(1000)])
    start = tracker.recorded().marks[0].at
    made = [block for block in tracker.recorded().blocks if block.born > start and block.nbytes == 4000]
    # two seeds; cos x and its product; sin x, its negative and its product; the sum where it is new
    assert len(made) == 2 + 2 + 3 + is_shared


def test_a_process_with_a_group_is_refused() -> None:
    case = case_from({"model": GQA, "layout": {"fsdp": 2}, "workload": {"seq_len": 48}})
    with patch("torch.distributed.is_initialized", lambda: True), pytest.raises(RuntimeError, match="process group"):
        trace(case, 0)
