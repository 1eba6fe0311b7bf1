"""A serving engine's profiling pass: peaks by hand, from the sizes of its tensors."""

from __future__ import annotations

from dataclasses import replace

import pytest

from memory.engine_pass import EnginePass, Reduced, Sampler, projections
from suite.models.presets import gpt, llama

pytestmark = pytest.mark.unit

# h 512, 4 heads of 128, 2 key-value heads, f 1024, V 1000: a vocabulary too small to matter to the blocks' peak
TINY = llama("tiny", 3, 512, 4, 1024, 1000, kv_heads=2)
TOKENS, HIDDEN, INPUTS = 4096, 2 * 4096 * 512, 4096 * 24


def run(sampler: Sampler = Sampler.INVERSE, **settings: object) -> EnginePass:
    return replace(EnginePass(TINY, TOKENS, sampler, sequences=1), **settings)  # type: ignore[arg-type]


def test_products_are_fused_and_divided() -> None:
    sizes = [(each.inputs, each.outputs) for each in projections(TINY, tp=2)]
    assert sizes == [(512, (2 + 2) * 128), (256, 512), (512, 1024), (512, 512)]
    assert projections(TINY, tp=4)[0].outputs == (1 + 2) * 128  # a rank holds a whole key-value head


def test_the_mlp_is_the_highest_instant_of_many_tokens() -> None:
    """Residual stream, the block's input, attention's output and the block's own, beside gate and up and their
    product."""
    expected = INPUTS + 4 * HIDDEN + 2 * TOKENS * (2048 + 1024)
    assert run().allocated_peak() == expected
    assert run(workspace=7 << 20).allocated_peak() == expected + (7 << 20)


def test_an_unpacked_matrix_lives_beside_its_product() -> None:
    """At the block's own output: a 16-bit copy of the down projection."""
    assert run(is_packed=True).allocated_peak() == run().allocated_peak() + 2 * 1024 * 512


@pytest.mark.parametrize(
    ("sampler", "nbytes"),
    [
        # logits, sorted, its order | the sorting's own order and third copies
        (Sampler.INVERSE, (2 + 2 + 8) + (8 + 2 + 8)),
        (Sampler.FLOAT, (2 + 4 + 4 + 8) + (8 + 4 + 8)),
        # logits, sorted, its order, two probabilities, two masks | int64 sorted, its order | the sorting's own
        (Sampler.ARGSORT, (2 + 2 + 8 + 2 + 2 + 1 + 1) + (8 + 8) + (8 + 8 + 8)),
    ],
)
def test_sorting_is_the_highest_instant_of_many_logits(sampler: Sampler, nbytes: int) -> None:
    wide = replace(TINY, vocab=100_000)
    found = EnginePass(wide, 2048, sampler).allocated_peak()
    assert found == 2048 * 24 + 2 * 2048 * 512 + 256 * 100_000 * nbytes


def test_fewer_tokens_than_sequences_give_as_many_logits() -> None:
    wide = replace(TINY, vocab=100_000)
    assert EnginePass(wide, 128, Sampler.FLOAT).allocated_peak() == 128 * 24 + 2 * 128 * 512 + 128 * 100_000 * 38


def test_sums_that_are_held_are_reserved_and_not_allocated() -> None:
    """Two a block and the embedding."""
    freed, held = run(tp=2), run(tp=2, reduced=Reduced.HELD)
    assert held.allocated_peak() == freed.allocated_peak()
    assert held.held_bytes() == 7 * HIDDEN
    assert held.reserved_peak() >= freed.reserved_peak() + 4 * HIDDEN
    alone = run(reduced=Reduced.HELD)
    assert alone.reserved_peak() == run().reserved_peak()
    assert alone.held_bytes() == 0


@pytest.mark.parametrize("spec", [TINY, gpt("g", 2, 512, 4, 1000)])
def test_every_tensor_goes_but_for_the_last_ones(spec: object) -> None:
    made = EnginePass(spec, TOKENS, Sampler.FLOAT, sequences=1)  # type: ignore[arg-type]
    alive: dict[str, int] = {}
    for name, nbytes in made.changes():
        assert (name in alive) == (nbytes == 0)
        if nbytes:
            alive[name] = nbytes
        else:
            del alive[name]
    assert {name for name in alive if "block" in name} == {f"block {spec.layers - 1}"}  # type: ignore[attr-defined]
    assert made.reserved_peak() >= made.allocated_peak()
