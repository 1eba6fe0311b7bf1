"""The decoder's other forms: training allocates what formulas say, at every moment."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from memory.labels import WalkRules
from memory.walk import walk_segment
from suite.allocations import mark, record_allocations
from suite.case import case_from
from suite.layout import Recompute
from suite.models.decoder import DecoderSpec, Mixing, Norm, Position
from suite.models.decoder_module import Block, build_norm
from suite.models.ledgers import ledger_of
from suite.record import Moment
from suite.spec import AttentionKernel, Precision, Workload
from suite.tape import FP32, Backend
from tests.fake.measured import measure
from tests.fake.workspace import without_workspace

pytestmark = pytest.mark.fake

ALIBI = {"position": "alibi", "norm": "layernorm", "activation": "gelu-exact", "kv_heads": 1}
SINUSOIDAL = {"position": "sinusoidal", "tied": True}
LINEAR = {"position": "learned", "mixing": "linear", "norm": "layernorm"}
BATCHNORM = {"norm": "batchnorm", "position": "sinusoidal"}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Workspace grows with the threads, and tiny models wait for them."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


#: each form in each number format and with each kernel, and every recomputation that it can have
TRAINED: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    (ALIBI, {"precision": "fp32", "seq_len": 192}, "none"),
    (ALIBI, {"precision": "fp32", "attention": "eager"}, "none"),
    (ALIBI, {"precision": "bf16-mixed", "attention": "eager", "seq_len": 192}, "full"),
    (SINUSOIDAL, {"precision": "fp32", "loss": "chunked"}, "full"),
    (SINUSOIDAL, {"precision": "bf16", "micro_batches": 2}, "selective-op"),
    (LINEAR, {"precision": "fp32", "seq_len": 192}, "none"),
    (LINEAR, {"precision": "bf16-mixed", "seq_len": 192}, "full"),
    (LINEAR | {"heads": 1}, {"precision": "bf16-mixed", "seq_len": 130, "micro_batch": 1}, "selective-op"),
    (BATCHNORM | {"bias": True}, {"precision": "fp32"}, "none"),
    (BATCHNORM, {"precision": "bf16-mixed", "attention": "eager"}, "selective"),
]


@pytest.mark.parametrize(("model", "workload", "recompute"), TRAINED, ids=lambda part: str(part))
def test_every_moment_of_training_is_predicted(
    model: dict[str, Any], workload: dict[str, Any], recompute: str
) -> None:  # fmt: skip
    """As in test_memory_single: states to the byte, totals but for scalars, in fp32 every component."""
    sizes = {"layers": 2, "hidden": 96, "heads": 3, "ffn": 160, "vocab": 300, "max_positions": 256}
    case = case_from({
        "model": sizes | model, "workload": {"seq_len": 48, "micro_batch": 3} | workload,
        "layout": {"recompute": recompute},
    })  # fmt: skip
    with without_workspace():
        found = measure(case)
    assert not found.states_off()
    assert not found.components_off()
    assert not found.totals_off()
    assert case.workload.precision is not Precision.FP32 or not found.components_off(Moment)


@pytest.mark.parametrize(("batch", "seq", "heads", "kernel"), [
    (2, 195, 3, "flash"), (1, 195, 3, "flash"), (2, 195, 1, "flash"), (2, 29, 3, "eager"), (1, 29, 3, "eager"),
    (2, 1, 3, "flash"),
])  # fmt: skip
def test_linear_attention_allocates_what_the_ledger_says(batch: int, seq: int, heads: int, kernel: str) -> None:
    """One by one, not at the peak alone: what is copied into order, and when, depends on all of the sizes."""
    spec = DecoderSpec(
        layers=1, hidden=19, heads=heads, head_dim=7, ffn=23, vocab=32, max_positions=256, mixing=Mixing.LINEAR,
        position=Position.LEARNED,
    )  # fmt: skip
    workload = Workload(seq_len=seq, micro_batch=batch, attention=AttentionKernel(kernel))
    ledger = ledger_of(spec, workload, Recompute(), FP32, Backend.CPU, 1)
    walk = walk_segment(ledger.segments[1].segment, WalkRules())
    block = Block(spec, workload.attention, 1)
    x, gradient = torch.randn(batch, seq, 19, requires_grad=True), torch.randn(batch, seq, 19)
    with record_allocations() as trace:
        y = block(x, None)
        mark("forward ends")
        y.backward(gradient)
    middle = trace.marks[0].at
    stream = {batch * seq * 4 * width for width in (1, 19, 23)}  # of norms and the MLP, whose scratch comes in pieces
    for made, said in (
        ([item.nbytes for item in trace.blocks if item.born < middle], walk.forward.sizes),
        ([item.nbytes for item in trace.blocks if item.born >= middle], walk.backward.sizes),
    ):
        expected = Counter(nbytes for nbytes in said if nbytes > 16 and nbytes not in stream)
        found = Counter(nbytes for nbytes in made if nbytes > 16 and nbytes not in stream)
        scratch = {2 * nbytes for nbytes in stream}  # of norms' derivatives
        assert found == Counter({nbytes: count for nbytes, count in expected.items() if nbytes not in scratch})


def test_batch_normalisations_backward_pass_allocates_the_inputs_gradient_twice() -> None:
    """The kernel's first one is thrown away; no highest instant of a step is there."""
    spec = DecoderSpec(layers=1, hidden=48, heads=3, vocab=32, norm=Norm.BATCHNORM)
    ledger = ledger_of(spec, Workload(seq_len=29, micro_batch=2), Recompute(), FP32, Backend.CPU, 1)
    walk = walk_segment(ledger.segments[-2].segment, WalkRules())
    norm, x = build_norm(spec), torch.randn(2, 29, 48, requires_grad=True)
    y, gradient = norm(x), torch.randn(2, 29, 48)
    with record_allocations() as trace:
        y.backward(gradient)
    made = [item.nbytes for item in trace.blocks]
    assert made.count(2 * 29 * 48 * 4) == walk.backward.sizes.count(2 * 29 * 48 * 4) == 2
