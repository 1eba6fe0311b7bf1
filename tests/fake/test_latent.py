"""Latent attention: a cache answers as the model without one does; cache and training allocate what formulas say."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from memory.caches.model import cache_bytes, cache_terms
from memory.inference import InferenceModel, Phase
from memory.labels import WalkRules
from memory.walk import walk_segment
from suite.allocations import mark, record_allocations
from suite.cache import LatentForm
from suite.caches.base import NOTHING
from suite.caches.build import build_cache
from suite.caches.core import next_logits, through
from suite.case import Case, case_from
from suite.layout import Recompute
from suite.models.blocks import Rope
from suite.models.decoder import DecoderSpec
from suite.models.decoder_module import Block, Decoder
from suite.models.latent_shape import Latent
from suite.models.ledgers import ledger_of
from suite.record import Moment, Quantity
from suite.spec import Precision, Workload
from suite.tape import FP32, Backend
from tests.fake.measured import allocated_for_cache, measure
from tests.fake.workspace import without_workspace

pytestmark = pytest.mark.fake

SIZES = {"kv_rank": 32, "rope_dim": 8, "nope_dim": 16, "v_dim": 12}
MODELS = {
    "direct": SIZES,
    "through a queries' latent": SIZES | {"q_rank": 24},
    "values as wide as keys": SIZES | {"v_dim": 24},
}
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Workspace grows with the threads, and tiny models wait for them."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


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
    assert allocated_for_cache(case, model, ids) == cache_bytes(case)
    read = sum(term.nbytes for term in cache_terms(case) if term.quantity is Quantity.CACHE_READ)
    assert read == 3 * 31 * 3 * (32 + 8) * 4  # layers, tokens, sequences, latent and rotated key, fp32


#: (values narrower than keys, queries through a latent, one head), each number format, kernel and recomputation
TRAINED: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({}, {"precision": "fp32"}, "none"),
    ({"q_rank": 28}, {"precision": "bf16-mixed", "micro_batch": 3}, "full"),
    ({"v_dim": 24}, {"precision": "bf16-mixed", "attention": "eager", "micro_batch": 3}, "none"),
    ({"q_rank": 28}, {"precision": "fp32", "attention": "eager", "seq_len": 192}, "full"),
    ({"q_rank": 28}, {"precision": "bf16", "seq_len": 17}, "selective"),
    ({"v_dim": 24}, {"precision": "fp32", "loss": "chunked"}, "selective-op"),
    ({"heads": 1}, {"precision": "fp16-mixed", "micro_batches": 2}, "selective"),
]


@pytest.mark.parametrize(("sizes", "workload", "recompute"), TRAINED, ids=lambda part: str(part))
def test_every_moment_of_training_is_predicted(
    sizes: dict[str, Any], workload: dict[str, Any], recompute: str
) -> None:  # fmt: skip
    """As in test_memory_single: states to the byte, totals but for scalars, in fp32 every component."""
    latent = {"kv_rank": 40, "rope_dim": 8, "nope_dim": 16, "v_dim": 20} | sizes
    heads = latent.pop("heads", 3)
    model = {"layers": 2, "hidden": 96, "heads": heads, "ffn": 160, "vocab": 300, "max_positions": 256}
    case = case_from({
        "model": model | {"latent": latent}, "workload": {"seq_len": 48} | workload, "layout": {"recompute": recompute},
    })  # fmt: skip
    with without_workspace():
        found = measure(case)
    assert not found.states_off()
    assert not found.components_off()
    assert not found.totals_off()
    assert case.workload.precision is not Precision.FP32 or not found.components_off(Moment)


@pytest.mark.parametrize("q_rank", [0, 5])
def test_a_blocks_backward_pass_allocates_what_the_ledger_says(q_rank: int) -> None:
    """Where keys are put together, spread and padded, no highest instant of a step is: here every allocation as large
    as heads' keys, values or their parts is held to the walk, one by one. All sizes differ."""
    batch, seq, sizes = 2, 29, Latent(kv_rank=13, rope_dim=6, nope_dim=11, v_dim=7, q_rank=q_rank)
    spec = DecoderSpec(layers=1, hidden=19, heads=3, ffn=23, vocab=32, max_positions=64, latent=sizes)
    workload = Workload(seq_len=seq, micro_batch=batch)
    ledger = ledger_of(spec, workload, Recompute(), FP32, Backend.CPU, 1)
    walk = walk_segment(ledger.segments[1].segment, WalkRules())
    block, rope = Block(spec, workload.attention, 1), Rope(64, spec.rotary_dim, 1e4, None)(seq, torch.float32)
    x, gradient = torch.randn(batch, seq, 19, requires_grad=True), torch.randn(batch, seq, 19)
    with record_allocations() as trace:
        y = block(x, rope)
        mark("forward ends")
        y.backward(gradient)
    middle = trace.marks[0].at
    parts = {batch * seq * 4 * elements for elements in (3 * 17, 3 * 11, 3 * 7, 6, 3 * 3, 3)}
    for made, said in (
        ([item.nbytes for item in trace.blocks if item.born < middle], walk.forward.sizes),
        ([item.nbytes for item in trace.blocks if item.born >= middle], walk.backward.sizes),
    ):
        expected = Counter(nbytes for nbytes in said if nbytes in parts)
        assert Counter(nbytes for nbytes in made if nbytes in parts) == expected


@pytest.mark.parametrize("form", list(LatentForm))
@pytest.mark.parametrize("v_dim", [20, 24])
def test_a_decode_steps_highest_instant_is_predicted(form: LatentForm, v_dim: int) -> None:
    """Within 1 %: the estimate's last token is there already, the step's is one short of it."""
    sizes = SIZES | {"v_dim": v_dim, "kv_rank": 40}
    model = {"layers": 2, "hidden": 64, "heads": 4, "ffn": 96, "vocab": 128, "max_positions": 512, "latent": sizes}
    case = case_from({
        "model": model, "workload": {"seq_len": 500, "micro_batch": 3, "precision": "fp32"},
        "serving": {"new_tokens": 12}, "cache": {"latent_form": form.value},
    })  # fmt: skip
    decoder, cache = model_of(case), build_cache(case, CPU)
    ids, places = torch.randint(128, (3, 510)), torch.arange(511).expand(3, -1)
    with through(decoder, cache, form), torch.no_grad():
        next_logits(decoder, cache, ids, places[:, :510])
        one, place = ids[:, :1].clone(), places[:, 510:].clone()
        with record_allocations() as trace:
            mark("before")
            next_logits(decoder, cache, one, place)
            mark("after")
    before, after = (item.at for item in trace.marks)
    found = trace.peak(before, after)[0] - trace.total(before)
    terms = [term for term in InferenceModel(case).terms() if term.phase is Phase.DECODE]
    said = sum(term.nbytes for term in terms if term.name in ("forward pass", "attention to latents"))
    assert said == pytest.approx(found, rel=0.01)
