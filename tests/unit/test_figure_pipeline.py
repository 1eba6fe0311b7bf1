"""The picture of a step: exact rectangles of a small pipeline, nothing lost of a large one, sound markup."""

from __future__ import annotations

import re
from itertools import pairwise
from xml.etree import ElementTree as Tree

import pytest

from reports.figure_pipeline import PASSES_AN_END, PipelinePicture, tick_step
from reports.page import TEMPLATES
from reports.palette import WORK
from reports.simulation_page import render_simulation
from reports.step_work import Piece, Work, device_pieces
from tests.unit.simulated import big, two_stages
from tests.unit.test_page import Outline

pytestmark = pytest.mark.unit

F, B, IDLE = Work.FORWARD, Work.BACKWARD, Work.BUBBLE


def told(pieces: list[Piece]) -> list[tuple[Work, float, float, int | None]]:
    return [(each.work, each.start, each.end, each.action.micro_batch if each.action else None) for each in pieces]


def rectangles(picture: PipelinePicture, work: Work) -> list[tuple[float, float, float, float]]:
    """(x, y, width, height) of every rectangle of a kind of work."""
    root = Tree.fromstring(picture.svg)
    for group in root.findall("g"):
        if group.get("style") == f"fill:{WORK[work].css}":
            sides = ("x", "y", "width", "height")
            return [tuple(float(each.attrib[side]) for side in sides) for each in group.findall("rect")]  # type: ignore[misc]
    return []


def test_the_pieces_of_1f1b() -> None:
    found = two_stages()
    assert told(device_pieces(found, 0, 0.0)) == [
        (F, 0, 1, 0), (F, 1, 2, 1), (IDLE, 2, 4, None), (B, 4, 6, 0), (IDLE, 6, 7, None), (B, 7, 9, 1),
    ]  # fmt: skip
    assert told(device_pieces(found, 1, 0.0)) == [
        (IDLE, 0, 1, None), (F, 1, 2, 0), (B, 2, 4, 0), (F, 4, 5, 1), (B, 5, 7, 1), (IDLE, 7, 9, None),
    ]  # fmt: skip


def test_the_rectangles_of_1f1b() -> None:
    picture = PipelinePicture(two_stages())
    second = picture.width / 9
    assert picture.row_height * 2 < picture.height
    top, below = 0.0, float(picture.row_height)
    assert rectangles(picture, F) == [
        (pytest.approx(start * second, abs=0.01), row, pytest.approx(second, abs=0.01), 20)
        for start, row in ((0, top), (1, top), (1, below), (4, below))
    ]
    assert rectangles(picture, B) == [
        (pytest.approx(start * second, abs=0.01), row, pytest.approx(2 * second, abs=0.01), 20)
        for start, row in ((4, top), (7, top), (2, below), (5, below))
    ]
    assert picture.legend == (F, B, IDLE)
    texts = [each.text for each in Tree.fromstring(picture.svg).iter("text")]
    assert texts[:8] == ["0", "1", "0", "1", "0", "0", "1", "1"]  # in the order of each row
    titles = [each.text for each in Tree.fromstring(picture.svg).iter("title")]
    assert "forward of micro-batch 1 on stage 0, rank 0: 1.00 s from 1.00 s" in titles


def test_messages_are_lines_below_their_rank() -> None:
    picture = PipelinePicture(two_stages(send=0.5))
    sent = [each for each in rectangles(picture, Work.COMMUNICATION) if each[3] < 20]
    second = picture.width / 10
    starts = [1.0, 2.0, 4.5, 7.5]  # 0F0, 0F1 as soon as they are made; 1B0, 1B1
    assert [each[0] for each in sent] == pytest.approx([start * second for start in starts], abs=0.01)
    assert [each[2] for each in sent] == pytest.approx([second / 2] * 4, abs=0.01)
    assert Work.COMMUNICATION in picture.legend


@pytest.mark.parametrize("narrowest", [0.0, 1.0])
def test_no_second_of_any_rank_is_lost(narrowest: float) -> None:
    found = big(pp=4, micro_batches=8, units=3, schedule="zbv", virtual=2)
    for place in range(4):
        pieces = device_pieces(found, place, narrowest)
        assert pieces[0].start == 0
        for one, other in pairwise(pieces):
            assert other.start == pytest.approx(one.end)
        assert pieces[-1].end == pytest.approx(found.step_seconds)
        whole = device_pieces(found, place, 0.0)
        for work in Work:
            seconds = sum(piece.seconds for piece in pieces if piece.work is work)
            assert seconds == pytest.approx(sum(piece.seconds for piece in whole if piece.work is work))
    assert {piece.work for piece in pieces} >= {F, Work.INPUT, Work.WEIGHT, Work.RECOMPUTE, Work.OPTIMIZER}


def test_short_pieces_of_a_pass_are_summed() -> None:
    found = big(pp=2, micro_batches=2, units=8)
    pieces = device_pieces(found, 0, 1.0)
    first = [piece for piece in pieces if piece.action and piece.action.micro_batch == 0 and piece.work is F]
    assert len(first) == 1
    assert first[0].seconds == pytest.approx(8 * 3e-3, rel=0.11)  # 8 blocks of 3 ms, slowed by a tenth at most


def test_sixteen_ranks_and_64_micro_batches_are_drawn_whole() -> None:
    picture = PipelinePicture(big(pp=16, micro_batches=64, units=1))
    assert picture.ranks == tuple(range(16))
    assert len(picture.windows) == 1
    assert len(rectangles(picture, F)) >= 16 * 64
    assert "left out" not in picture.caption
    assert "cut" not in picture.caption


def test_of_more_the_ends_are_drawn() -> None:
    picture = PipelinePicture(big(pp=20, micro_batches=80, units=1))
    assert picture.ranks == (*range(8), *range(12, 20))
    start, end = picture.windows
    step = picture.simulation.step_seconds
    assert start.start == 0
    assert end.left + (end.end - end.start) * picture.scale == pytest.approx(picture.width)
    assert end.left - (start.end - start.start) * picture.scale == pytest.approx(34), "the cut is not empty"
    assert end.end == pytest.approx(step)
    assert start.end - start.start == pytest.approx(step * PASSES_AN_END / 80) == pytest.approx(end.end - end.start)
    assert "4 ranks in the middle are left out" in picture.caption
    for work in Work:
        for x, _, width, _ in rectangles(picture, work):
            assert x >= 0
            assert x + width <= picture.width + 0.02
            cut = start.left + (start.end - start.start) * picture.scale
            assert x + width <= cut + 0.02 or x >= end.left - 0.02, "nothing is drawn in the cut"


def test_ticks_are_round() -> None:
    assert [tick_step(least) for least in (0.9, 1.0, 1.1, 2.1, 6.0, 0.03)] == pytest.approx([1, 1, 2, 5, 10, 0.05])


def test_the_page_is_sound_and_whole() -> None:
    found = two_stages(send=0.5)
    page = render_simulation(found, ())
    outline = Outline(page)
    ids = outline.values("id")
    assert len(ids) == len(set(ids))
    assert all(value == "data:," or value[1:] in ids for value in outline.values("href"))
    assert not re.search(r"https?://|@import|url\((?!#)", page)
    assert outline.tags["rect"] == page.count("<title>") - 1  # one of the page; each rectangle says what it is
    everything = "".join(outline.text)
    for said in ("10.00 s", "60.0 %", "pipeline communication", "exposed", "by hand"):
        assert said in everything
    shares = [float(share) for share in re.findall(r"flex-grow:([\d.]+)", page)]
    assert shares == [600.0, 100.0, 300.0]


def test_every_colour_of_the_page_is_a_variable_of_both_looks() -> None:
    page = render_simulation(two_stages(), ())
    width = {"drawn"}  # of the picture, in what fits it to paper
    for name in set(re.findall(r"var\(--([\w-]+)", page)) - width:
        assert page.count(f"--{name}:") == 2, name
    assert (TEMPLATES / "simulation.html.j2").exists()
