"""The terminal's tables and the pull-request report: fit their width, keep every case, obey nobody's markup."""

from __future__ import annotations

import io
import re

import pytest
from rich.cells import cell_len
from rich.console import Console

from reports.compare import CaseResult, Run, compare_case
from reports.markdown import markdown_report
from reports.summary import RunComparison, compare_run
from reports.tables import component_table, moment_table, print_run, stderr_text, term_table
from suite.layout import Layout
from suite.record import Moment, Outcome
from suite.spec import Recipe
from tests.unit import report_samples as made

pytestmark = pytest.mark.unit

ENVIRONMENT = {
    "cpu": "Example CPU",
    "cores": 2,
    "memory_bytes": 16 * 2**30,
    "packages": {"torch": "2.13.0"},
    "git": {"commit": "abcdef0123456789", "dirty": True},
}


@pytest.fixture(scope="module")
def comparison() -> RunComparison:
    return compare_run(made.sample_run())


def printed(*things: object, width: int = 80, colour: bool = False) -> str:
    file = io.StringIO()
    console = Console(file=file, width=width, force_terminal=colour, color_system="standard" if colour else None)
    for thing in things:
        if isinstance(thing, RunComparison):
            print_run(thing, console)
        else:
            console.print(thing)
    return file.getvalue()


@pytest.mark.parametrize("width", [80, 100, 120, 200])
def test_no_line_is_wider_than_the_console(comparison: RunComparison, width: int) -> None:
    lines = printed(comparison, width=width).splitlines()
    assert max(cell_len(line) for line in lines) <= width


def test_eighty_columns_still_show_what_matters(comparison: RunComparison) -> None:
    text = printed(comparison, width=80)
    for word in ("277.62 MiB", "277.29 MiB", "+0.12 %", "1.31 s", "oom", "hang", "failed", "not run"):
        assert word in text


def test_a_wide_console_shows_more(comparison: RunComparison) -> None:
    narrow, wide = printed(comparison, width=80), printed(comparison, width=160)
    for word in ("backward_peak", "tokens/s", "IQR", "MFU"):
        assert word not in narrow
        assert word in wide


def test_reasons_of_cases_that_did_not_run_are_said(comparison: RunComparison) -> None:
    text = printed(comparison, width=200)
    assert "oom: llama-50m single bf16-mixed flash: rank 0: allocation of 7.81 GiB refused" in text
    assert "10 of 14 cases ran to the end; 1 oom, 1 hang, 1 failed, 1 not run." in text


def test_names_are_printed_as_spelled_and_steer_no_terminal(comparison: RunComparison) -> None:
    text = printed(comparison, width=300)
    assert "[31m[red]|`*_" in text
    assert "\x1b" not in text
    assert "\u202e" not in text
    text.encode("utf-8")  # no lone surrogate is left


def test_a_tail_of_stderr_keeps_its_lines_and_loses_its_escapes() -> None:
    result = made.failed(made.case(), Outcome.FAILED, "x", "one\x1b[2J\r\ntwo [bold]three")
    assert (
        printed(stderr_text(compare_case(result)), width=60)
        == "rank 0:\none\N{REPLACEMENT CHARACTER}[2J\ntwo [bold]three\n"
    )


def test_moments_and_components_say_exact_or_how_far_off() -> None:
    case = made.case()
    table = {Moment.STEADY: {made.P: 1024}, Moment.LOSS: {made.P: 1024, made.A: 3072}}
    real = {Moment.STEADY: {made.P: 1024}, Moment.LOSS: {made.P: 1024, made.A: 1024}}
    measurement = made.measured(case, made.memory_samples(real))
    found = compare_case(CaseResult(case, (made.estimate(table),), None, measurement))
    text = printed(moment_table(found, 0), component_table(found))
    assert re.search(r"loss +4.00 KiB +2.00 KiB +\+100.00 %", text)
    assert re.search(r"steady +1.00 KiB +1.00 KiB +exact", text)
    assert re.search(r"activations +3.00 KiB +1.00 KiB +\+200.00 %", text)


def test_terms_are_listed_by_size_under_their_sum() -> None:
    table = {Moment.LOSS: {made.P: 1000, made.A: 3000}, Moment.STEADY: {made.P: 1000}}
    text = printed(term_table(made.estimate(table)))
    assert "loss" in text.splitlines()[0]
    assert "4,000 bytes" in text.splitlines()[0]
    assert text.index("activations = 3000") < text.index("parameters = 1000")


def test_an_empty_run_prints() -> None:
    empty = compare_run(Run("r", "now", "nothing", "bench"))
    assert "0 of 0 cases ran to the end." in printed(empty)
    assert "# Shardscope: nothing" in markdown_report(empty)


def test_markdown_has_a_row_a_case_and_no_live_markup(comparison: RunComparison) -> None:
    text = markdown_report(comparison)
    cases = text[: text.index("## Layouts ranked")]
    rows = [line for line in cases.splitlines() if line.startswith("|")]
    assert len(rows) == 2 + 14
    cells = {len(re.findall(r"(?<!\\)\|", row)) for row in rows}
    assert cells == {11}  # ten cells: a pipe in a name opens no eleventh; nothing is sent, which takes no column
    assert set(re.findall(r"<[^>]*>", text)) == {"<details>", "</details>", "<summary>", "</summary>"}
    assert "\\`" in text
    assert "\x1b" not in text


def test_markdown_of_forty_cases_is_short_and_names_machine_and_commit() -> None:
    """Every case a row with the errors of its peak and its step; a comment of 60 lines."""
    cases = [made.case(layout=Layout(dp=1 + place % 2), recipe=Recipe(seed=place)) for place in range(40)]
    results = tuple(made.finished(case, 0.01, 0.1, steps=2) for case in cases)
    text = markdown_report(compare_run(Run("r", "now", "s", "bench", ENVIRONMENT, results)))
    assert len(text.splitlines()) <= 60
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| gpt-1m")]
    assert len(rows) == 40
    assert {(row[3], row[6]) for row in rows} == {(row[3], "-7.0 %") for row in rows}  # made.finished is 7 % off
    assert all(re.fullmatch(r"[+-]\d\.\d\d %", row[3]) for row in rows)
    assert "commit abcdef012345+, Example CPU, 2 cores, 16.00 GiB, torch 2.13.0." in text
    assert "commit not recorded, machine not recorded." in markdown_report(compare_run(Run("r", "now", "s", "bench")))


def test_markdown_of_more_cases_says_how_many_are_left_out() -> None:
    cases = [made.case(recipe=Recipe(seed=place)) for place in range(90)]
    bad = tuple(made.failed(case, Outcome.OOM, "too big") for case in cases)
    text = markdown_report(compare_run(Run("r", "now", "s", "bench", {}, bad)))
    assert text.count("| gpt-1m") == 20  # half of what a report shows may be failures
    assert "70 more cases" in text
    assert "and 80 more" in text
    assert len(text.splitlines()) <= 60


def test_markdown_calls_nobody_and_links_nowhere() -> None:
    reason = "see https://evil.example/?a=1 @everyone [x](y) ![i](j) www.evil.example"
    run = Run("r", "now", "s", "bench", {}, (made.failed(made.case(), Outcome.FAILED, reason),))
    text = markdown_report(compare_run(run))
    assert "https://" not in text
    assert "@everyone" not in text
    assert "www.evil" not in text
    assert "](" not in text.replace("\\](", "")
