"""Pages put together of blocks: what is escaped, sorted by and refused; and the page of a validation."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest

from reports.page_blocks import Code, Fold, Headline, Notes, Section, Tile, render_document
from reports.page_table import Cell, Column, Kind, Table, Tone, number, words
from run_all import main
from suite.units import bytes_text, seconds_text
from tests.unit.test_page import Outline

pytestmark = pytest.mark.unit

HOSTILE = '"><img src=x onerror=alert(1)></script>{{ 7*7 }}\x1b'


def table(key: str = "rows", *rows: tuple[Cell, ...]) -> Table:
    return Table(key, "Caption", (Column("name"), Column("time", Kind.NUMBER, "s")), rows)


def test_what_a_number_sorts_by() -> None:
    assert number(1536, bytes_text) == Cell("1.50 KiB", 1536)
    assert number(1536, bytes_text).sort == "1536.0"
    for unknown in (None, math.nan):
        assert number(unknown, seconds_text) == Cell("n/a")
        assert number(unknown, seconds_text).sort == ""
    assert [Cell("", value).sort for value in (math.inf, -math.inf)] == ["Infinity", "-Infinity"]
    assert Cell("", 1e-12).sort == "1e-12"
    assert words(None).text == "n/a"


def test_a_row_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match="a row of 1 cells, 2 columns"):
        table("rows", (words("a"),))
    with pytest.raises(ValueError, match="a row of 3 cells"):
        Table("rows", "", (Column("a"), Column("b")), (), (words("a"),) * 3)


def test_two_parts_of_one_name_are_refused() -> None:
    for sections in (
        [Section("A", (table(), Fold("more", (table(),))))],
        [Section("Same name", ()), Section("same: name", ())],
    ):
        with pytest.raises(ValueError, match="several parts have the id"):
            render_document("t", sections)
    render_document("t", [Section("Rows", (table("rows"), table("more")))])


def test_every_text_of_a_block_is_escaped() -> None:
    cells = (Cell(HOSTILE, None, Tone.BAD, "#main", HOSTILE), Cell(HOSTILE, 1.0))
    inside = Table("rows", HOSTILE, (Column(HOSTILE), Column(HOSTILE, Kind.CODE, HOSTILE)), (cells,), cells, HOSTILE)
    blocks = (Headline((Tile(HOSTILE, HOSTILE, HOSTILE),)), Notes((HOSTILE,)), inside, Code(HOSTILE))
    page = render_document(HOSTILE, [Section(HOSTILE, (Fold(HOSTILE, blocks, HOSTILE),))], meta=(HOSTILE,))
    outline = Outline(page)
    assert (outline.tags["img"], outline.tags["script"]) == (0, 1)
    assert not [name for _, name, _ in outline.attributes if name.startswith("on")]
    assert "\x1b" not in page
    assert "".join(outline.text).count('"><img src=x') >= 18


def test_an_anchor_is_made_of_the_title() -> None:
    assert Section("What was left out?", ()).anchor == "what-was-left-out"
    assert Section("日本", ()).anchor == "section"
    assert Section("A", (), "b").anchor == "b"


# --- validate --page -------------------------------------------------------------------------------------------------

HEAD = "row_id,family,quantity,value_si,value,layers,hidden,heads,vocab,seq_len,gpus,global_batch,tp,micro_batch,model"


def published(folder: Path, *lines: str) -> str:
    path = folder / "<made & up>.csv"
    path.write_text("\n".join((HEAD, *lines)) + "\n")
    return str(path)


def test_every_row_is_on_the_page_with_its_figure_or_the_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table, page = published(tmp_path, "one,made,no_such_quantity,1536,1536,2,64,4,512,64,8,16,8,2,<b>m</b>",
                            "two,made,peak_memory_bytes,oom,oom,,,,,,,,,,"), tmp_path / "page.html"  # fmt: skip
    assert main(["validate", table, "--json", "--page", str(page)]) == 0
    shown = capsys.readouterr()
    assert shown.out.count("\n") == 1
    assert shown.err == f"wrote {page}\n"
    text = page.read_text()
    outline = Outline(text)
    rows = re.search(r'id="file0-rows-table".*?</table>', text, re.DOTALL)
    assert rows is not None
    assert len(re.findall(r"<tr><th scope", rows[0].partition("<tbody>")[2])) == 2
    assert "&lt;b&gt;m&lt;/b&gt; tp8 8 GPUs micro-batch 2 global-batch 16" in rows[0]
    assert rows[0].count("skipped") == 2
    assert "out of memory" in rows[0]
    assert outline.tags["b"] == 1  # of the fold that says why rows are skipped


def test_a_page_that_cannot_be_written_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = published(tmp_path, "one,made,no_such_quantity,1,1,,,,,,,,,,")
    for page in (tmp_path / "no" / "page.html", tmp_path):
        assert main(["validate", table, "--json", "--page", str(page)]) == 2
        shown = capsys.readouterr()
        assert shown.out == ""
        assert len(shown.err.splitlines()) == 1
    assert sorted(found.name for found in tmp_path.iterdir()) == ["<made & up>.csv"]
