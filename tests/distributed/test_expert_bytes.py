"""Expert parallelism's bytes by formula, of the routing that was recorded, against allocator and probe on forked gloo
ranks: every moment's memory, and what every collective is handed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from memory.estimate import MemoryModel
from parallelism.batches import batch_of
from parallelism.building import make_trainer
from parallelism.expert.recording import Recording
from parallelism.mesh import build_mesh
from parallelism.traffic import estimate_routed
from parallelism.traffic_pass import measure_traffic
from suite.case import Case, case_from
from suite.collectives import Collective, tally
from suite.received import Rows
from suite.record import Quantity, Sample
from suite.tasks.base import Examples
from tests.distributed.ranks import run_cases
from tests.fake.measured import Beside, measure

pytestmark = pytest.mark.distributed

#: 6 experts, a block without: shards of routers are uneven, and ranks of 4 have one expert or two
MODEL = {"layers": 3, "hidden": 64, "heads": 4, "kv_heads": 2, "ffn": 96, "vocab": 301, "max_positions": 128,
         "dense_layers": 1, "experts": {"count": 6, "top_k": 2, "ffn": 48, "balance": "bias"}}  # fmt: skip
#: one expert a rank of 2, which FSDP2 shards along its rows
FEW = MODEL | {"name": "few", "experts": {"count": 2, "top_k": 1, "ffn": 48}}

SHARED = MODEL | {"name": "shared", "experts": {"count": 6, "top_k": 2, "ffn": 48, "balance": "bias", "shared": 1}}


def case_of(layout: dict[str, Any], model: dict[str, Any] = MODEL, **workload: Any) -> Case:
    """A case of a micro-batch whose routing is recorded."""
    sizes = {"seq_len": 32, "micro_batch": 3, "precision": "fp32"}
    return case_from({"model": model, "layout": layout, "workload": sizes | workload})


CASES = [
    case_of({"ep": 2}),
    case_of({"ep": 2}, precision="bf16-mixed"),
    case_of({"ep": 2, "recompute": "selective-op"}, micro_batches=3),
    case_of({"ep": 2, "recompute": "full"}, SHARED),
    case_of({"ep": 2, "fsdp": 2}, precision="bf16-mixed"),
    case_of({"ep": 2, "fsdp": 2}, FEW),
]
Heard = tuple[list[Sample], tuple[Rows, ...]]


def run(case: Case, rank: int) -> tuple[Beside, Heard]:
    """The memory pass and the traffic pass of a case on this rank."""
    return measure(case, rank), hear(case, rank)


def hear(case: Case, rank: int) -> Heard:
    """The traffic pass, and the rows that this rank's experts received in it."""
    device = torch.device("cpu")
    mesh = build_mesh(case.layout, "cpu")
    ids = np.random.default_rng(0).integers(case.model.vocab, size=(case.global_batch, case.workload.seq_len))
    with Recording(case) as recording:
        trainer = recording.of(lambda: make_trainer(case, mesh, device))()
        samples = measure_traffic(
            lambda step: trainer.step(step, batch_of(case, rank, step, Examples(ids, ids), device)), rank
        )
    return samples, recording.rows


@pytest.fixture(scope="module")
def found() -> dict[Case, tuple[tuple[Beside, Heard], ...]]:
    """Every case's passes, rank by rank."""
    return run_cases(CASES, run, deadline_s=120.0)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.model.name} {case.label}")
def test_memory_is_equal_to_the_byte(case: Case, found: dict[Case, tuple[tuple[Beside, Heard], ...]]) -> None:
    for rank, (beside, _) in enumerate(found[case]):
        assert beside.states_off() == [], f"rank {rank}"
        assert beside.totals_off() == [], f"rank {rank}"
        assert beside.components_off() == [], f"rank {rank}"


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.label)
def test_traffic_is_equal_to_the_byte(case: Case, found: dict[Case, tuple[tuple[Beside, Heard], ...]]) -> None:
    model = MemoryModel(case, received={rank: rows for rank, (_, (_, rows)) in enumerate(found[case])})
    for rank, (_, (samples, _)) in enumerate(found[case]):
        sums = tally(estimate_routed(case, model.ledgers_of_share(rank), rank).messages)
        predicted = {
            (quantity, collective): float(value)
            for collective, row in sums.items()
            for quantity, value in (
                (Quantity.BYTES_SENT, row.sent), (Quantity.PAYLOAD, row.payload), (Quantity.COLLECTIVE_CALLS, row.count)
            )
        }  # fmt: skip
        assert {(item.quantity, item.collective): item.value for item in samples} == predicted, f"rank {rank}"


def test_all_rows_arrive_somewhere(found: dict[Case, tuple[tuple[Beside, Heard], ...]]) -> None:
    """The recorded routing is one: what ranks of a group receive is what they send, top_k rows a token."""
    rows = [heard[1][0] for _, heard in found[CASES[0]]]
    assert [sum(block) for block in zip(*rows, strict=True)] == [0, 2 * 3 * 32 * 2, 2 * 3 * 32 * 2]
    assert any(mine != other for mine, other in zip(*rows, strict=True)), "routed unevenly, or it proves little"


def test_the_all_to_alls_are_counted_by_hand(found: dict[Case, tuple[tuple[Beside, Heard], ...]]) -> None:
    """Of each of two mixtures 6 counts of 8 bytes, and rows of 64 fp32: sent and received once forward, once back."""
    for _, (samples, (rows,)) in found[CASES[0]]:
        payload = {item.collective: item.value for item in samples if item.quantity is Quantity.PAYLOAD}
        assert payload[Collective.ALL_TO_ALL] == 2 * 6 * 8 + sum(2 * (3 * 32 * 2 + came) for came in rows[1:]) * 64 * 4
