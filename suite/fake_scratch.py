"""What CPU kernels and gloo allocate and free inside one operator: the part of a trace that fake tensors do not show.

Each rule takes an operator's own arguments, with their sizes and strides, and gives bytes that live beside its result.
The formulas are those of suite/cpu_workspace.py, which the operator ledger uses too; here they see what is called.
Counted: fused attention's tiles, layer norm's partial sums, oneDNN's packing and its copies of strided operands, what a
pointwise operator widens, a log-sum-exp's exponentials, FSDP2's padding before it lays gradients together, gloo's copy
of what it gathers and reduce-scatters. Not counted: scalars.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from suite.cpu_workspace import CpuWorkspace

aten: Any = torch.ops.aten
#: products with at most so many multiplications are not oneDNN's (ATen, mkldnn/Matmul.cpp)
SMALL_PRODUCT = 16 * 16 * 16
POINTWISE = frozenset({"add", "sub", "mul", "div", "add_", "sub_", "mul_", "div_"})


@dataclass(frozen=True)
class CpuScratch:
    """Bytes that an operator needs in passing; `packs_products` leaves oneDNN's packing in."""

    workspace: CpuWorkspace
    packs_products: bool = True

    def __call__(self, name: str, given: Sequence[Any], result: Any) -> int:
        """For the operator of that name (namespace::name) with these positional arguments."""
        rule = RULES.get(name)
        if rule is not None:
            return rule(self, given, result)
        return _widened(given) if name.removeprefix("aten::") in POINTWISE else 0

    def flash(self, given: Sequence[Any], result: Any) -> int:
        """q [b, a, s, d], k [b, kv, t, d]."""
        return self._attention(given[0], given[1])[0]

    def flash_backward(self, given: Sequence[Any], result: Any) -> int:
        """As forward, after the gradient."""
        return self._attention(given[1], given[2])[1]

    def _attention(self, q: Tensor, k: Tensor) -> tuple[int, int]:
        batch, heads, seq, width = q.shape
        return self.workspace.attention(batch, heads, k.shape[1], seq, width, q.element_size(), k.shape[2])

    def layer_norm_backward(self, given: Sequence[Any], result: Any) -> int:
        """The gradient and x [..., width]."""
        return self.workspace.layer_norm_backward(given[1].shape[-1], given[1].element_size())

    def mm(self, given: Sequence[Any], result: Any) -> int:
        """Left [rows, depth], right [depth, columns]."""
        return self._product(given[0], given[1])

    def addmm(self, given: Sequence[Any], result: Any) -> int:
        """As mm, after what is added."""
        return self._product(given[1], given[2])

    def _product(self, left: Tensor, right: Tensor) -> int:
        """In bf16: a forward product reads the weight transposed, an input's gradient as it is, a weight's gradient the
        left operand transposed."""
        if not _is_onednn(left, right):
            return 0
        (rows, depth), columns = left.shape, right.shape[1]
        if left.stride(0) == 1 and rows > 1:
            packed = self.workspace.weight_gradient(depth, rows)
        elif right.stride(0) == 1:
            packed = self.workspace.product(rows, depth, columns)
        else:
            packed = self.workspace.input_gradient(rows, columns, depth)
        return _copies(left, right) + packed * self.packs_products

    def bmm(self, given: Sequence[Any], result: Any) -> int:
        """Left [batch, rows, depth], right [batch, depth, columns]."""
        left, right = given[0], given[1]
        if not _is_onednn(left, right):
            return 0
        _, rows, depth = left.shape
        if left.stride(1) == 1 and rows > 1:
            packed = self.workspace.weight_gradient(depth, rows)
        else:
            packed = self.workspace.batched_product(depth, right.shape[2])
        return _copies(left, right) + packed * self.packs_products

    def logsumexp(self, given: Sequence[Any], result: Any) -> int:
        """Exponentials as large as the scores, and the rows' largest."""
        return _nbytes(given[0]) + _nbytes(result)

    def chunk_cat(self, given: Sequence[Any], result: Any) -> int:
        """(tensors, dimension, chunks): those whose rows the chunks do not divide are padded, all of them; each is laid
        out before it is cast."""
        tensors, chunks, out = given[0], given[2], given[3] if len(given) > 3 else result
        padded = [
            item.element_size() * math.prod(item.shape[1:]) * -(-item.shape[0] // chunks) * chunks for item in tensors
        ]
        copies = sum(size for size, item in zip(padded, tensors, strict=True) if item.shape[0] % chunks)
        casts = isinstance(out, Tensor) and out.dtype is not tensors[0].dtype
        return copies + (max(padded) if casts else 0)

    def gathers(self, given: Sequence[Any], result: Any) -> int:
        """gloo gathers into a copy of the output."""
        return _nbytes(given[0])

    def gathers_functional(self, given: Sequence[Any], result: Any) -> int:
        return _nbytes(result)

    def scatters(self, given: Sequence[Any], result: Any) -> int:
        """gloo reduces a copy of the input."""
        return _nbytes(given[1])

    def scatters_functional(self, given: Sequence[Any], result: Any) -> int:
        return _nbytes(given[0])


def _widened(given: Sequence[Any]) -> int:
    """A pointwise operator's temporaries: operands, and a result in place, of another type than the common one
    (TensorIterator.cpp, compute_types)."""
    tensors = [item for item in given[:2] if isinstance(item, Tensor) and item.dim()]
    if len(tensors) < 2 or tensors[0].dtype is tensors[1].dtype:
        return 0
    common = torch.promote_types(tensors[0].dtype, tensors[1].dtype)
    return sum(item.numel() * common.itemsize for item in tensors if item.dtype is not common)


def _is_onednn(left: Tensor, right: Tensor) -> bool:
    return left.dtype is torch.bfloat16 and left.numel() * right.shape[-1] > SMALL_PRODUCT


def _copies(*operands: Tensor) -> int:
    return sum(_nbytes(item) for item in operands if not _is_plain(item))


def _is_plain(x: Tensor) -> bool:
    """Contiguous, or its last two dimensions exchanged: what oneDNN takes as it is (mkldnn/Matmul.cpp)."""
    return x.is_contiguous() or x.transpose(-1, -2).is_contiguous()


def _nbytes(x: Tensor) -> int:
    return x.numel() * x.element_size()


RULES: dict[str, Callable[[CpuScratch, Sequence[Any], Any], int]] = {
    "aten::_scaled_dot_product_flash_attention_for_cpu": CpuScratch.flash,
    "aten::_scaled_dot_product_flash_attention_for_cpu_backward": CpuScratch.flash_backward,
    "aten::native_layer_norm_backward": CpuScratch.layer_norm_backward,
    "aten::mm": CpuScratch.mm,
    "aten::addmm": CpuScratch.addmm,
    "aten::bmm": CpuScratch.bmm,
    "aten::logsumexp": CpuScratch.logsumexp,
    "aten::_chunk_cat": CpuScratch.chunk_cat,
    "fsdp::chunk_cat": CpuScratch.chunk_cat,
    "c10d::_allgather_base_": CpuScratch.gathers,
    "c10d::_reduce_scatter_base_": CpuScratch.scatters,
    "_c10d_functional::all_gather_into_tensor": CpuScratch.gathers_functional,
    "_c10d_functional::reduce_scatter_tensor": CpuScratch.scatters_functional,
}
