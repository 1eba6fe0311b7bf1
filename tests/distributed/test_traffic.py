"""Formula against probe on every rank of forked gloo groups: bytes sent, payload and calls of every collective."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch

from memory.estimate import MemoryModel
from parallelism.batches import batch_of
from parallelism.building import make_trainer
from parallelism.mesh import build_mesh
from parallelism.traffic import messages_of
from parallelism.traffic_pass import measure_traffic
from suite.case import Case, case_from
from suite.collectives import Collective, tally
from suite.data import made_up_examples
from suite.record import Quantity, Sample
from tests.distributed.ranks import run_cases, run_on_ranks

pytestmark = pytest.mark.distributed

#: 301, 161 and 90 do not divide by 2, 3 and 4 alike: shards are uneven, and some are empty
GPT = {"layers": 2, "hidden": 90, "heads": 3, "ffn": 366, "vocab": 301, "max_positions": 128, "norm": "layernorm",
       "activation": "gelu", "position": "learned", "bias": True, "tied": True}  # fmt: skip
LLAMA = {"layers": 3, "hidden": 96, "heads": 6, "kv_heads": 2, "ffn": 161, "vocab": 302, "max_positions": 128}
NARROW = {"layers": 2, "hidden": 36, "heads": 9, "kv_heads": 1, "head_dim": 2, "ffn": 50, "vocab": 301,
          "max_positions": 128, "tied": True}  # fmt: skip
#: 7 MiB of gradients, a head of 1.5 MiB made first: two buckets
LARGE = {"layers": 3, "hidden": 192, "heads": 6, "ffn": 576, "vocab": 2048, "max_positions": 128}


def case_of(model: dict[str, Any], layout: dict[str, Any], micro_batches: int = 1, **workload: Any) -> Case:
    """A case of a few tokens."""
    sizes = {"seq_len": 8, "micro_batch": 1, "micro_batches": micro_batches, "precision": "fp32"}
    return case_from({"model": model, "layout": layout, "workload": sizes | workload})


BF16 = {"precision": "bf16-mixed"}
PURE = {"precision": "bf16"}
CASES = [
    case_of(GPT, {"dp": 2, "reduction": "micro-batch"}, 2),
    case_of(LLAMA, {"dp": 2, "recompute": "full"}, **BF16),
    case_of(LARGE, {"dp": 2}),
    case_of(GPT, {"fsdp": 2, "reduction": "micro-batch"}, 3, **BF16),
    case_of(LLAMA, {"fsdp": 2, "reshard_after_forward": False, "recompute": "selective"}, 2),
    case_of(GPT, {"fsdp": 3}, 2),
    case_of(LLAMA, {"fsdp": 3, "recompute": "full"}, loss="chunked", **BF16),
    case_of(NARROW, {"dp": 3}, 2, **BF16),
    case_of(NARROW, {"fsdp": 4}, optimizer="sgd", **BF16),
    case_of(NARROW, {"fsdp": 4, "reshard_after_forward": False}, 2, **BF16),
    case_of(LLAMA, {"fsdp": 4, "reshard_after_forward": 2}, 2, **BF16),
    case_of(LARGE, {"dp": 2, "bucket_mib": 2}),
    case_of(NARROW, {"fsdp": 3, "forward_prefetch": 1, "backward_prefetch": 2, "reduce_type": "bf16"}, 2, **BF16),
    case_of(GPT, {"dp": 2, "fsdp": 2, "reduction": "micro-batch"}, 3),
    case_of(LLAMA, {"dp": 2, "fsdp": 2, "reduce_type": "bf16"}, 2, **BF16),
    case_of(LARGE, {"dp": 2}, **PURE),
    case_of(GPT, {"dp": 2, "zero": 1, "engine": "torch"}, **PURE),
    case_of(NARROW, {"dp": 2, "fsdp": 2}, **PURE),
    case_of(LLAMA, {"fsdp": 2, "reduce_type": "bf16"}, **PURE),
    case_of(LLAMA, {"dp": 2}, precision="fp16-mixed"),
    case_of(GPT, {"dp": 2, "fsdp": 2}, precision="fp16-mixed"),
]


def measure(case: Case, rank: int) -> list[Sample]:
    """The traffic pass of a case on this rank, on random tokens."""
    device = torch.device("cpu")
    trainer = make_trainer(case, build_mesh(case.layout, "cpu"), device)
    examples = made_up_examples(case, 0, case.global_batch)
    return measure_traffic(lambda step: trainer.step(step, batch_of(case, rank, step, examples, device)), rank)


def measured(samples: list[Sample]) -> dict[tuple[Quantity, Collective | None], float]:
    """The samples' values by what they are of."""
    return {(sample.quantity, sample.collective): sample.value for sample in samples}


def predicted(case: Case, rank: int) -> dict[tuple[Quantity, Collective | None], float]:
    """The same of the formulas."""
    table: dict[tuple[Quantity, Collective | None], float] = {}
    for collective, sums in tally(messages_of(case, MemoryModel(case).ledger_of_share(rank), rank)).items():
        table[Quantity.BYTES_SENT, collective] = float(sums.sent)
        table[Quantity.PAYLOAD, collective] = sums.payload
        table[Quantity.COLLECTIVE_CALLS, collective] = sums.count
    return table


@pytest.fixture(scope="module")
def heard() -> dict[Case, tuple[list[Sample], ...]]:
    """Every case's samples, rank by rank."""
    return run_cases(CASES, measure, deadline_s=120.0)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.model.hidden}-{case.label}")
def test_formulas_and_probe_are_equal_to_the_byte(case: Case, heard: dict[Case, tuple[list[Sample], ...]]) -> None:
    assert len(heard[case]) == case.layout.world_size
    for rank, samples in enumerate(heard[case]):
        assert {sample.rank for sample in samples} == {rank}
        assert measured(samples) == predicted(case, rank), f"rank {rank}"


def test_the_buckets_of_a_larger_model_are_several(heard: dict[Case, tuple[list[Sample], ...]]) -> None:
    """So that the equality above is one of calls too: head, first bucket; the rest, second."""
    found = measured(heard[CASES[2]][0])
    assert found[Quantity.COLLECTIVE_CALLS, Collective.ALL_REDUCE] == 2


def test_a_rank_alone_says_that_it_sends_nothing() -> None:
    case = case_of(NARROW, {})
    ((sample,),) = run_on_ranks(1, partial(measure, case))
    assert (sample.quantity, sample.value, sample.collective) == (Quantity.BYTES_SENT, 0.0, None)
    assert predicted(case, 0) == {}
