"""AdamW whose two moments are kept in 8 bits: blockwise dynamic quantization (Dettmers et al., arXiv:2110.02861).

A block is 256 elements of a tensor in row-major order. It keeps a code a moment and element, and one fp32 scale a
moment: its largest magnitude. A code is a place in a sorted table of 256 values between -1 and 1, dense near zero. The
update itself is AdamW's, in fp32, on a slice of a tensor at a time, so that temporaries are bounded.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from suite.optimizers import QUANTIZED_BLOCK, UNPACKED

#: decades below 1 that the table reaches down to
DECADES = 7


def codebook(signed: bool) -> Tensor:
    """The 256 values of a code, sorted, fp32: dynamic tree quantization (arXiv:2110.02861, section 1.3).

    Each decade below 1 has twice the values of the one below it, evenly spread: the bits that the exponent does not
    need go to the fraction. Unsigned codes have a bit more of it. With 0 and 1 they make 256.
    """
    values = [0.0, 1.0]
    for decade in range(DECADES):
        count = 2 ** (decade if signed else decade + 1)
        edges = torch.linspace(0.1, 1.0, count + 1)
        middles = ((edges[1:] + edges[:-1]) / 2 * 10.0 ** (decade + 1 - DECADES)).tolist()
        values += middles + ([-value for value in middles] if signed else [])
    return torch.tensor(sorted(values))


def quantize_(values: Tensor, codes: Tensor, scales: Tensor, book: Tensor) -> None:
    """Write the nearest codes and the scales of blocks of values [blocks, elements], which are used up."""
    torch.linalg.vector_norm(values, math.inf, dim=1, out=scales)
    values.div_(scales.clamp(min=torch.finfo(scales.dtype).tiny)[:, None])
    middles = (book[1:] + book[:-1]) / 2
    codes.copy_(torch.bucketize(values, middles, out_int32=True))


def dequantize(codes: Tensor, scales: Tensor, book: Tensor) -> Tensor:
    """Values [blocks, elements] of codes of that shape."""
    values = book.index_select(0, codes.flatten().int()).view(codes.shape)
    return values.mul_(scales[:, None])


class Adam8bit(torch.optim.Optimizer):
    """AdamW with 8-bit moments, for plain contiguous fp32 tensors.

    State of a parameter: `codes1`, `codes2` (uint8, an element each), `scales1`, `scales2` (fp32, a block each) and
    `book1`, `book2`, which all parameters share.
    """

    def __init__(self, params: Any, lr: float, betas: tuple[float, float], eps: float = 1e-8) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": 0.0, "step": 0})
        self._books: dict[torch.device, tuple[Tensor, Tensor]] = {}

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        assert closure is None
        for group in self.param_groups:
            group["step"] += 1
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, group)

    def _update(self, parameter: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state |= self._fresh(parameter)
        moments = (state["codes1"], state["scales1"], state["codes2"], state["scales2"])
        gradient = parameter.grad
        assert gradient is not None
        for part, blocks in slices(parameter.numel()):
            codes1, scales1, codes2, scales2 = (
                tensor[part].view(blocks.stop - blocks.start, -1) if place % 2 == 0 else tensor[blocks]
                for place, tensor in enumerate(moments)
            )
            shape = codes1.shape
            first = dequantize(codes1, scales1, state["book1"])
            second = dequantize(codes2, scales2, state["book2"])
            grad = gradient.view(-1)[part].view(shape).to(first.dtype)
            _adamw(parameter.view(-1)[part].view(shape), grad, first, second, group)
            quantize_(first, codes1, scales1, state["book1"])
            quantize_(second, codes2, scales2, state["book2"])

    def _fresh(self, parameter: Tensor) -> dict[str, Tensor]:
        device, blocks = parameter.device, math.ceil(parameter.numel() / QUANTIZED_BLOCK)
        if device not in self._books:
            self._books[device] = codebook(signed=True).to(device), codebook(signed=False).to(device)
        state: dict[str, Tensor] = {}
        for place, book in enumerate(self._books[device], 1):
            zero = int(torch.searchsorted(book, 0.0))
            state[f"codes{place}"] = torch.full((parameter.numel(),), zero, dtype=torch.uint8, device=device)
            state[f"scales{place}"] = torch.zeros(blocks, device=device)
            state[f"book{place}"] = book
        return state


def slices(elements: int) -> Iterator[tuple[slice, slice]]:
    """A tensor's elements and blocks, a slice at a time: whole blocks, then a last one that is not full."""
    whole = elements // QUANTIZED_BLOCK * QUANTIZED_BLOCK
    edges = [*range(0, whole, UNPACKED), whole, elements]
    for start, end in pairwise(edges):
        if end > start:
            yield slice(start, end), slice(start // QUANTIZED_BLOCK, math.ceil(end / QUANTIZED_BLOCK))


def _adamw(parameter: Tensor, gradient: Tensor, first: Tensor, second: Tensor, group: dict[str, Any]) -> None:
    """AdamW on one slice, in place: its moments, then the parameter."""
    (beta1, beta2), step, rate = group["betas"], group["step"], group["lr"]
    first.lerp_(gradient, 1 - beta1)
    second.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
    parameter.mul_(1 - rate * group["weight_decay"])
    root = second.sqrt().div_(math.sqrt(1 - beta2**step)).add_(group["eps"])
    parameter.addcdiv_(first, root, value=-rate / (1 - beta1**step))
