"""Every kind of page as HTML of which a strict parser has nothing to say, and in a real browser: quiet, sorted,
filtered, narrow, dark, printed, without a script, by keyboard."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from html import escape
from itertools import pairwise
from pathlib import Path
from typing import Any

import html5lib
import pytest

from tests.e2e.browser import MISSING, Browser, find_browser, started
from tests.unit.page_samples import PAGES

pytestmark = pytest.mark.e2e

PROBES = (Path(__file__).parent / "page_probes.js").read_text(encoding="utf-8").rstrip().removesuffix(";")
#: CSS pixels between the margins of 1 cm that browsers print with
A4 = 718
ENTER, SPACE, TAB = ("Enter", 13, "\r"), (" ", 32, " "), ("Tab", 9)
SHOWN = re.compile(r"([+-]?[\d.,]+(?:e[+-]?\d+)?) ?([A-Za-z%]*)")
#: as suite/units.py writes them
SIZES = {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40, "us": 1e-6, "ms": 1e-3, "s": 1, "min": 60, "h": 3600}
Made = Callable[[str], Path]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Makes a page when it is first asked for."""
    found: dict[str, Path] = {}

    def page(kind: str) -> Path:
        if kind not in found:
            found[kind] = PAGES[kind](tmp_path_factory.mktemp(kind))
        return found[kind]

    return page


@pytest.fixture(scope="module")
def one_browser() -> Iterator[Browser]:
    program = find_browser()
    if program is None:
        pytest.skip(MISSING)
    with started(program) as browser:
        yield browser


@pytest.fixture
def browser(one_browser: Browser) -> Browser:
    """The module's browser as it is at first."""
    one_browser.size(1280)
    one_browser.media()
    return one_browser


@pytest.fixture(scope="module", params=PAGES)
def kind(request: pytest.FixtureRequest) -> str:
    """What a page is of: all tests of one kind run before those of the next."""
    return str(request.param)


def ask(browser: Browser, call: str) -> Any:
    """What a function of page_probes.js says."""
    return browser.do(f"{PROBES}.{call}")


def value(text: str) -> float:
    """A number as it is shown; what is not known is larger than any."""
    if text in ("", "n/a"):
        return float("inf")
    if text == "exact":
        return 0.0
    found = SHOWN.match(text)
    assert found, text
    return abs(float(found[1].replace(",", "")) * SIZES.get(found[2], 1))


def test_html_is_valid(kind: str, made: Made) -> None:
    text = made(kind).read_text(encoding="utf-8")
    parser = html5lib.HTMLParser(namespaceHTMLElements=False)
    root = parser.parse(text)
    assert parser.errors == []
    elements = list(root.iter())
    ids = Counter(found.get("id") for found in elements if found.get("id") is not None)
    assert [name for name, count in ids.items() if count > 1 or not name or " " in name] == []
    for found in elements:
        for name in ("aria-labelledby", "aria-describedby", "for", "headers"):
            assert set((found.get(name) or "").split()) <= set(ids), (name, found.get(name))
        link = found.get("href") or found.get("{http://www.w3.org/1999/xlink}href") or ""
        assert not link.startswith("#") or link[1:] in ids, link
        children = {str(child.tag) for child in found}
        allowed = {"ul": {"li"}, "ol": {"li"}, "dl": {"div", "dt", "dd"}, "tr": {"td", "th"}}.get(str(found.tag))
        assert allowed is None or children <= allowed, (found.tag, children)
        if found.tag == "table":
            assert "caption" in children
    assert sum(found.tag == "h1" for found in elements) == 1


def test_nothing_is_complained_of_or_fetched(kind: str, made: Made, browser: Browser) -> None:
    page = made(kind)
    browser.show(page)
    browser.do("new Promise((done) => requestAnimationFrame(() => setTimeout(done, 0)))")
    assert [event["entry"] for event in browser.events("Log.entryAdded")] == []
    assert browser.events("Runtime.exceptionThrown") == browser.events("Runtime.consoleAPICalled") == []
    asked = {event["request"]["url"] for event in browser.events("Network.requestWillBeSent")}
    assert {url for url in asked if not url.startswith("data:")} == {page.as_uri()}


def test_every_figure_says_its_values_where_it_is_pointed_at(kind: str, made: Made, browser: Browser) -> None:
    browser.show(made(kind))
    assert browser.do("document.querySelectorAll('figure svg').length")
    assert ask(browser, "mute()") == []


def test_letters_can_be_read_in_light_and_dark(kind: str, made: Made, browser: Browser) -> None:
    browser.show(made(kind))
    papers = []
    for scheme in ("light", "dark"):
        browser.media(scheme=scheme)
        papers.append(browser.do("getComputedStyle(document.body).backgroundColor"))
        assert ask(browser, "faint(4.5)") == [], scheme
    assert papers[0] != papers[1]


def test_paper_shows_what_is_folded_and_no_controls(kind: str, made: Made, browser: Browser) -> None:
    browser.show(made(kind))
    browser.size(A4)
    browser.media("print")
    controls, folded = ask(browser, "printed()")
    assert (controls, folded) == (0, 0)
    assert browser.do("document.scrollingElement.scrollWidth") <= A4


def test_a_narrow_screen_has_no_sideways_scroll(kind: str, made: Made, browser: Browser) -> None:
    browser.size(360)
    browser.show(made(kind))
    width, room, guilty = ask(browser, "wide()")
    assert (width, room, guilty) == (360, 360, [])


def test_a_column_of_numbers_sorts_by_click_and_by_keyboard(kind: str, made: Made, browser: Browser) -> None:
    browser.open(made(kind))
    tables = ask(browser, "sortable()")
    assert tables
    for table, place in tables[:3]:
        before = ask(browser, f"column('{table}', {place})")
        heading = f"#{table} thead th:nth-child({place + 1})"
        browser.click(f"{heading} button")
        rising = ask(browser, f"column('{table}', {place})")
        assert sorted(rising) == sorted(before)
        assert in_order([value(text) for text in rising]) or in_order([signed(text) for text in rising]), rising
        assert browser.do(f"document.querySelector('{heading}').ariaSort") == "ascending"
        browser.press(*ENTER)  # a click leaves the focus on the button
        falling = ask(browser, f"column('{table}', {place})")
        known = [text for text in falling if text not in ("", "n/a")]
        assert falling[: len(known)] == known  # what is not known stays last
        numbers = [value(text) for text in known][::-1]
        assert in_order(numbers) or in_order([signed(text) for text in known][::-1]), falling
        assert browser.do(f"document.querySelector('{heading}').ariaSort") == "descending"
        browser.press(*SPACE)
        assert ask(browser, f"column('{table}', {place})") == before


def signed(text: str) -> float:
    return value(text) * (-1 if text.startswith("-") else 1)


def in_order(numbers: list[float]) -> bool:
    """Rising, but for what the shown digits hide."""
    return all(low <= high * 1.01 + 1e-12 or low <= high for low, high in pairwise(numbers))


def test_a_filter_hides_rows_and_counts_the_rest(kind: str, made: Made, browser: Browser) -> None:
    browser.open(made(kind))
    table = browser.do("document.querySelector('table[data-filter]:not(#peer-table)[id]').id")
    field = f"document.getElementById('{table}').closest('.scroll').previousElementSibling.querySelector('input')"
    names = ask(browser, f"column('{table}', 0)")
    count = f"{field}.closest('.filter').querySelector('output').textContent"
    assert browser.do(count) == f"{len(names)} rows"
    words = names[-1].split()
    browser.do(f"{field}.focus()")
    browser.type(" ".join(words).upper())
    shown = ask(browser, f"column('{table}', 0)")
    texts = browser.do(
        f"[...document.getElementById('{table}').tBodies[0].rows].map((row) => row.textContent.toLowerCase())"
    )
    wanted = [name for name, text in zip(names, texts, strict=True) if all(word.lower() in text for word in words)]
    assert shown == wanted
    assert 0 < len(shown) < len(names) or len(set(names)) == 1
    assert browser.do(count) == f"{len(shown)} of {len(names)} rows"
    browser.type(" no-such-word")
    assert ask(browser, f"column('{table}', 0)") == []
    assert browser.do(count) == f"0 of {len(names)} rows"


def test_the_keyboard_reaches_everything_and_shows_where_it_is(kind: str, made: Made, browser: Browser) -> None:
    browser.open(made(kind))
    for _ in range(ask(browser, "watch()") + 1):
        browser.press(*TAB)
    assert ask(browser, "missed()") == [[], []]


def test_without_a_script_rows_and_figures_are_there(kind: str, made: Made, browser: Browser) -> None:
    page = made(kind)
    browser.open(page)
    counting = "['tbody tr', 'figure svg', 'table', 'details'].map((what) => document.querySelectorAll(what).length)"
    with_script = browser.do(counting)
    browser.script(on=False)
    try:
        browser.open(page)
        assert browser.do(counting) == with_script
        assert browser.do("document.querySelectorAll('button, input, [hidden]').length") == 0
        assert browser.do("[...document.querySelectorAll('main > section')].every((part) => part.offsetHeight > 0)")
        if browser.do("document.querySelectorAll('details:not([open])').length"):
            browser.do("document.querySelector('details:not([open])').id = 'closed'")
            browser.click("#closed > summary")
            assert browser.do("document.getElementById('closed').open")
    finally:
        browser.script(on=True)


def test_a_filter_compares_numbers_in_their_units(made: Made, browser: Browser) -> None:
    browser.open(made("plan"))
    steps = ask(browser, "column('layouts-table', 3)")
    low, high = sorted(set(map(value, steps)))[:2]
    browser.do("document.querySelector('.filter input').focus()")
    browser.type(f"step<{(low + high) / 2 * 1e3:.6f}ms")
    assert ask(browser, "column('layouts-table', 3)") == [text for text in steps if value(text) == low]
    browser.type(" no-such-word")
    assert ask(browser, "column('layouts-table', 3)") == []


def test_what_was_sorted_and_filtered_is_in_the_address(made: Made, browser: Browser) -> None:
    page = made("validation")
    browser.open(page)
    browser.click("#scores-table thead th:nth-child(4) button")
    browser.do("document.querySelector('.filter input').focus()")
    browser.type("kv")
    seen = ask(browser, "column('scores-table', 3)")
    address = browser.do("location.href")
    browser.open(page, address.partition("#")[2])
    assert ask(browser, "column('scores-table', 3)") == seen
    assert browser.do("document.querySelector('.filter input').value") == "kv"


def test_after_printing_folds_are_as_they_were(made: Made, browser: Browser) -> None:
    browser.open(made("run"))
    count = "document.querySelectorAll('details[open]').length"
    before = browser.do(count)
    browser.do(f"addEventListener('beforeprint', () => (window.printed = {count})), 0")
    browser.send("Page.printToPDF", pageRanges="1")
    assert browser.do("window.printed === document.querySelectorAll('details').length")
    assert browser.do(count) == before


def test_an_address_that_leads_nowhere_is_no_error(made: Made, browser: Browser) -> None:
    for fragment in ("%", "no-such-place", "?layouts-table.sort=99-ascending&layouts-table.filter=%ZZ", "?&=&"):
        browser.open(made("plan"), fragment)
        assert browser.events("Runtime.exceptionThrown") == [], fragment


def test_a_page_within_another_sorts_and_filters(made: Made, browser: Browser, tmp_path: Path) -> None:
    """As notebooks show it: it has no address of its own to keep what is shown in."""
    page = escape(made("plan").read_text(encoding="utf-8"))
    outer = tmp_path / "outer.html"
    outer.write_text(f'<!doctype html><title>outer</title><iframe srcdoc="{page}"></iframe>', encoding="utf-8")
    browser.open(outer)
    browser.do("frames[0].document.querySelector('table.sortable thead button').click()")
    assert browser.do("frames[0].document.querySelector('table.sortable th').ariaSort") == "ascending"
    assert browser.events("Runtime.exceptionThrown") == []
