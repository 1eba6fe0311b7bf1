"""Greedy answers through a cache are those without one, and transformers'; the cache's bytes are the formula's."""

from __future__ import annotations

import pytest
import torch

from memory.kv_cache import cross_cache_bytes
from suite.models.encoder_decoder_generation import CrossCache, generate
from suite.spec import AttentionKernel
from tests.unit.test_parity_encoder_decoder import FORMS, build

pytestmark = pytest.mark.fake

SOURCE, NEW = 19, 11


@pytest.mark.parametrize("kernel", list(AttentionKernel))
@pytest.mark.parametrize("form", FORMS)
def test_the_cache_changes_no_token(form: str, kernel: AttentionKernel) -> None:
    ours, theirs, names = build(form, kernel)
    there = dict(theirs.named_parameters())
    with torch.no_grad():
        # sharp attention and no biases: else a tied head repeats what it reads
        for name, parameter in ours.named_parameters():
            if name.endswith("bias"):
                there[names[name]].copy_(parameter.zero_())
            elif ".attention." in name or ".cross." in name:
                there[names[name]].copy_(parameter.mul_(4))
    spec = ours.spec
    ids = torch.randint(spec.vocab - 30, (3, SOURCE), generator=torch.Generator().manual_seed(2))
    lengths = torch.tensor([SOURCE, 8, 3])
    cache = CrossCache()
    found = generate(ours, ids, lengths, NEW, cache)
    assert found.shape == (3, NEW)
    assert found.equal(generate(ours, ids, lengths, NEW, None))
    assert len(found.unique()) > 3  # a model that says one thing would pass
    expected = theirs.generate(  # type: ignore[operator]
        input_ids=ids, attention_mask=(torch.arange(SOURCE) < lengths[:, None]).long(), do_sample=False, num_beams=1,
        max_new_tokens=NEW, min_new_tokens=NEW if spec.end_id not in found else 0,
    )  # fmt: skip
    assert found.equal(expected[:, 1:])
    # the last token was chosen, not read
    wanted = cross_cache_bytes(spec, sequences=3, source=SOURCE, target=NEW, element_bytes=4)
    assert (cache.target_bytes, cache.source_bytes) == (wanted.target, wanted.source)


def test_the_bytes_are_those_of_a_hand_count() -> None:
    """T5's 2 decoder blocks x (key, value) x 4 heads x 6 x 2 bytes: 192 a token."""
    spec = FORMS["t5 v1.0"][0]
    found = cross_cache_bytes(spec, sequences=5, source=7, target=3)
    assert (found.target, found.source) == (5 * 3 * 192, 5 * 7 * 192)
