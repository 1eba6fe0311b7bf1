"""What CPU kernels allocate in passing: tiles of attention scores, packed operands of bf16 products, partial sums.

Attention's own tiles and layer norm's sums are read off ATen's sources and exact. oneDNN's packing, which runs
every bf16 product on the CPU, is an approximation: its blocking is the best of a search over the processor's
caches. What was measured, with AMX and 2 MiB of second-level cache a core: each thread packs the right operand a
slab of at most 1 MiB at a time, or one narrow block where each thread has few rows; a transposed left operand is
packed 256 rows at a time, beside 64 columns of the right one; long sums over several slabs are kept in fp32.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

from suite.operators import DType

FP32_BYTES = 4
BF16_BYTES = 2
SLAB_LIMIT = 2**20  # bytes of a packed slab
BLOCK = 32  # packed matrices are made of blocks this wide and high; where rows are few, one column of them at a time
DEPTH_LIMIT = 1024  # that a product with a transposed left operand sums over at a time
LEFT_ROWS, RIGHT_COLUMNS = 256, 64  # packed at a time in such a product
SUM_LIMIT = 4096  # that a product with a right operand of several slabs sums over without partial sums
ROWS_A_THREAD = 256  # that are worth packing for
TILE_BYTES = 5120  # the tile registers' own buffer, a page of it padding
CACHE_LINES = 128  # padding between the two packed operands


@dataclass(frozen=True)
class CpuWorkspace:
    """Bytes of workspace with so many threads; `tiles`: can the processor multiply tiles of
    the products' type (AMX)?"""

    threads: int = 1
    tiles: bool = False

    def layer_norm_backward(self, width: int, nbytes: int) -> int:
        """Partial sums of the weight's and the bias's gradients, a row of each a thread (layer_norm_kernel.cpp)."""
        return 2 * self.threads * width * nbytes

    def attention(
        self, batch: int, heads: int, kv_heads: int, seq: int, width: int, nbytes: int, keys: int | None = None
    ) -> tuple[int, int]:
        """Forward and backward of the fused kernel (FlashAttentionKernel.cpp): a tile of scores a thread; in bf16 one
        more in bf16, and with AMX, where queries are many, keys and values packed. `keys` a sequence, if not `seq`."""
        keys = seq if keys is None else keys
        rows = min(256 if seq >= 768 else 64 if seq >= 192 else 32, seq)
        columns = min(512, keys)
        forward = FP32_BYTES * rows * (columns + 2 + width)
        backward = FP32_BYTES * rows * (2 * columns + 1)
        if nbytes == FP32_BYTES:
            return self.threads * forward, self.threads * backward
        backward += nbytes * 2 * rows * columns + _transposed(rows, columns)
        tasks = -(-batch * heads * -(-seq // rows) // self.threads)
        if not self.tiles or min(seq, keys) < 64 or tasks * rows < 4 * batch * kv_heads:
            return self.threads * (forward + nbytes * rows * columns), self.threads * backward
        forward += nbytes * (rows * _even(columns) + columns * width + (rows * _even(width) if width % 2 else 0))
        whole, rest = divmod(keys - 1, columns)
        packed = _even(width) * keys + (whole * _even(columns) + _even(rest + 1)) * width
        return self.threads * forward + nbytes * batch * kv_heads * packed, self.threads * backward

    def product(self, rows: int, depth: int, columns: int) -> int:
        """y [rows, columns] = x [rows, depth] W^T in bf16."""
        slab, is_whole = _slab(depth, columns)
        few = rows < self.threads * columns and is_whole
        return self._copies(rows) * ((_narrow(depth) if few else slab) + TILE_BYTES)

    def product_backward(self, rows: int, depth: int, columns: int, bias: bool) -> int:
        """Beyond both gradients of such a product. Whichever is made first (with a bias x's, without W's) has its
        workspace while the other is not there yet."""
        for_x, for_weight = self.input_gradient(rows, depth, columns), self.weight_gradient(rows, columns)
        if bias:
            return max(for_weight, for_x - BF16_BYTES * depth * columns)
        return max(for_x, for_weight - BF16_BYTES * rows * depth)

    def input_gradient(self, rows: int, depth: int, columns: int) -> int:
        """dx [rows, depth] = dy [rows, columns] W in bf16."""
        slab, is_whole = _slab(columns, depth)
        few = self._copies(rows) > 1 and rows < self.threads * depth and columns <= depth
        sums = 0 if is_whole or columns <= SUM_LIMIT else FP32_BYTES * rows * depth
        return self._copies(rows) * ((_narrow(columns) if few else slab) + TILE_BYTES) + sums

    def weight_gradient(self, rows: int, columns: int) -> int:
        """dW [columns, depth] = dy^T x in bf16, summed over the rows; of any depth."""
        return self.threads * _transposed(rows, columns)

    def grouped_product(self, groups: int, rows: int, depth: int, columns: int) -> int:
        """Such a product for each group's part of the rows, one after the other (the fallback of ATen's _grouped_mm).
        Counted as if all had as many rows, which routing seldom gives."""
        return self.product(-(-rows // groups), depth, columns)

    def grouped_product_backward(self, groups: int, rows: int, depth: int, columns: int) -> int:
        """Beyond both gradients of a grouped product, W's of which is made first."""
        each = -(-rows // groups)
        return max(
            self.input_gradient(each, depth, columns), self.weight_gradient(each, columns) - BF16_BYTES * rows * depth
        )

    def _copies(self, rows: int) -> int:
        """Threads that pack the operand for themselves; with too few rows for all, they share the packing."""
        return max(1, min(self.threads, rows // ROWS_A_THREAD))

    def batched_product(self, depth: int, columns: int) -> int:
        """Many [rows, depth] x [depth, columns] in bf16, each on one thread."""
        return self.threads * (_slab(depth, columns)[0] + TILE_BYTES)

    def batched_product_backward(self, batch: int, rows: int, depth: int, columns: int) -> int:
        """Beyond both gradients of so many products: the right operand's, a sum over rows, is made first."""
        for_right = self.threads * _transposed(rows, depth) - BF16_BYTES * batch * rows * depth
        return max(self.batched_product(columns, depth), for_right)


def _transposed(depth: int, rows: int) -> int:
    """[rows, columns] = x^T y, summed over `depth`: both are packed."""
    return (
        BF16_BYTES * min(_blocks(depth), DEPTH_LIMIT) * (min(_blocks(rows), LEFT_ROWS) + RIGHT_COLUMNS)
        + TILE_BYTES
        + CACHE_LINES
    )


def _even(size: int) -> int:
    """Packing pairs bf16 values, so odd sizes are padded."""
    return size + size % 2


def _blocks(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


def _narrow(depth: int) -> int:
    return BF16_BYTES * _blocks(depth) * BLOCK


def _slab(depth: int, columns: int) -> tuple[int, bool]:
    """Bytes of the right operand that are packed at a time, and whether that is all of it."""
    nbytes = BF16_BYTES * _blocks(depth) * _blocks(columns)
    slabs = -(-nbytes // SLAB_LIMIT)
    return nbytes // slabs, slabs == 1


@cache
def has_tiles(cpuinfo: Path = Path("/proc/cpuinfo"), kind: DType = DType.BF16) -> bool:
    """Does this machine's processor multiply tiles of that type (AMX), as far as the kernel says?"""
    try:
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return False
    return any(f"amx_{kind.label}" in line.split() for line in lines if line.startswith("flags"))
