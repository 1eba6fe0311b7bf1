"""Encoder-decoders' specifications, parameters, ledgers and tasks, without ranks."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from memory.estimate import MemoryModel
from parallelism.zero.config import parameters_of
from suite.case import Case, case_from
from suite.data import made_up_examples
from suite.models import PRESETS, preset
from suite.models.encoder_decoder import EncoderDecoderSpec, Feed
from suite.models.encoder_decoder_module import T5
from suite.models.modules import new_module
from suite.models.span_lengths import lengths_of_source
from suite.models.t5 import T5Spec
from suite.models.transformer import TransformerSpec
from suite.parse import SpecError
from suite.spec import Workload
from suite.tasks.base import IGNORED, row_random
from suite.tasks.denoising import noisy
from suite.tasks.spans import noise_mask

pytestmark = pytest.mark.unit

TINY_T5 = T5Spec(layers=3, hidden=16, heads=2, ffn=24, vocab=60, sentinels=12)
TINY = TransformerSpec(layers=3, hidden=16, heads=2, ffn=24, vocab=60)


def parameters(spec: EncoderDecoderSpec) -> int:
    """Parameters that the ledger counts."""
    return MemoryModel(Case(spec, workload=Workload(seq_len=16))).ledger.parameters


def test_the_papers_transformers_are_counted() -> None:
    """Table 3 says 65 M and 213 M. By section 3: 37000 h; an attention 4 h^2, a network 8 h^2 + 5 h, a norm 2 h."""
    for name, h, published in (("transformer-base", 512, 65e6), ("transformer-big", 1024, 213e6)):
        network = 8 * h * h + 5 * h
        by_hand = 37000 * h + 6 * (4 * h * h + network + 4 * h) + 6 * (8 * h * h + network + 6 * h)
        found = parameters(preset(name))  # type: ignore[arg-type]
        assert found == by_hand
        assert abs(found / published - 1) < 0.035, name


def test_t5_small_is_the_published_one() -> None:
    """params.csv, params-0085."""
    assert parameters(preset("t5-small")) == 60_506_624  # type: ignore[arg-type]


@pytest.mark.parametrize("name", [name for name, spec in PRESETS.items() if isinstance(spec, T5Spec)])
def test_every_t5_has_as_many_parameters_as_transformers_model(name: str) -> None:
    from transformers import T5Config, T5ForConditionalGeneration

    spec = preset(name)
    assert isinstance(spec, T5Spec)
    config = T5Config(
        vocab_size=spec.vocab, d_model=spec.hidden, d_kv=spec.head_dim, d_ff=spec.ffn, num_layers=spec.encoder_layers,
        num_decoder_layers=spec.decoder_layers, num_heads=spec.heads,
        feed_forward_proj="gated-gelu" if spec.feed is Feed.GATED_GELU else "relu",
    )  # fmt: skip
    with torch.device("meta"):
        there = sum(item.numel() for item in T5ForConditionalGeneration(config).parameters())
    head = 0 if spec.tied else spec.vocab * spec.hidden  # which the model is told to tie
    assert parameters(spec) == there + head


@pytest.mark.parametrize("spec", [TINY, TransformerSpec(layers=4, tied=False, attention_bias=True), TINY_T5,
                                  T5Spec(layers=4, encoder_layers=1, feed=Feed.GATED_GELU, tied=False)])  # fmt: skip
def test_the_ledger_names_the_modules_parameters_in_its_order(spec: EncoderDecoderSpec) -> None:
    case = Case(spec, workload=Workload(seq_len=16))
    module = new_module(spec, case.workload)
    named = [(name, tuple(item.shape)) for name, item in module.named_parameters()]
    assert named == [(item.name, item.shape) for item in parameters_of(MemoryModel(case).ledger)]


def test_t5s_lengths_are_the_papers() -> None:
    """Its code's example: 568 tokens give sources of 512 and targets of 114."""
    lengths = lengths_of_source(512)
    assert (lengths.text, lengths.source, lengths.target) == (568, 512, 114)
    for source in range(3, 700):
        assert lengths_of_source(source).source == source


def test_spans_are_found_again_in_the_target() -> None:
    """Source and target, read together sentinel by sentinel, are the text."""
    case = Case(TINY_T5, workload=Workload(seq_len=40, micro_batch=4))
    found, again = (made_up_examples(case, 3, 4) for _ in range(2))
    assert np.array_equal(found.ids, again.ids)
    assert not np.array_equal(found.ids[0], made_up_examples(case, 4, 4).ids[0])
    lengths = lengths_of_source(40)
    assert found.ids.shape == (4, 40)
    assert found.labels.shape == (4, TINY_T5.target_len(40)) == (4, lengths.target)
    assert found.answers is None
    for ids, labels, reads in zip(found.ids, found.labels, found.extras["decoder_ids"], strict=True):
        assert ids[-1] == labels[-1] == TINY_T5.end_id
        assert reads[0] == TINY_T5.pad_id
        assert np.array_equal(reads[1:], labels[:-1])
        sentinels = [TINY_T5.vocab - 1 - place for place in range(lengths.spans)]
        for row in (ids, labels):
            assert [token for token in row if token > TINY_T5.end_id] == sentinels
        assert (np.isin(ids, sentinels).sum(), (ids < TINY_T5.pad_id).sum()) == (
            lengths.spans, lengths.text - lengths.noise,
        )  # fmt: skip
        assert (labels < TINY_T5.pad_id).sum() == lengths.noise


def test_noise_is_fifteen_percent_in_runs_of_three() -> None:
    lengths = lengths_of_source(512)
    masks = np.stack([noise_mask(lengths, row_random(0, 0, row)) for row in range(20)])
    assert (masks.sum(axis=1) == 85).all()
    begins = masks[:, 1:] & ~masks[:, :-1]
    assert (begins.sum(axis=1) == 28).all()
    assert not masks[:, 0].any()
    assert len({tuple(mask) for mask in masks}) == 20


def test_noisy_sources_have_clean_targets() -> None:
    case = Case(TINY, workload=Workload(seq_len=30, micro_batch=40))
    found = made_up_examples(case, 0, 40)
    counts = (found.labels != IGNORED).sum(axis=1)
    assert (counts == 30).sum() > (counts < 30).sum() > 0
    for ids, labels, reads, length, count in zip(
        found.ids, found.labels, found.extras["decoder_ids"], found.extras["source_lengths"], counts, strict=True
    ):
        assert 1 <= length <= count
        assert ids[length - 1] == labels[count - 1] == TINY.end_id
        assert (ids[length:] == TINY.pad_id).all()
        assert reads[0] == TINY.pad_id
        assert np.array_equal(reads[1:count], labels[: count - 1])


def test_noise_is_what_it_says() -> None:
    """One token in ten is dropped, and of the others 0.9 x 0.9 x 0.9 are where, and what, they were, near enough."""
    text = np.arange(20_000)
    copy = noisy(text, 10**9, row_random(0, 0, 0))
    assert len(copy) / len(text) == pytest.approx(0.9, abs=0.01)
    assert np.isin(text, copy).mean() == pytest.approx(0.9 * 0.9, abs=0.01)
    kept = copy[copy < 20_000]
    assert (np.diff(kept) < 0).mean() == pytest.approx(0.1 * 0.9**2, abs=0.03)


@pytest.mark.parametrize(("data", "message"), [
    ({"model": "t5-1m", "workload": {"seq_len": 2}}, "workload.seq_len: 2 holds no corrupted text"),
    ({"model": "transformer-1m", "workload": {"seq_len": 1}}, "workload.seq_len: 1 holds no token"),
    ({"model": "t5-1m", "layout": {"tp": 2}, "workload": {"seq_len": 64}}, "layout.tp(2) with model.family(t5)"),
    ({"model": "t5-1m", "layout": {"pp": 2}, "workload": {"seq_len": 64}}, "layout.pp(2) with model.family(t5)"),
    ({"model": "t5-1m", "layout": {"cp": 2}, "workload": {"seq_len": 64}}, "layout.cp(2) with model.family(t5)"),
    ({"model": {"family": "t5", "layers": 1}}, "model.layers: must be from 2"),
    ({"model": {"family": "t5", "encoder_layers": 4}}, "model.encoder_layers: 4 of layers(4)"),
    ({"model": {"family": "t5", "buckets": 6}}, "model.buckets: must be a multiple of 4"),
    ({"model": {"family": "t5", "max_distance": 16}}, "model.max_distance: 16 must be beyond half"),
    ({"model": {"family": "t5", "vocab": 102}}, "model.vocab: 102 leaves no id to text"),
    ({"model": {"family": "transformer", "hidden": 33, "heads": 3}}, "model.hidden: sinusoids come in pairs"),
    ({"model": {"family": "transformer", "label_smoothing": 1.0}}, "model.label_smoothing: must be in [0, 1)"),
])  # fmt: skip
def test_bad_input_is_one_line(data: dict[str, object], message: str) -> None:
    with pytest.raises(SpecError) as raised:
        case_from(data)
    assert str(raised.value).startswith(message)
    assert "\n" not in str(raised.value)


def test_labels_of_the_wrong_length_are_refused_in_one_line() -> None:
    model = T5(TINY_T5)
    reads = torch.zeros(2, 5, dtype=torch.long)
    with pytest.raises(SpecError, match=r"^labels: shape \(2, 4\) is not that of decoder_ids, \(2, 5\)"):
        model(torch.zeros(2, 7, dtype=torch.long), reads[:, :4], decoder_ids=reads)


def test_more_spans_than_sentinels_are_refused_before_training() -> None:
    case = Case(T5Spec(layers=2, vocab=600, sentinels=3), workload=Workload(seq_len=128))
    with pytest.raises(SpecError, match=r"^workload.seq_len: 128 makes 7 spans, and model.sentinels is 3"):
        made_up_examples(case, 0, 1)
