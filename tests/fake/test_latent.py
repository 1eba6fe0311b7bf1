"""Latent attention's cache: both forms answer as the model without a cache does, and its bytes are the formula's."""

from __future__ import annotations

import pytest
import torch

from memory.caches.model import cache_bytes, cache_terms
from suite.allocations import mark, record_allocations
from suite.cache import LatentForm
from suite.caches.base import NOTHING
from suite.caches.build import build_cache
from suite.caches.core import next_logits, through
from suite.case import Case, case_from
from suite.models.decoder_module import Decoder
from suite.record import Quantity

pytestmark = pytest.mark.fake

SIZES = {"kv_rank": 32, "rope_dim": 8, "nope_dim": 16, "v_dim": 12}
MODELS = {
    "direct": SIZES,
    "through a queries' latent": SIZES | {"q_rank": 24},
    "values as wide as keys": SIZES | {"v_dim": 24},
}
CPU = torch.device("cpu")


def case_of(name: str, **cache: str) -> Case:
    model = {"layers": 3, "hidden": 64, "heads": 4, "vocab": 512, "max_positions": 64, "ffn": 96}
    return case_from({
        "model": model | {"latent": MODELS[name]}, "serving": {"new_tokens": 8}, "cache": cache,
        "workload": {"seq_len": 24, "micro_batch": 3, "precision": "fp32"},
    })  # fmt: skip


def model_of(case: Case) -> Decoder:
    torch.manual_seed(3)
    model = Decoder(case.model)
    model.reset_parameters()
    with torch.no_grad():
        for parameter in model.parameters():  # a unit norm would hide a mistake
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model.eval()


@pytest.mark.parametrize("form", list(LatentForm))
@pytest.mark.parametrize("name", MODELS)
def test_both_forms_answer_as_the_model_without_a_cache(name: str, form: LatentForm) -> None:
    case = case_of(name, latent_form=form.value)
    model, ids, pads = model_of(case), torch.randint(512, (3, 31)), torch.tensor([0, 5, 23])
    places = torch.arange(31) - pads[:, None]
    places, cache = torch.where(places < 0, NOTHING, places), build_cache(case, CPU)
    with through(model, cache, case.cache.latent_form), torch.no_grad():
        steps = [slice(24), *(slice(at, at + 1) for at in range(24, 31))]
        found = torch.stack([next_logits(model, cache, ids[:, step], places[:, step]) for step in steps], dim=1)
    for row, pad in enumerate(pads):
        with torch.no_grad():
            torch.testing.assert_close(found[row], model(ids[row : row + 1, pad:])[0, -8:], atol=1e-5, rtol=0)


@pytest.mark.parametrize("allocation", ["static", "growing"])
def test_the_allocator_gives_a_latent_cache_the_bytes_of_the_formula(allocation: str) -> None:
    case = case_of("direct", allocation=allocation)
    model, ids = model_of(case), torch.randint(512, (3, 31))
    with record_allocations() as trace:
        cache = build_cache(case, CPU)
        with through(model, cache), torch.no_grad():
            next_logits(model, cache, ids, torch.arange(31).expand(3, -1))
        held = {tensor.untyped_storage().data_ptr() for tensors in cache.held().values() for tensor in tensors}
        mark("answered")
    found = [block.nbytes for block in trace.alive(trace.marks[0].at) if block.address in held]
    assert sum(found) == cache_bytes(case)
    read = sum(term.nbytes for term in cache_terms(case) if term.quantity is Quantity.CACHE_READ)
    assert read == 3 * 31 * 3 * (32 + 8) * 4  # layers, tokens, sequences, latent and rotated key, fp32
