"""The picture of a simulated step: pipeline ranks by time, every pass coloured, communication beneath.

Written as SVG by hand, not by matplotlib: it has thousands of rectangles, each with a text of its own.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from xml.etree import ElementTree as Tree

from parallelism.schedules.orders import Pass
from parallelism.simulator.program import STREAMS, Stream
from parallelism.simulator.simulation import Simulation
from reports.palette import INK, MUTED, PAPER, WORK, Colour
from reports.step_work import Piece, Work, device_pieces, stream_pieces
from suite.units import seconds_text

#: most ranks and forward passes of a rank that are drawn whole; of more, so many from each end
RANKS, RANKS_AN_END = 16, 8
PASSES, PASSES_AN_END = 64, 24

_DEVICE, _STREAM, _GAP, _AXIS = 20, 5, 9, 24  # heights: a rank's device, each of its streams, air, the axis
_NARROWEST, _WIDEST, _A_PASS = 1200, 2600, 26  # width: at least, at most, for each pass
_CUT = 34  # width of a cut
_LETTER = 6.2  # width of a digit
_STREAMS = {Stream.GATHER: "gathers", Stream.REDUCE: "reduces", Stream.SEND: "sends"}


@dataclass(frozen=True)
class Row:
    """A pipeline rank's place in the picture."""

    rank: int
    top: int


@dataclass(frozen=True)
class Window:
    """A stretch of the step that is drawn, and where it starts."""

    start: float
    end: float
    left: float


@dataclass(frozen=True)
class PipelinePicture:
    """A picture: `svg` is markup of fixed size, for a box that scrolls; beside it a name for each row."""

    simulation: Simulation

    @cached_property
    def ranks(self) -> tuple[int, ...]:
        """The pipeline ranks that are drawn."""
        count = len(self.simulation.plan.orders)
        if count <= RANKS:
            return tuple(range(count))
        return (*range(RANKS_AN_END), *range(count - RANKS_AN_END, count))

    @cached_property
    def streams(self) -> tuple[Stream, ...]:
        """Those that carry anything."""
        graph = self.simulation.program.graph
        used = {queue % STREAMS for queue, seconds in zip(graph.queue, graph.seconds, strict=True) if seconds}
        return tuple(stream for stream in _STREAMS if stream in used)

    @property
    def row_height(self) -> int:
        """From one rank to the next."""
        return _DEVICE + _STREAM * len(self.streams) + _GAP

    @property
    def height(self) -> int:
        """Of the whole picture."""
        return self.row_height * len(self.ranks) + _AXIS

    @cached_property
    def _forwards(self) -> int:
        """Forward passes of the rank that has most."""
        orders = self.simulation.plan.orders
        return max(sum(action.kind is Pass.FORWARD for action in order) for order in orders)

    @cached_property
    def width(self) -> float:
        """Of the whole picture."""
        passes = max(len(order) for order in self.simulation.plan.orders) * self._share
        return min(_WIDEST, max(_NARROWEST, round(_A_PASS * passes)))

    @property
    def _share(self) -> float:
        """Of the step that is drawn."""
        return 1.0 if self._forwards <= PASSES else 2 * PASSES_AN_END / self._forwards

    @cached_property
    def scale(self) -> float:
        """Units a second."""
        cut = _CUT if self._share < 1 else 0
        return (self.width - cut) / (self.simulation.step_seconds * self._share)

    @cached_property
    def windows(self) -> tuple[Window, ...]:
        """The step, or of a long one its start and its end."""
        step = self.simulation.step_seconds
        if self._share == 1:
            return (Window(0.0, step, 0.0),)
        half = step * self._share / 2
        return (Window(0.0, half, 0.0), Window(step - half, step, half * self.scale + _CUT))

    @cached_property
    def pieces(self) -> dict[int, list[Piece]]:
        """What each drawn rank's device does."""
        return {rank: device_pieces(self.simulation, rank, 2 / self.scale) for rank in self.ranks}

    @property
    def legend(self) -> tuple[Work, ...]:
        """The kinds of work that are drawn."""
        found = {piece.work for pieces in self.pieces.values() for piece in pieces}
        if self.streams:
            found.add(Work.COMMUNICATION)
        return tuple(work for work in Work if work in found)

    @property
    def caption(self) -> str:
        """What is drawn, and what is left out."""
        said = ["Each row is a pipeline rank, time goes to the right; numbers are micro-batches."]
        if self.streams:
            names = ", ".join(f"{_STREAMS[stream]}" for stream in self.streams)
            said.append(f"Thin lines below a rank: what it {names.replace(', ', ' and ')} meanwhile, from the top.")
        left_out = len(self.simulation.plan.orders) - len(self.ranks)
        if left_out:
            said.append(f"{left_out} ranks in the middle are left out.")
        if any(len(stages) > 1 for stages in self._chunks.values()):
            said.append("Passes of a rank's second stage (and fourth, ...) are paler.")
        if self._share < 1:
            said.append("The middle of the step is cut out.")
        said.append("Passes of many short pieces show them summed by kind.")
        return " ".join(said)

    @cached_property
    def svg(self) -> str:
        """The picture as one `<svg>` element."""
        size = {"viewBox": f"0 0 {self.width:g} {self.height}", "width": f"{self.width:g}", "height": str(self.height)}
        label = f"Pipeline of {len(self.simulation.plan.orders)} ranks over a step"
        root = Tree.Element("svg", {**size, "role": "img", "aria-label": label, "class": "pipeline"})
        for work in Work:
            group = Tree.SubElement(root, "g", {"style": f"fill:{WORK[work].css}"})
            for row in self._rows():
                self._draw(group, row, work)
            if not len(group):
                root.remove(group)
        self._numbers(root)
        self._axis(root)
        return Tree.tostring(root, encoding="unicode")

    def _rows(self) -> list[Row]:
        return [Row(rank, place * self.row_height) for place, rank in enumerate(self.ranks)]

    def _draw(self, group: Tree.Element, row: Row, work: Work) -> None:
        """A rank's pieces of one kind."""
        own = [piece for piece in self.pieces[row.rank] if piece.work is work]
        self._rectangles(group, own, row, row.top, _DEVICE)
        if work is Work.COMMUNICATION:
            for place, stream in enumerate(self.streams):
                top = row.top + _DEVICE + 1 + place * _STREAM
                carried = stream_pieces(self.simulation, row.rank, stream, 2 / self.scale)
                self._rectangles(group, carried, row, top, _STREAM - 1)

    def _rectangles(self, group: Tree.Element, pieces: Iterable[Piece], row: Row, top: int, height: int) -> None:
        for piece in pieces:
            for left, width in self.placed(piece):
                place = {"x": f"{left:.2f}", "y": str(top), "width": f"{width:.2f}", "height": str(height)}
                if self._is_pale(piece, row.rank):
                    place["fill-opacity"] = "0.72"
                element = Tree.SubElement(group, "rect", place)
                Tree.SubElement(element, "title").text = piece_text(piece, row.rank)

    def _is_pale(self, piece: Piece, rank: int) -> bool:
        """Is it a pass of the second, fourth ... of a rank's stages?"""
        return piece.action is not None and self._chunks[rank].index(piece.action.stage) % 2 == 1

    @cached_property
    def _chunks(self) -> dict[int, list[int]]:
        """The stages of each drawn rank, ascending."""
        orders = self.simulation.plan.orders
        return {rank: sorted({action.stage for action in orders[rank]}) for rank in self.ranks}

    def placed(self, piece: Piece) -> Iterator[tuple[float, float]]:
        """(Left, width) of a piece in each window that it reaches into."""
        for window in self.windows:
            start, end = max(piece.start, window.start), min(piece.end, window.end)
            if end > start:
                yield window.left + (start - window.start) * self.scale, (end - start) * self.scale

    def _numbers(self, root: Tree.Element) -> None:
        """Micro-batches, where there is room."""
        look = "font-size:10px;text-anchor:middle;font-variant-numeric:tabular-nums;pointer-events:none"
        group = Tree.SubElement(root, "g", {"style": f"fill:{PAPER.css};{look}"})
        passes = (Work.FORWARD, Work.BACKWARD, Work.INPUT, Work.WEIGHT)
        for row in self._rows():
            for piece in self.pieces[row.rank]:
                if piece.action is None or piece.work not in passes:
                    continue
                number = str(piece.action.micro_batch)
                for left, width in self.placed(piece):
                    if width > _LETTER * len(number) + 3:
                        _text(group, left + width / 2, row.top + 14, number)

    def _axis(self, root: Tree.Element) -> None:
        """Times below the rows, and a cut where the middle is left out."""
        bottom = self.height - _AXIS
        lines = Tree.SubElement(root, "g", {"style": f"stroke:{MUTED.css};stroke-width:1"})
        group = Tree.SubElement(root, "g", {"style": f"fill:{MUTED.css};font-size:11px"})
        step = tick_step(90 / self.scale)
        for window in self.windows:
            for number in range(math.ceil(window.start / step - 1e-9), math.floor(window.end / step + 1e-9) + 1):
                x = window.left + (number * step - window.start) * self.scale
                line = {"x1": f"{x:.2f}", "x2": f"{x:.2f}", "y1": str(bottom - 4), "y2": str(bottom + 1)}
                Tree.SubElement(lines, "line", line)
                anchor = "start" if x < 20 else "end" if x > self.width - 20 else "middle"
                _text(group, x, bottom + 14, seconds_text(number * step), anchor)
        for window in self.windows[1:]:
            dots = Tree.SubElement(root, "g", {"style": f"fill:{INK.css};font-size:16px"})
            for row in self._rows():
                _text(dots, window.left - _CUT / 2, row.top + 15, "…", "middle")


def _text(parent: Tree.Element, x: float, y: float, text: str, anchor: str = "") -> None:
    place = {"x": f"{x:.2f}", "y": f"{y:g}"}
    if anchor:
        place["text-anchor"] = anchor
    Tree.SubElement(parent, "text", place).text = text


def tick_step(least: float) -> float:
    """The smallest of 1, 2, 5 times a power of ten that is at least `least`."""
    power = 10.0 ** math.floor(math.log10(least))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= least * (1 - 1e-9))


def piece_text(piece: Piece, rank: int) -> str:
    """'forward, layers.0 of micro-batch 3 on stage 1, rank 1: 12.0 ms from 40.0 ms'."""
    if piece.work is Work.COMMUNICATION:
        what = piece.name or str(piece.work)
    else:
        what = ", ".join(filter(None, [str(piece.work), piece.name]))
    action = piece.action
    of = f" of micro-batch {action.micro_batch} on stage {action.stage}" if action else ""
    pieces = f" in {piece.count} pieces" if piece.count > 1 else ""
    return f"{what}{of}, rank {rank}: {seconds_text(piece.seconds)} from {seconds_text(piece.start)}{pieces}"


def swatches(works: Sequence[Work]) -> list[tuple[str, Colour]]:
    """The legend: a name and its colour each."""
    return [(str(work), WORK[work]) for work in works]
