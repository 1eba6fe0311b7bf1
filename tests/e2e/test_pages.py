"""Every page in a real browser: nothing goes wrong or is fetched; tables sort and filter, by mouse and by keys; a narrow
screen, the dark, paper, and a browser without scripts show all of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.chromium import Chromium, Page, find_chromium
from tests.unit.page_samples import MAKERS

PROGRAM = find_chromium()
pytestmark = pytest.mark.skipif(PROGRAM is None, reason="no Chromium here: Debian's package is chromium")

TABLES = "Array.from(document.querySelectorAll('table.sortable'))"
#: of a table, the place of the first column of numbers that are not all alike
NUMBERS = """(table) => Array.from(table.tHead.rows[0].cells).findIndex((cell, place) => {
  const all = Array.from(table.tBodies).flatMap((body) => Array.from(body.rows, (row) => row.cells[place]));
  return new Set(all.map((cell) => cell && cell.dataset.sort).filter((value) => value)).size > 1;
})"""
SORTED = """(table, place) => Array.from(table.tBodies).flatMap((body) => Array.from(body.rows, (row) => row.cells[place]))
  .filter((cell) => cell && cell.dataset.sort !== undefined).map((cell) => cell.dataset.sort === '' ? null : Number(cell.dataset.sort))"""
#: the least contrast of text on what is behind it (WCAG 2.1, 1.4.3), and whose it is
CONTRAST = """(() => {
  const parts = (text) => text.match(/[\\d.]+/g).map(Number);
  const light = (rgb) => rgb.slice(0, 3).map((c) => c / 255).map((c) => c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
    .reduce((sum, c, place) => sum + c * [0.2126, 0.7152, 0.0722][place], 0);
  const behind = (found) => { for (; found; found = found.parentElement) {
    const colour = getComputedStyle(found).backgroundColor, rgb = colour.startsWith('rgb') ? parts(colour) : [0, 0, 0, 0];
    if (rgb.length === 3 || rgb[3] === 1) return rgb; } return [255, 255, 255]; };
  let least = [99, ''];
  for (const found of document.querySelectorAll('h1, h2, p, td, th, li, summary, dt, dd, caption, a, figcaption')) {
    const colour = getComputedStyle(found).color;
    if (!found.textContent.trim() || !found.getClientRects().length || !colour.startsWith('rgb')) continue;
    const [a, b] = [light(parts(colour)), light(behind(found))].sort((x, y) => y - x);
    if ((a + 0.05) / (b + 0.05) < least[0]) least = [(a + 0.05) / (b + 0.05), found.outerHTML.slice(0, 120)];
  }
  return least;
})()"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Chromium]:
    assert PROGRAM is not None
    found = Chromium(PROGRAM)
    yield found
    found.close()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Each page, written once."""
    paths = {}
    for name, make in MAKERS.items():
        made = make(tmp_path_factory.mktemp(name))
        paths[name] = tmp_path_factory.mktemp("pages") / f"{name}.html"
        paths[name].write_text(made, encoding="utf-8")
    return paths


@pytest.fixture(params=MAKERS)
def page(request: pytest.FixtureRequest, browser: Chromium, files: dict[str, Path]) -> Iterator[Page]:
    found = browser.open()
    found.resize(1280)
    found.emulate()
    found.goto(files[request.param])
    yield found
    found.close()


def test_nothing_goes_wrong_and_nothing_is_fetched(page: Page) -> None:
    assert page.complaints == []
    assert [url[:8] for url in page.requests if not url.startswith("data:")] == ["file:///"]


def test_tables_sort_by_mouse_and_by_keys(page: Page) -> None:
    found = page.evaluate(f"{TABLES}.map({NUMBERS})")
    places = [(table, column) for table, column in enumerate(found) if column >= 0]
    assert places, "no table with numbers to sort by"
    table, column = places[0]
    one = f"{TABLES}[{table}]"
    page.evaluate(f"{one}.closest('details') && ({one}.closest('details').open = true)")
    button = f"{one}.tHead.rows[0].cells[{column}].querySelector('button')"
    values = f"({SORTED})({one}, {column})"
    before = page.evaluate(values)
    known = sorted(value for value in before if value is not None)
    unknown = [None] * (len(before) - len(known))
    page.click(button)
    assert page.evaluate(values) == known + unknown
    assert page.evaluate(f"{one}.tHead.rows[0].cells[{column}].getAttribute('aria-sort')") == "ascending"
    page.evaluate(f"{button}.focus()")
    page.press("Enter")
    assert page.evaluate(values) == known[::-1] + unknown
    assert page.evaluate(f"{one}.tHead.rows[0].cells[{column}].getAttribute('aria-sort')") == "descending"
    page.press(" ")
    assert page.evaluate(values) == before
    assert page.complaints == []


def test_a_filter_hides_rows_and_counts_what_is_left(page: Page) -> None:
    if not page.evaluate("document.querySelectorAll('.filter input').length"):
        assert page.evaluate(f"Math.max(...{TABLES}.map((table) => table.querySelectorAll('tbody tr').length))") <= 8
        return  # nothing that is worth a filter
    page.evaluate("document.querySelector('details:has(.filter)')?.setAttribute('open', '')")
    shown = "document.querySelector('.filter output').textContent"
    assert page.evaluate(shown).endswith(" rows")
    total = int(page.evaluate(shown).split()[0])
    page.evaluate("document.querySelector('.filter input').focus()")
    page.type("no row says this")
    assert page.evaluate(shown) == f"0 of {total} rows"
    page.evaluate(
        "(() => { const box = document.querySelector('.filter input'); box.value = ''; box.dispatchEvent(new Event('input')); })()"
    )
    assert page.evaluate(shown) == f"{total} rows"


def test_a_narrow_screen_has_no_sideways_scroll(page: Page) -> None:
    page.resize(360, 740)
    page.evaluate("document.querySelectorAll('details').forEach((found) => (found.open = true))")
    widths = page.evaluate("[document.scrollingElement.scrollWidth, innerWidth]")
    assert widths[0] <= widths[1], page.evaluate(
        "Array.from(document.querySelectorAll('main *')).filter((e) => !e.closest('.scroll') && e.getBoundingClientRect().right >"
        " innerWidth + 1).slice(0, 3).map((e) => e.outerHTML.slice(0, 150))"
    )


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read_in_the_light_and_in_the_dark(page: Page, scheme: str) -> None:
    page.emulate(scheme=scheme)
    page.evaluate("document.querySelectorAll('details').forEach((found) => (found.open = true))")
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor.match(/[\\d.]+/g).map(Number)")
    assert (sum(ground[:3]) > 600) == (scheme == "light")
    least, whose = page.evaluate(CONTRAST)
    assert least >= 4.5, whose


def test_paper_has_no_controls(page: Page) -> None:
    page.emulate(media="print")
    visible = "Array.from(document.querySelectorAll('.filter, nav')).filter((found) => found.getClientRects().length).length"
    assert page.evaluate(visible) == 0


def test_every_control_is_reached_by_tab_and_shows_it(page: Page) -> None:
    """Of each kind of control the first few: reached in turn, with an outline."""
    names = set()
    for _ in range(25):
        page.press("Tab")
        seen = page.evaluate(
            "(() => { const e = document.activeElement, s = getComputedStyle(e); return e === document.body ? null :"
            " [e.tagName, s.outlineStyle !== 'none' || s.boxShadow !== 'none']; })()"
        )
        if seen is None:
            break
        assert seen[1], f"{seen[0]} has no outline"
        names.add(seen[0])
    assert "BUTTON" in names or "A" in names


def test_figures_say_their_values(page: Page) -> None:
    figures = page.evaluate("document.querySelectorAll('figure svg').length")
    titles = page.evaluate("document.querySelectorAll('figure svg g > title').length")
    assert figures == 0 or titles > 0


def test_without_scripts_all_of_it_is_there(page: Page, request: pytest.FixtureRequest, files: dict[str, Path]) -> None:
    counts = "[document.querySelectorAll('tbody tr').length, document.querySelectorAll('figure svg').length]"
    with_scripts = page.evaluate(counts)
    page.call("Emulation.setScriptExecutionDisabled", value=True)
    name = request.node.callspec.params["page"]
    page.goto(files[name])
    assert page.evaluate(counts) == with_scripts
    assert page.evaluate("document.querySelectorAll('th button, .filter').length") == 0
    assert page.evaluate("Array.from(document.querySelectorAll('tbody tr')).filter((row) => row.hidden).length") == 0
