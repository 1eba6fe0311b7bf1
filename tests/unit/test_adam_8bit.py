"""8-bit Adam: its codes, its blocks, and that it trains as AdamW does."""

from __future__ import annotations

from unittest.mock import patch

import pytest
import torch
from torch import Tensor

from parallelism.adam_8bit import Adam8bit, codebook, dequantize, quantize_, slices

pytestmark = pytest.mark.unit

BETAS = (0.9, 0.95)


@pytest.mark.parametrize("signed", [True, False])
def test_a_codebook_has_256_values_each_decade_twice_those_of_the_one_below(signed: bool) -> None:
    """arXiv:2110.02861, section 1.3: the exponent's zeros are decades, what is left of the bits is the fraction."""
    book = codebook(signed)
    assert book.shape == (256,)
    assert (book[1:] > book[:-1]).all()
    assert (book[-1].item(), (book == 0).sum().item()) == (1.0, 1)
    counts = [int(((book >= 10.0**-high) & (book < 10.0 ** (1 - high))).sum()) for high in range(1, 8)]
    assert counts == [(64 if signed else 128) // 2**place for place in range(7)]
    assert not signed or torch.equal(book[book < 0], -book[(book > 0) & (book < 1)].flip(0))


@pytest.mark.parametrize("signed", [True, False])
def test_a_value_comes_back_as_the_nearest_of_its_blocks_codes(signed: bool) -> None:
    torch.manual_seed(0)
    values = torch.randn(3, 256) * torch.tensor([[1e-6], [1.0], [40.0]])
    values = values if signed else values.square()
    codes, scales, book = torch.empty(3, 256, dtype=torch.uint8), torch.empty(3), codebook(signed)
    quantize_(values.clone(), codes, scales, book)
    assert torch.equal(scales, values.abs().amax(dim=1))
    off = (dequantize(codes, scales, book) - values).abs()
    nearest = (values[..., None] - book * scales[:, None, None]).abs().amin(dim=-1)
    assert torch.allclose(off, nearest, rtol=1e-4, atol=1e-7 * float(scales.max()))


def test_a_block_of_zeros_stays_zeros() -> None:
    codes, scales, book = torch.empty(1, 4, dtype=torch.uint8), torch.empty(1), codebook(signed=True)
    quantize_(torch.zeros(1, 4), codes, scales, book)
    assert not dequantize(codes, scales, book).any()


@pytest.mark.parametrize(
    ("elements", "parts"),
    [
        (512, [(0, 512, 2)]),
        (700, [(0, 512, 2), (512, 700, 1)]),
        (1600, [(0, 1024, 4), (1024, 1536, 2), (1536, 1600, 1)]),
    ],
)
def test_slices_are_whole_blocks_and_a_rest(elements: int, parts: list[tuple[int, int, int]]) -> None:
    with patch("parallelism.adam_8bit.UNPACKED", 1024):
        found = list(slices(elements))
    assert [(part.start, part.stop, blocks.stop - blocks.start) for part, blocks in found] == parts
    assert [blocks.start for _, blocks in found] == [part.start // 256 for part, _ in found]


def fitted(optimizer: type, rate: float, steps: int, **more: object) -> tuple[list[float], Tensor]:
    """Losses and weights of a linear map that learns another from noise."""
    torch.manual_seed(1)
    goal, weight = torch.randn(70, 61), torch.nn.Parameter(torch.zeros(70, 61))
    update = optimizer([{"params": [weight], "weight_decay": 0.1}], lr=rate, betas=BETAS, **more)
    losses = []
    for _ in range(steps):
        inputs = torch.randn(64, 70)
        loss = (inputs @ (weight - goal)).square().mean()
        loss.backward()
        update.step()
        update.zero_grad()
        losses.append(loss.item())
    return losses, weight.detach()


def test_it_trains_as_adamw_does() -> None:
    """Codes are off by a few per cent of a value at most, so that the weights go the same way; without the second
    moment's correction, or with the first one's codes for it, they do not."""
    losses, weight = fitted(Adam8bit, 0.05, 60)
    wanted, same = fitted(torch.optim.AdamW, 0.05, 60)
    assert wanted[-1] < 0.1 * wanted[0]
    assert losses == pytest.approx(wanted, rel=0.02)
    assert (weight - same).norm() < 0.02 * same.norm()


def test_slices_change_nothing() -> None:
    whole = fitted(Adam8bit, 0.02, 3)[1]
    with patch("parallelism.adam_8bit.UNPACKED", 1024):
        assert torch.equal(fitted(Adam8bit, 0.02, 3)[1], whole)
