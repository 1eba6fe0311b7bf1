"""The decoder's other forms by the equations of their papers, and by other implementations of them."""

from __future__ import annotations

import math
import os
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from parallelism.batches import Batch
from parallelism.building import make_trainer
from reports.handover.megatron.model import model_part
from suite.case import Case, case_from
from suite.layout import Recompute
from suite.models.alibi import Alibi, slopes
from suite.models.decoder import DecoderSpec, Mixing, Norm, Position
from suite.models.decoder_module import Decoder
from suite.models.ledgers import ledger_of
from suite.models.linear_attention import LinearCore, RecurrentCore, recurrent
from suite.models.linear_shape import chunk_tokens, state_elements
from suite.models.presets import PRESETS
from suite.models.sinusoidal import sinusoids
from suite.operators import OperatorKind
from suite.parse import SpecError
from suite.spec import AttentionKernel, Workload
from suite.tape import FP32, Backend
from tests.unit.refusals import refused

os.environ["HF_HUB_OFFLINE"] = "1"

pytestmark = pytest.mark.unit

LINEAR = DecoderSpec(
    layers=2, hidden=24, heads=3, ffn=40, vocab=61, max_positions=256, position=Position.SINUSOIDAL,
    mixing=Mixing.LINEAR,
)  # fmt: skip


# --- ALiBi ------------------------------------------------------------------------------------------------------------


def test_slopes_are_the_papers() -> None:
    """Section 3: 8 heads have 1/2, 1/4, ... 1/256, and 16 the square root of 1/2 and its powers; 6 heads have those of
    4 heads, and then the first and the third of 8."""
    assert slopes(8) == tuple(2.0**-power for power in range(1, 9))
    assert slopes(16) == pytest.approx([0.5 ** (place / 2) for place in range(1, 17)])
    assert slopes(6) == (2**-2, 2**-4, 2**-6, 2**-8, 2**-1, 2**-3)
    assert slopes(1) == (2**-8,)


@pytest.mark.parametrize("heads", [1, 4, 6, 12, 20])
def test_biases_weigh_as_transformers_do(heads: int) -> None:
    """MPT leaves out what is equal along a row: the softmax is the same."""
    from transformers.models.mpt.modeling_mpt import build_mpt_alibi_tensor

    places, scores = 13, torch.randn(heads, 13, 13)
    mine = (scores + Alibi(heads)(places, scores, torch.float32)).softmax(-1)
    theirs = scores + build_mpt_alibi_tensor(heads, places) + torch.full((places, places), float("-inf")).triu(1)
    torch.testing.assert_close(mine, theirs.softmax(-1), atol=1e-6, rtol=0)


def test_a_rank_has_the_biases_of_its_heads_and_a_window_hides_what_is_old() -> None:
    like = torch.zeros(())
    whole, alibi = Alibi(6, window=4)(9, like, torch.float32), Alibi(6, window=4)
    parts = []
    for rank in range(2):
        alibi.part = (rank, 2)
        parts.append(alibi(9, like, torch.float32))
    assert torch.equal(torch.cat(parts), whole)
    is_seen = [[0 <= query - key < 4 for key in range(9)] for query in range(9)]
    assert torch.equal(whole[0].isfinite(), torch.tensor(is_seen))


# --- sinusoidal positions ---------------------------------------------------------------------------------------------


def test_sinusoids_are_the_papers_and_transformers() -> None:
    from transformers.models.distilbert.modeling_distilbert import create_sinusoidal_embeddings

    mine = sinusoids(torch.arange(50), 12)
    by_hand = [
        [(math.sin if i % 2 == 0 else math.cos)(place / 10000 ** ((i - i % 2) / 12)) for i in range(12)]
        for place in range(50)
    ]
    torch.testing.assert_close(mine, torch.tensor(by_hand), atol=1e-6, rtol=0)
    theirs = torch.empty(50, 12)
    create_sinusoidal_embeddings(50, 12, theirs)
    torch.testing.assert_close(mine, theirs, atol=1e-6, rtol=0)
    assert sinusoids(torch.arange(3), 5).shape == (3, 5)


def test_positions_are_added_to_scaled_embeddings() -> None:
    model = Decoder(replace(LINEAR, layers=1))
    model.reset_parameters()
    ids = torch.tensor([[3, 3, 7]])
    assert model.embedding is not None
    expected = model.embedding.weight[ids] * 24**0.5 + sinusoids(torch.arange(3), 24)
    torch.testing.assert_close(model._embed(ids, None), expected)


# --- linear attention -------------------------------------------------------------------------------------------------


def by_definition(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Equation 9 with sums over the past alone, a token at a time: [b, s, a, d]."""
    q, k = (torch.where(x > 0, x + 1, x.exp()) for x in (q, k))
    out = []
    for place in range(q.shape[1]):
        weights = (k[:, : place + 1] * q[:, place : place + 1]).sum(-1, keepdim=True)
        out.append((weights * v[:, : place + 1]).sum(1) / weights.sum(1))
    return torch.stack(out, dim=1)


def heads(seq_len: int) -> list[Tensor]:
    """Random queries, keys and values."""
    draw = torch.Generator().manual_seed(seq_len)
    return [torch.randn(2, seq_len, 3, 8, generator=draw).requires_grad_() for _ in range(3)]


@pytest.mark.parametrize("seq_len", [1, 17, 130])
def test_parallel_and_recurrent_forms_and_their_gradients_are_the_definitions(seq_len: int) -> None:
    inputs, seen = heads(seq_len), torch.randn(2, seq_len, 3, 8)
    found = []
    for core in (LinearCore(AttentionKernel.FLASH), LinearCore(AttentionKernel.EAGER), RecurrentCore()):
        out = core(*inputs, None)
        found.append((out, *torch.autograd.grad(out, inputs, seen)))
    torch.testing.assert_close(found[0][0], by_definition(*(x.detach() for x in inputs)), atol=1e-5, rtol=0)
    for other in found[1:]:
        for mine, its in zip(found[0], other, strict=True):
            torch.testing.assert_close(mine, its, atol=1e-5, rtol=1e-5)


def test_a_model_that_reads_a_token_at_a_time_answers_as_one_that_reads_all() -> None:
    """And what it keeps between tokens is as large after 10 as after 130: d (d + 1) numbers a head and layer."""
    torch.manual_seed(0)
    model = Decoder(LINEAR)
    model.reset_parameters()
    ids = torch.randint(61, (2, 130))
    with torch.no_grad(), recurrent(model) as cores:
        found, sizes = [], []
        for place in range(130):
            model.own_positions = torch.full((2, 1), place)
            found.append(model(ids[:, place : place + 1]))
            sizes.append(sum(core.state.numel() for core in cores if core.state is not None))
        model.own_positions = None
    assert {size / 2 for size in sizes} == {state_elements(LINEAR)} == {2 * 3 * 8 * 9}
    with torch.no_grad():
        torch.testing.assert_close(torch.cat(found, dim=1), model(ids), atol=1e-5, rtol=0)


def test_chunks_divide_the_sequence_and_are_near_64_tokens() -> None:
    assert [chunk_tokens(size, AttentionKernel.FLASH) for size in (1, 17, 127, 192, 200, 1024)] == [
        1,
        17,
        127,
        64,
        50,
        64,
    ]
    assert chunk_tokens(1024, AttentionKernel.EAGER) == 1024


def test_flops_of_chunks_grow_with_the_sequence_and_those_in_the_open_with_its_square() -> None:
    """A head of d: in the open 2 s^2 (2d + 1) forward; in chunks 2 s C (2d + 1) + 4 s d (d + 1)."""

    def forward(seq_len: int, kernel: AttentionKernel) -> int:
        workload = Workload(seq_len=seq_len, attention=kernel)
        block = ledger_of(LINEAR, workload, Recompute(), FP32, Backend.CPU).segments[1].segment
        return sum(item.flops.forward for item in block.operators() if item.kind is OperatorKind.ATTENTION)

    assert forward(256, AttentionKernel.EAGER) == 3 * 2 * 256**2 * 17
    assert forward(256, AttentionKernel.FLASH) == 3 * (2 * 256 * 64 * 17 + 4 * 256 * 8 * 9)


# --- batch normalisation ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", list(Norm))
def test_batch_normalisation_alone_sees_later_tokens_and_other_sequences(norm: Norm) -> None:
    """In training a token's logits must not change with what follows it, or with another row of the batch."""
    spec = replace(LINEAR, mixing=Mixing.SOFTMAX, norm=norm)
    torch.manual_seed(0)
    model = Decoder(spec)
    model.reset_parameters()
    ids = torch.randint(61, (4, 32))
    later, other = ids.clone(), ids.clone()
    later[:, 16:] = (later[:, 16:] + 1) % 61
    other[1:] = (other[1:] + 1) % 61
    with torch.no_grad():
        logits = model(ids)
        by_later = (model(later) - logits)[:, :16].abs().max().item()
        by_other = (model(other) - logits)[0].abs().max().item()
    if norm is Norm.BATCHNORM:
        assert min(by_later, by_other) > 0.1 * logits.std().item()
        model.eval()
        with torch.no_grad():
            assert torch.equal(model(later)[:, :16], model(ids)[:, :16])
    else:
        assert by_later == by_other == 0


def test_running_statistics_are_torchs() -> None:
    torch.manual_seed(0)
    model, theirs, x = (
        Decoder(replace(LINEAR, norm=Norm.BATCHNORM, bias=True)),
        torch.nn.BatchNorm1d(24),
        torch.randn(3, 5, 24),
    )
    mine = model.norm
    assert mine is not None
    torch.testing.assert_close(mine(x).flatten(0, 1), theirs(x.flatten(0, 1)))
    mine.eval()
    theirs.eval()
    torch.testing.assert_close(mine(x).flatten(0, 1), theirs(x.flatten(0, 1)))


def test_held_out_text_is_read_with_the_running_statistics_and_leaves_them_alone() -> None:
    case = case_of({"norm": "batchnorm"}, workload={"precision": "fp32", "micro_batch": 2})
    trainer = make_trainer(case, None, torch.device("cpu"))
    ids = torch.randint(61, (1, 2, 16))
    trainer.step(0, Batch(ids, ids))
    before = [buffer.clone() for buffer in trainer.model.buffers()]
    losses = [trainer.evaluate([Batch(ids, ids)]).item() for _ in range(2)]
    assert losses[0] == losses[1]
    assert all(torch.equal(was, now) for was, now in zip(before, trainer.model.buffers(), strict=True))
    trainer.step(1, Batch(ids, ids))
    assert not all(torch.equal(was, now) for was, now in zip(before, trainer.model.buffers(), strict=True))


# --- what is refused, and named ---------------------------------------------------------------------------------------


def case_of(model: dict[str, Any], layout: dict[str, Any] | None = None, **parts: Any) -> Case:
    sizes = {"layers": 2, "hidden": 24, "heads": 4, "ffn": 40, "vocab": 61, "max_positions": 64}
    workload = {"seq_len": 16} | parts.pop("workload", {})
    return case_from({"model": sizes | model, "layout": layout or {}, "workload": workload, **parts})


LINEAR_FORM = {"mixing": "linear", "position": "learned"}
REFUSED: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({"mixing": "linear"}, {}, "model.position: rope with mixing(linear)"),
    ({"mixing": "linear", "position": "alibi"}, {}, "model.position: alibi with mixing(linear)"),
    (LINEAR_FORM | {"kv_heads": 2}, {}, "model.kv_heads: 2 with mixing(linear)"),
    (LINEAR_FORM | {"window": 8}, {}, "model.window: 8 with mixing(linear)"),
    (LINEAR_FORM, {"layout": {"cp": 2}}, "model.mixing(linear) with layout.cp(2)"),
    (
        LINEAR_FORM,
        {"serving": {"new_tokens": 4}},
        "model.mixing(linear), a state of 336 numbers a sequence of any length",
    ),
    ({"position": "alibi"}, {"layout": {"cp": 2}}, "model.position(alibi) with layout.cp(2)"),
    ({"position": "alibi"}, {"serving": {"new_tokens": 4}}, "model.position(alibi) with serving.new_tokens(4)"),
    ({"norm": "batchnorm"}, {"layout": {"dp": 2}}, "model.norm(batchnorm) with data ranks(2)"),
    ({"norm": "batchnorm"}, {"layout": {"fsdp": 2}}, "model.norm(batchnorm) with data ranks(2)"),
    ({"norm": "batchnorm"}, {"layout": {"tp": 2}}, "model.norm(batchnorm) with data ranks(1)"),
    ({"norm": "batchnorm"}, {"layout": {"pp": 2, "schedule": "gpipe"}}, "model.norm(batchnorm) with data ranks(1)"),
    ({"norm": "batchnorm"}, {"workload": {"micro_batches": 2}}, "model.norm(batchnorm) with data ranks(1)"),
    ({"norm": "batchnorm"}, {"layout": {"recompute": "full"}}, "model.norm(batchnorm) with layout.recompute(full)"),
    ({"norm": "batchnorm"}, {"workload": {"precision": "bf16"}}, "model.norm(batchnorm) with workload.precision(bf16)"),
    ({"norm": "batchnorm"}, {"serving": {"new_tokens": 4}}, "model.norm(batchnorm) with serving.new_tokens(4)"),
    ({"head_dim": 7}, {}, "model.head_dim: rope rotates pairs; 7 rotated of 7 is not even"),
    ({"position": "Alibi"}, {}, "model.position: 'Alibi' is not known; did you mean alibi?"),
]


@pytest.mark.parametrize(("model", "parts", "said"), REFUSED, ids=lambda part: str(part)[:50])
def test_what_does_not_fit_is_refused_in_one_line(model: dict[str, Any], parts: dict[str, Any], said: str) -> None:
    with pytest.raises(SpecError) as error:
        case_of(model, **parts)
    assert str(error.value).startswith(said)
    assert "\n" not in str(error.value)


def test_an_odd_head_is_no_matter_where_nothing_is_rotated() -> None:
    for position in (Position.ALIBI, Position.SINUSOIDAL, Position.LEARNED):
        assert case_of({"head_dim": 7, "position": position.value}).model.head_dim == 7
    assert "rope rotates pairs" in refused(DecoderSpec, head_dim=7)


def test_a_new_setting_at_its_default_renames_no_case() -> None:
    plain = case_of({"position": "learned"})
    assert plain.case_id == case_of({"position": "learned", "mixing": "softmax"}).case_id
    assert plain.case_id != case_of(LINEAR_FORM).case_id


@pytest.mark.parametrize("name", ["alibi-1m", "sinusoidal-1m", "linear-1m", "batchnorm-1m"])
def test_no_other_form_is_handed_to_megatron(name: str) -> None:
    with pytest.raises(SpecError, match=f"^model: {name} has [a-z ]+; handed to Megatron-LM are rope"):
        model_part(Case(PRESETS[name]))


def test_gelu_exact_is_the_error_functions() -> None:
    from suite.models.blocks import GeluMLP

    mlp, x = GeluMLP(6, 9, True, "none"), torch.randn(4, 6)
    torch.testing.assert_close(mlp(x), mlp.down(F.gelu(mlp.up(x))))
    up = mlp.up(x)
    torch.testing.assert_close(mlp(x), mlp.down(0.5 * up * (1 + torch.erf(up / 2**0.5))))
