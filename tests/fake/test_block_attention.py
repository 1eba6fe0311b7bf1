"""Every kernel of a block computes what torch's attention computes, with its log-sum-exp."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from parallelism.context.block import (
    BlockKernel,
    CpuFlashKernel,
    CudaEfficientKernel,
    CudaFlashKernel,
    OpenKernel,
    block_kernel,
)
from suite.spec import AttentionKernel

pytestmark = pytest.mark.fake

SHAPES = [(7, 7, True), (4, 10, False), (10, 5, False)]  # queries, keys, causal
WIDTH = 12  # of a head: not a multiple of 8


def inputs(queries: int, keys: int, dtype: torch.dtype, device: str = "cpu") -> list[Tensor]:
    """Gradient, q, k and v of 4 heads that share 2, as views of [b, s, heads, d]."""
    draw = torch.Generator().manual_seed(queries)
    sizes = ((queries, 4), (queries, 4), (keys, 2), (keys, 2))
    whole = [torch.randn(2, length, heads, WIDTH, generator=draw, dtype=torch.float64) for length, heads in sizes]
    return [x.to(device, dtype).transpose(1, 2) for x in whole]


def by_definition(parts: list[Tensor], is_causal: bool) -> list[Tensor]:
    """Output, log-sum-exp and gradients in fp64 by autograd from the definition."""
    grad, *leaves = (x.double().cpu() for x in parts)
    q, k, v = (x.clone().requires_grad_() for x in leaves)
    scores = q @ k.repeat_interleave(2, dim=1).transpose(-1, -2) / math.sqrt(WIDTH)
    if is_causal:
        scores = scores.masked_fill(torch.ones(scores.shape[-2:]).triu(1).bool(), float("-inf"))
    out = scores.softmax(-1) @ v.repeat_interleave(2, dim=1)
    out.backward(grad)
    return [out, scores.logsumexp(-1), *(x.grad for x in (q, k, v) if x.grad is not None)]


def by_kernel(kernel: BlockKernel, parts: list[Tensor], is_causal: bool) -> Iterator[Tensor]:
    grad, q, k, v = parts
    out, lse = kernel.forward(q, k, v, is_causal)
    yield from (out, lse, *kernel.backward(grad, q, out, lse, k, v, is_causal))


def gap(mine: Tensor, its: Tensor) -> float:
    return ((mine.double().cpu() - its).abs().max() / its.abs().max()).item()


@pytest.mark.parametrize("kernel", [CpuFlashKernel(), OpenKernel()], ids=["flash", "open"])
@pytest.mark.parametrize(("queries", "keys", "is_causal"), SHAPES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-13), (torch.float32, 1e-5)])
def test_kernels_on_the_cpu(
    kernel: BlockKernel, queries: int, keys: int, is_causal: bool, dtype: torch.dtype, tolerance: float
) -> None:
    parts = inputs(queries, keys, dtype)
    for mine, its in zip(by_kernel(kernel, parts, is_causal), by_definition(parts, is_causal), strict=True):
        assert mine.shape == its.shape
        assert mine.dtype is dtype
        assert gap(mine, its) < tolerance


def test_which_kernel() -> None:
    _, q, k, v = inputs(7, 7, torch.float32)
    assert isinstance(block_kernel(AttentionKernel.FLASH, q, k, v), CpuFlashKernel)
    assert isinstance(block_kernel(AttentionKernel.EAGER, q, k, v), OpenKernel)
    q, k, v = (x.to("meta") for x in (q, k, v))
    assert isinstance(block_kernel(AttentionKernel.FLASH, q, k, v), OpenKernel)


CUDA = [(CudaFlashKernel(), torch.bfloat16), (CudaEfficientKernel(), torch.float32)]


@pytest.mark.parametrize(("kernel", "dtype"), CUDA, ids=["flash", "efficient"])
@pytest.mark.parametrize(("queries", "keys", "is_causal"), SHAPES)
def test_cuda_kernels_are_called_as_they_want(
    kernel: BlockKernel, dtype: torch.dtype, queries: int, keys: int, is_causal: bool
) -> None:
    """Without a GPU: arguments and shapes alone, on tensors without data."""
    parts = [x.to("meta") for x in inputs(queries, keys, dtype)]
    out, lse, *gradients = by_kernel(kernel, parts, is_causal)
    assert lse.dtype is torch.float32
    assert lse.shape == parts[1].shape[:3]
    assert [x.shape for x in (out, *gradients)] == [x.shape for x in (parts[1], *parts[1:])]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU")
@pytest.mark.parametrize(("kernel", "dtype"), CUDA, ids=["flash", "efficient"])
@pytest.mark.parametrize(("queries", "keys", "is_causal"), SHAPES)
def test_kernels_on_cuda(kernel: BlockKernel, dtype: torch.dtype, queries: int, keys: int, is_causal: bool) -> None:
    parts = inputs(queries, keys, dtype, "cuda")
    assert isinstance(block_kernel(AttentionKernel.FLASH, *parts[1:]), type(kernel))
    tolerance = 4 * 2**-8 if dtype is torch.bfloat16 else 1e-5
    for mine, its in zip(by_kernel(kernel, parts, is_causal), by_definition(parts, is_causal), strict=True):
        assert gap(mine, its) < tolerance
