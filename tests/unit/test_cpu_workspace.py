"""Workspace of the CPU's kernels, by hand from the sources that allocate it, and where there is none."""

from __future__ import annotations

from pathlib import Path

import pytest

from suite.cpu_workspace import SLAB_LIMIT, TILE_BYTES, CpuWorkspace, has_tiles
from suite.layout import Recompute
from suite.models.ledgers import ledger_of
from suite.models.presets import PRESETS
from suite.spec import Workload
from suite.tape import BF16_AUTOCAST, FP32, Backend, Numerics

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("threads", [1, 3])
def test_layer_norm_sums_two_rows_a_thread(threads: int) -> None:
    assert CpuWorkspace(threads).layer_norm_backward(width=10, nbytes=4) == threads * 2 * 10 * 4


@pytest.mark.parametrize(
    ("seq", "rows", "columns"),
    [(20, 20, 20), (100, 32, 100), (191, 32, 191), (192, 64, 192), (767, 64, 512), (768, 256, 512), (5000, 256, 512)],
)
def test_the_fused_kernel_holds_a_tile_of_scores_a_thread(seq: int, rows: int, columns: int) -> None:
    """fp32. Forward: the tile, a maximum and a sum a row, a tile of output; backward: two tiles and a sum a row."""
    forward, backward = CpuWorkspace(2).attention(batch=1, heads=1, kv_heads=1, seq=seq, width=16, nbytes=4)
    assert forward == 2 * 4 * (rows * columns + rows + rows + rows * 16)
    assert backward == 2 * 4 * (2 * rows * columns + rows)


def test_the_fused_kernels_tile_is_as_wide_as_the_keys_are_many() -> None:
    """100 queries, 40 keys in fp32: 32 rows by 40 columns."""
    forward, backward = CpuWorkspace(1).attention(1, 1, 1, seq=100, width=16, nbytes=4, keys=40)
    assert (forward, backward) == (4 * (32 * 40 + 32 + 32 + 32 * 16), 4 * (2 * 32 * 40 + 32))


def test_what_is_packed_are_keys_and_values() -> None:
    """128 queries and 64 keys are packed like 64 of both: 64 keys of 8 and as many values."""
    sizes = {"batch": 2, "heads": 4, "kv_heads": 2, "width": 8, "nbytes": 2}
    many, alike = (CpuWorkspace(1, tiles=True).attention(**sizes, seq=seq, keys=64) for seq in (128, 64))
    assert many == alike
    few = CpuWorkspace(1, tiles=True).attention(**sizes, seq=128, keys=63)
    assert few == CpuWorkspace(1, tiles=False).attention(**sizes, seq=128, keys=63)


def test_bf16_tiles_are_halved_once_more_and_packed_where_the_processor_has_tiles() -> None:
    """64 tokens: a tile is 32 by 64. Packed: keys and values whole, and a transposed tile of keys a thread."""
    sizes = {"batch": 2, "heads": 4, "kv_heads": 2, "seq": 64, "width": 8, "nbytes": 2}
    plain, backward = CpuWorkspace(1, tiles=False).attention(**sizes)
    assert plain == 4 * (32 * 64 + 2 * 32 + 32 * 8) + 2 * 32 * 64
    packed, same = CpuWorkspace(1, tiles=True).attention(**sizes)
    assert packed - plain == 2 * (64 * 8) + 2 * 2 * 2 * (64 * 8 + 64 * 8)
    assert same == backward


def test_odd_sizes_are_padded_for_packing() -> None:
    """65 tokens of width 3: keys 4 wide, values 66 long, the bf16 tile 66 wide, and a query tile 4 wide."""
    sizes = {"batch": 1, "heads": 4, "kv_heads": 1, "seq": 65, "width": 3, "nbytes": 2}
    packed, _ = CpuWorkspace(1, tiles=True).attention(**sizes)
    tiles = 4 * (32 * 65 + 2 * 32 + 32 * 3) + 2 * 32 * 66 + 2 * 65 * 3 + 2 * 32 * 4
    assert packed == tiles + 2 * (4 * 65 + 66 * 3)


@pytest.mark.parametrize(("seq", "heads", "threads"), [(63, 4, 1), (64, 1, 64)])
def test_few_queries_are_not_packed(seq: int, heads: int, threads: int) -> None:
    """Too short, or less than 4 rows a thread for every sequence of keys."""
    sizes = {"batch": 16, "heads": heads, "kv_heads": 1, "seq": seq, "width": 8, "nbytes": 2}
    assert CpuWorkspace(threads, tiles=True).attention(**sizes) == CpuWorkspace(threads).attention(**sizes)


def test_a_product_packs_its_right_operand_in_slabs() -> None:
    """bf16: all of a small one, half of one twice the limit; one narrow column of blocks where rows are few."""
    workspace = CpuWorkspace(1)
    assert workspace.product(rows=512, depth=256, columns=256) == 2 * 256 * 256 + TILE_BYTES
    assert workspace.product(rows=512, depth=1024, columns=1024) == SLAB_LIMIT + TILE_BYTES
    assert workspace.product(rows=100, depth=256, columns=256) == 2 * 256 * 32 + TILE_BYTES


def test_the_gradient_made_first_has_its_workspace_while_the_other_is_not_there() -> None:
    """Without a bias W's comes first, with one x's: the room kept for the other is taken off."""
    few_columns = {"rows": 1024, "depth": 64, "columns": 64}
    workspace = CpuWorkspace(1)
    for_weight = 2 * 1024 * (64 + 64) + TILE_BYTES + 128
    assert workspace.product_backward(**few_columns, bias=True) == for_weight
    assert workspace.product_backward(**few_columns, bias=False) == for_weight - 2 * 1024 * 64


def test_a_grouped_product_packs_for_one_groups_rows_at_a_time() -> None:
    """Four groups of 100 rows, too few of each for more than a narrow column; the four together are not. Of W's
    gradient 100 rows are packed, in blocks of 32, less the room for x's of all 400 rows."""
    workspace = CpuWorkspace(1)
    assert workspace.grouped_product(4, rows=400, depth=256, columns=256) == 2 * 256 * 32 + TILE_BYTES
    packed = 2 * 128 * (256 + 64) + TILE_BYTES + 128
    assert workspace.grouped_product_backward(4, rows=400, depth=8, columns=256) == packed - 2 * 400 * 8


@pytest.mark.parametrize(
    ("numerics", "backend", "is_any"),
    [(BF16_AUTOCAST, Backend.CPU, True), (FP32, Backend.CPU, False), (BF16_AUTOCAST, Backend.CUDA, False)],
)
def test_only_bf16_on_the_cpu_packs_products(numerics: Numerics, backend: Backend, is_any: bool) -> None:
    spec, workload = PRESETS["gpt-1m"], Workload(seq_len=64)
    ledger = ledger_of(spec, workload, Recompute(), numerics, backend, threads=2)
    products = [
        kernel.forward_scratch + kernel.backward_scratch
        for segment in ledger.counts for operator in segment.operators() for kernel in operator.kernels
        if kernel.name in ("linear", "bmm")
    ]  # fmt: skip
    assert bool(sum(products)) is is_any


def test_tiles_are_read_off_the_kernels_list_of_flags(tmp_path: Path) -> None:
    listed = tmp_path / "with"
    listed.write_text("model name: x\nflags\t\t: fpu amx_bf16 sse\n")
    lacking = tmp_path / "without"
    lacking.write_text("model name: amx_bf16\nflags\t\t: fpu amx_bf16x sse\n")
    assert has_tiles(listed)
    assert not has_tiles(lacking)
    assert not has_tiles(tmp_path / "missing")
