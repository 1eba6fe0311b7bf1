"""Latent attention on several ranks: training is the single process's and its memory and traffic the formulas', and
served with tensor parallelism every rank keeps the whole latents and gives its part of the single rank's logits."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from memory.caches.model import cache_bytes
from parallelism.mesh import build_mesh
from parallelism.strategies import parallelize
from suite.cache import LatentForm
from suite.caches.build import build_cache
from suite.caches.core import next_logits, through
from suite.case import Case, case_from
from suite.layout import Layout, Recompute
from suite.models.decoder import DecoderSpec
from suite.models.decoder_module import Decoder
from suite.models.latent_shape import Latent
from suite.spec import AttentionKernel, LossKernel
from tests.distributed.judgement import differences
from tests.distributed.plans import NUMERICS, single_process, trained
from tests.distributed.ranks import run_cases, run_jobs
from tests.distributed.test_traffic import case_of as short_case
from tests.distributed.test_traffic import measure as traffic
from tests.distributed.test_traffic import measured, predicted
from tests.distributed.traces import CPU, RankTrace, merged, record
from tests.fake.measured import measure
from tests.fake.workspace import without_workspace

pytestmark = pytest.mark.distributed

LATENT = DecoderSpec(
    name="latent", layers=2, hidden=26, heads=4, ffn=36, vocab=51, max_positions=20,
    latent=Latent(kv_rank=11, rope_dim=4, nope_dim=6, v_dim=8, q_rank=14),
)  # fmt: skip
WIDE = replace(LATENT, name="latent-tied", tied=True, latent=Latent(kv_rank=10, rope_dim=4, nope_dim=6, v_dim=10))


def trial(spec: DecoderSpec, layout: Layout, attention: str, micro_batches: int = 1) -> Case:
    """A case in fp64, which leaves no room for mistakes."""
    kernels = AttentionKernel(attention), LossKernel.PLAIN
    return trained(spec, layout, NUMERICS["fp64-adamw"], 8, micro_batches, *kernels)


FULL, CORE, OPERATORS = (Recompute.parse(name) for name in ("full", "selective", "selective-op"))
TRIALS = [
    trial(LATENT, Layout(dp=2, recompute=OPERATORS), "flash"),
    trial(LATENT, Layout(fsdp=2, recompute=CORE), "eager", 2),
    trial(LATENT, Layout(tp=2, recompute=CORE), "flash"),
    trial(WIDE, Layout(tp=2, recompute=FULL), "eager", 2),
    trial(WIDE, Layout(pp=2), "flash", 4),
]


@pytest.fixture(scope="module")
def traces() -> dict[Case, tuple[RankTrace, ...]]:
    """Every trial's run, and the single process's."""
    cases = list(dict.fromkeys([*TRIALS, *map(single_process, TRIALS)]))
    return run_cases(cases, partial(record, double=True), deadline_s=100.0)


@pytest.mark.parametrize("case", TRIALS, ids=lambda case: case.label)
def test_layouts_compute_what_one_process_computes(case: Case, traces: dict[Case, tuple[RankTrace, ...]]) -> None:
    assert not differences(merged(traces[case]), merged(traces[single_process(case)]), case, is_double=True)


SIZES = {"kv_rank": 41, "rope_dim": 8, "nope_dim": 15, "v_dim": 20, "q_rank": 29}
MODEL = {"layers": 2, "hidden": 96, "heads": 6, "ffn": 162, "vocab": 301, "max_positions": 128, "latent": SIZES}


def held(layout: dict[str, Any], **workload: Any) -> Case:
    """A case whose memory is measured."""
    sizes = {"seq_len": 40, "micro_batch": 3}
    return case_from({"model": MODEL, "layout": layout, "workload": sizes | workload})


MEASURED = [
    held({"fsdp": 2, "recompute": "selective"}, precision="bf16-mixed"),
    held({"tp": 2, "recompute": "selective-op"}, precision="fp32", attention="eager"),
]


@pytest.fixture(scope="module")
def memory() -> dict[Case, Any]:
    """Every case's memory, predicted and measured, on every rank."""
    with without_workspace():  # the ranks are forked inside, and inherit it
        return run_cases(MEASURED, measure, deadline_s=100.0)


@pytest.mark.parametrize("case", MEASURED, ids=lambda case: case.label)
def test_every_moment_is_predicted_on_every_rank(case: Case, memory: dict[Case, Any]) -> None:
    for rank, found in enumerate(memory[case]):
        assert not found.states_off(), f"rank {rank}"
        assert not found.totals_off(2048), f"rank {rank}"
        assert not found.components_off(allowed=2048), f"rank {rank}"


def test_what_tensor_parallelism_sends_is_the_formulas_to_the_byte() -> None:
    case = short_case(MODEL, {"tp": 2})
    for rank, samples in enumerate(run_cases([case], traffic, deadline_s=60.0)[case]):
        assert measured(samples) == predicted(case, rank), f"rank {rank}"


# --- serving ---------------------------------------------------------------------------------------------------------

SERVED: dict[str, Any] = {
    "model": MODEL, "workload": {"seq_len": 12, "micro_batch": 2, "precision": "fp32"}, "serving": {"new_tokens": 4},
}  # fmt: skip


def answer(case: Case, rank: int) -> tuple[Tensor, int]:
    """A rank's columns of the logits of the tokens after the prompt, [b, n, V / tp], and bytes that its cache holds."""
    torch.manual_seed(5)
    model = Decoder(case.model)
    model.reset_parameters()
    ids = torch.randint(case.model.vocab, (2, 15))
    spread = parallelize(model, build_mesh(case.layout, "cpu"), case) if case.layout.tp > 1 else model
    assert isinstance(spread, Decoder)
    cache, places = build_cache(case, CPU), torch.arange(15).expand(2, -1)
    steps = [slice(12), *(slice(at, at + 1) for at in range(12, 15))]
    with through(spread, cache, case.cache.latent_form), torch.no_grad():
        found = [next_logits(spread, cache, ids[:, step], places[:, step]) for step in steps]
    nbytes = sum(tensor.untyped_storage().nbytes() for tensors in cache.held().values() for tensor in tensors)
    return torch.stack(found, dim=1), nbytes


@pytest.mark.parametrize("form", list(LatentForm))
def test_two_ranks_answer_as_one_and_each_keeps_all_latents(form: LatentForm) -> None:
    alone, case = (
        case_from(SERVED | {"cache": {"latent_form": form.value}, "layout": {"tp": tp}}) for tp in (1, 2)
    )  # fmt: skip
    (expected, nbytes), *_ = run_jobs(1, [partial(answer, alone)])[0].result()
    ranks = run_jobs(2, [partial(answer, case)])[0].result()
    torch.testing.assert_close(torch.cat([logits for logits, _ in ranks], dim=-1), expected, atol=1e-5, rtol=0)
    assert [found for _, found in ranks] == [nbytes, nbytes]
    assert nbytes == cache_bytes(alone) == cache_bytes(case, 0) == cache_bytes(case, 1)
