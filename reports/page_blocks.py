"""Pages put together of blocks: headline figures, notes, tables, figures, folds. One look, no template of its own.

from reports.page_blocks import Figures, Fold, Headline, Notes, Section, Tile, render_document
from reports.page_table import Column, Kind, Table, Tone, number, words

columns = (Column("layout"), Column("step", Kind.NUMBER), Column("error", Kind.NUMBER), Column("why", Kind.PROSE))
rows = tuple((words(row.label), number(row.seconds, seconds_text), number(row.error, percent_text), words(row.why))
             for row in plan.rows)
table = Table("layouts", "Layouts that fit, fastest first", columns, rows, example="tp8 step<10s")
html = render_document(
    "Plan: llama3-70b on 64 h100-sxm",
    [
        Section("Answer", (Headline((Tile("Step", "9.81 s", "predicted", Tone.GOOD),)), Notes(("tp8 wins.",)))),
        Section("Layouts", (table, Fold("What was left out", (Notes(plan.left_out),)))),
        Section("Figures", (Figures(charts),)),  # of reports.svg.Chart
    ],
    meta=("Global batch 1,024 sequences of 8,192 tokens",),
)
write_whole(Path("plan.html"), html)
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from reports.page import render
from reports.page_table import Table, Tone
from reports.svg import Chart

FOOTER = "One file, nothing fetched: every number is here."


@dataclass(frozen=True)
class Tile:
    """A headline figure: what it is, the figure with its unit, and a few words on it."""

    name: str
    figure: str
    note: str = ""
    tone: Tone = Tone.PLAIN


@dataclass(frozen=True)
class Headline:
    """The figures to read first."""

    tiles: tuple[Tile, ...]


@dataclass(frozen=True)
class Notes:
    """Sentences, one a line."""

    lines: tuple[str, ...]


@dataclass(frozen=True)
class Figures:
    """Drawings, side by side where there is room."""

    charts: tuple[Chart, ...]


@dataclass(frozen=True)
class Code:
    """Text to be copied as it stands: a command, a configuration."""

    text: str


@dataclass(frozen=True)
class Fold:
    """Blocks that open on a click, and are open in print. `note` stands beside the name when it is closed."""

    name: str
    blocks: tuple[Block, ...]
    note: str = ""


Block: TypeAlias = Headline | Notes | Table | Figures | Code | Fold


@dataclass(frozen=True)
class Section:
    """A part of the page under a heading; `key` is its anchor, by default made of the title."""

    title: str
    blocks: tuple[Block, ...]
    key: str = ""

    @property
    def anchor(self) -> str:
        """The id that links lead to: 'What was left out' -> 'what-was-left-out'."""
        return self.key or re.sub(r"[^a-z0-9]+", "-", self.title.lower()).strip("-") or "section"


def render_document(title: str, sections: Sequence[Section], *, meta: Sequence[str] = (), footer: str = FOOTER) -> str:
    """The page as HTML: `meta` are lines under the title (what, when, by which command).

    ValueError where two sections, tables or figures have one key.
    """
    ids = [section.anchor for section in sections]
    ids += [found for section in sections for block in section.blocks for found in _ids(block)]
    twice = [found for found, count in Counter(ids).items() if count > 1]
    if twice:
        raise ValueError(f"page {title!r}: several parts have the id {', '.join(map(repr, twice))}")
    return render("document.html.j2", title=title, sections=sections, meta=meta, footer=footer)


def _ids(block: Block) -> Iterator[str]:
    """What the templates name a block's elements."""
    match block:
        case Table():
            yield f"{block.key}-table"
        case Figures():
            yield from (f"{chart.key}-figure" for chart in block.charts)
        case Fold():
            for inner in block.blocks:
                yield from _ids(inner)
