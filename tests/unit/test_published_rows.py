"""Published tables are read by their columns, cell by cell, and a malformed one is refused in one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from reports.validate import validate_tables
from suite.parse import SpecError
from suite.published import PublishedRow, TableKind, UnreadableCell, read_table

pytestmark = pytest.mark.unit

RUNS = "row_id,family,quantity,value_si,value,unit,split"


def table(folder: Path, *lines: str, name: str = "rows.csv") -> str:
    path = folder / name
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def row(kind: TableKind = TableKind.KV_CACHE, **cells: str) -> PublishedRow:
    return PublishedRow(kind, "r", cells)


@pytest.mark.parametrize(
    ("lines", "refusal"),
    [
        ([], "is empty; expected a header line and rows"),
        (
            ["a,b", "1,2"],
            "no table that is known has these columns; needed for serving: row_id, family",
        ),
        ([RUNS, "x,f,peak_bytes,1"], "row 1: 4 cells under 7 columns"),
        ([RUNS, ",f,peak_bytes,1,1,B,"], "row 1: row_id is empty; name the row"),
        ([RUNS, "x,f,q,1,1,B,", "x,f,q,1,1,B,"], "row_id 'x' stands there twice"),
        ([RUNS, "x,f,q,many,many,B,"], "row 1 ('x'): value_si 'many' is not a number; expected one, or OOM"),
        ([RUNS, "x,f,q,,,B,"], "value_si '' is not a number"),
        ([RUNS + ",unit", "x,f,q,1,1,B,,B"], "column 'unit' stands there twice"),
        ([RUNS, 'x,f,q,1,1,"B,'], "is not CSV"),
    ],
)
def test_a_malformed_table_is_refused_in_one_line(tmp_path: Path, lines: list[str], refusal: str) -> None:
    with pytest.raises(SpecError) as found:
        read_table(table(tmp_path, *lines))
    assert refusal in str(found.value)
    assert "\n" not in str(found.value)


def test_a_table_that_is_not_there_or_not_text_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SpecError, match=r"^validate: .*no\.csv' cannot be read \(No such file or directory\)"):
        read_table("no.csv")
    (tmp_path / "bytes.csv").write_bytes(b"row_id\xff\n")
    with pytest.raises(SpecError, match="is not UTF-8 text"):
        read_table("bytes.csv")


def test_cells_are_numbers_only_where_they_are_written_as_such() -> None:
    cells = row(a="12", b="~250k", c="", d="1.5e3", e="12.0", f="nan", g="1")
    assert (cells.count("a"), cells.count("c"), cells.count("e"), cells.number("d")) == (12, None, 12, 1500.0)
    assert (cells.flag("g"), cells.flag("c"), cells.text("not there")) == (True, None, "")
    with pytest.raises(UnreadableCell, match=r"^b '~250k' is not a whole number$"):
        cells.count("b")
    with pytest.raises(UnreadableCell, match=r"^f 'nan' is not a number$"):
        cells.number("f")
    with pytest.raises(UnreadableCell, match=r"^c is not stated$"):
        cells.need("c")


@pytest.mark.parametrize(
    ("kind", "value", "unit", "published"),
    [
        (TableKind.KV_CACHE, "70272", "bytes (printed 70.272 KB)", 70272),
        (TableKind.KV_CACHE, "1.5", "GB (printed)", 1.5 * 2**30),
        (TableKind.KV_CACHE, "69", "KiB (printed)", 69 * 1024),
        (TableKind.KV_CACHE, "1952", "blocks of 16", 1952),
        (TableKind.ANALYTIC, "5.31", "GiB (printed GB)", 5.31 * 2**30),
        (TableKind.ANALYTIC, "3291", "MiB (printed MB)", 3291 * 2**20),
        (TableKind.ANALYTIC, "120", "GB (1e9)", 120e9),
        (TableKind.ANALYTIC, "66.84", "%", 66.84),
    ],
)
def test_units_as_tables_print_them(kind: TableKind, value: str, unit: str, published: float) -> None:
    assert row(kind, value=value, unit=unit).published == pytest.approx(published, rel=1e-12)


def test_a_value_prints_as_published_if_it_rounds_or_is_cut_off_to_it() -> None:
    cells = row(TableKind.ANALYTIC, value="41.3", unit="GB (1e9)")
    assert cells.prints_as(41.25e9)
    assert cells.prints_as(41.399e9)
    assert not cells.prints_as(41.401e9)
    assert not cells.prints_as(41.24e9)
    assert not row(TableKind.PARAMETERS, params="124439808").prints_as(124439808.4)


def test_rows_are_predicted_by_what_they_say_whatever_they_are_called(tmp_path: Path) -> None:
    """A row of the table with another id, its columns in another order and most of them missing."""
    path = table(
        tmp_path, "metric,value,kv_heads,attn,layers,head_dim,row_id", "kv_bytes_per_token,131072,8,GQA,32,128,z"
    )
    (found,) = validate_tables([path]).tables[0].quantities[0].results
    assert (found.prediction.value, found.error) == (131072, 0)
    assert found.prediction.assumed == ("cache in 16 bits: its format is not stated",)


def test_a_row_with_missing_cells_is_skipped_with_the_reason(tmp_path: Path) -> None:
    path = table(
        tmp_path, RUNS + ",framework", "x,f,peak_allocated_bytes,1,1,B,,Megatron-LM", "y,f,step_seconds,1,1,s,,"
    )
    memory, time = validate_tables([path]).tables[0].quantities
    assert [skip.reason for skip in memory.skipped] == ["layers is not stated"]
    assert [skip.reason for skip in time.skipped] == ["f: step times of this source are not modelled yet"]


SHAPE = "llama-7b,32,4096,11008,32,32,32000,0,swiglu,2048,8,8,none,bf16-mixed,AdamW"
SHAPED = "model,layers,hidden,ffn,heads,kv_heads,vocab,tied,act,seq_len,micro_batch,fsdp,recompute_kind,precision_kind"


def test_a_share_of_the_devices_memory_is_its_bytes_over_the_size_in_its_unit(tmp_path: Path) -> None:
    header = f"row_id,family,quantity,value_si,unit,{SHAPED},optimizer"
    path = table(tmp_path, header, f"a,f,peak_active_pct,50,% of 80 GiB,{SHAPE}", f"b,f,peak_active_bytes,1,B,{SHAPE}")
    share, whole = (quantity.results[0].prediction.value for quantity in validate_tables([path]).tables[0].quantities)
    assert share == pytest.approx(100 * whole / (80 * 2**30))


def test_more_stages_than_layers_is_a_reason_not_a_wait(tmp_path: Path) -> None:
    header = f"row_id,family,quantity,value_si,framework,pp,{SHAPED},optimizer"
    path = table(tmp_path, header, f"a,f,peak_allocated_bytes,1,Megatron-LM,99999999,{SHAPE}")
    (skip,) = validate_tables([path]).tables[0].quantities[0].skipped
    assert skip.reason == "pp 99999999 with 32 layers: every stage holds at least one block"


@pytest.mark.parametrize("model", ["bert-large", "t5-large", "DistilBERT", "mamba-hybrid", "vit_huge"])
def test_other_families_are_skipped_by_name(tmp_path: Path, model: str) -> None:
    header, rest = f"row_id,family,quantity,value_si,{SHAPED},optimizer", SHAPE.partition(",")[2]
    path = table(
        tmp_path, header, f"a,f,peak_allocated_bytes,1,{model},{rest}", f"b,f,peak_allocated_bytes,1,gpt530b,{rest}"
    )
    (found,) = validate_tables([path]).tables[0].quantities
    assert [skip.reason for skip in found.skipped] == [
        f"{model}: not a decoder; runs of other families are not modelled"
    ]
    assert [result.row.row_id for result in found.results] == ["b"]


def test_a_fit_that_speaks_of_no_constant_is_refused(tmp_path: Path) -> None:
    path = table(tmp_path, RUNS, "x,f,step_seconds,1,1,s,fit")
    with pytest.raises(SpecError, match=r"^--fit: no row with split = fit speaks of a constant"):
        validate_tables([path], [path])


def test_a_row_that_a_constant_was_fitted_on_is_listed_but_not_scored(tmp_path: Path) -> None:
    shape = "llama,12,8192,28672,64,8,128256,0,swiglu,4096,1,4,2,4,1,1,none,1,Megatron-LM,a100-sxm-80gb"
    names = "model,layers,hidden,ffn,heads,kv_heads,vocab,tied,act,seq_len,micro_batch,grad_accum,dp,tp,sp,pp"
    header = f"row_id,family,quantity,value_si,split,config_id,{names},recompute_kind,zero,framework,device"
    runs = [("a", "peak_reserved_bytes", 33e9, "fit"), ("b", "peak_allocated_max_rank_bytes", 30e9, "fit")]
    lines = [f"{name},f,{quantity},{value},{split},one,{shape}" for name, quantity, value, split in runs]
    path = table(tmp_path, header, *lines, f"c,f,peak_reserved_bytes,33e9,score,two,{shape}")
    found = validate_tables([path], [path])
    assert found.constants.reserved_over_allocated.value == pytest.approx(1.1)
    reserved, allocated = found.tables[0].quantities
    assert [(r.row.row_id, r.is_fitted) for r in reserved.results] == [("a", True), ("c", False)]
    assert len(reserved.score.errors) == 1
    assert reserved.results[0].prediction.value == pytest.approx(1.1 * allocated.results[0].prediction.value)
