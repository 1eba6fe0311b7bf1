"""What is said of two runs: one wording for the terminal, the page and the pull request."""

from __future__ import annotations

import math
from collections import Counter

from rich.console import Console
from rich.table import Table

from reports.compare import CaseComparison
from reports.judge import CROWDED_CORES, Judgement, Verdict
from reports.measures import Group, Kind
from reports.regress.pair import PairComparison, Row, Side
from reports.regress.surroundings import commit_of
from reports.tables import add_column, cell, framed
from reports.text import plain, plural
from suite.units import NOT_KNOWN, number_text, percent_text

HEADINGS = ("verdict", "quantity", "A", "B", "change", "interval", "p", "effect", "readings", "why")
#: columns of a terminal narrower than WIDE
NARROW, WIDE = ("verdict", "quantity", "A", "B", "change", "p"), 132
TITLES = {
    Group.MEASURED: "measured: B against A, worst first",
    Group.PREDICTION: "how far the formulas are off: B against A, worst first",
}
#: rows that a terminal shows of a table
SHOWN_ROWS = 60
STYLES = {Verdict.WORSE: "bold red", Verdict.IMPROVED: "green", Verdict.NOISY: "yellow", Verdict.SAME: ""}
SINGLE = (
    "Every case was launched once on a side: what one launch of the same code does differently from the next cannot be"
    " told from a change. What tells: runs made with `bench --launches 3`, or further runs of either code, given with"
    " --more-a and --more-b."
)


def print_pair(found: PairComparison, console: Console) -> None:
    """What ran, what differed around it, verdicts worst first, what each means."""
    for line in heading_lines(found):
        console.print(cell(line))
    for group, title in TITLES.items():
        shown = [row for row in told(found) if row.judgement.measure.group is group][:SHOWN_ROWS]
        if shown:
            console.print(_table(title, shown, console.width))
    if same := same_line(found):
        console.print(cell(same))
    for line in (*outcome_lines(found), summary_line(found), *note_lines(found), *definitions(found)):
        console.print(cell(line))


def told(found: PairComparison) -> list[Row]:
    """The rows that are worth a line each: all but those that are the same, the worst first."""
    return [row for row in found.worst_first if row.judgement.verdict is not Verdict.SAME]


def same_line(found: PairComparison) -> str:
    """'same: final loss, nats (4 cases); bytes sent (2 cases)'; empty where nothing is."""
    same = Counter(row.judgement.measure.title for row in found.rows if row.judgement.verdict is Verdict.SAME)
    parts = [f"{title} ({plural(count, 'case')})" for title, count in same.items()]
    return f"same: {'; '.join(parts)}" if parts else ""


def _table(title: str, rows: list[Row], width: int) -> Table:
    """Every column on a wide terminal; on a narrow one those that carry the verdict, in numbers that do not wrap."""
    shown = [place for place, heading in enumerate(HEADINGS) if width >= WIDE or heading in NARROW]
    table = framed(title)
    add_column(table, "case", right=False)
    for place in shown:
        add_column(table, HEADINGS[place], right=HEADINGS[place] not in ("verdict", "quantity", "why"))
    for column in table.columns[1:]:
        column.no_wrap = column.header not in ("quantity", "why")
    for row in rows:
        verdict, *rest = row_cells(row)
        cells = [cell(verdict, STYLES[row.judgement.verdict]), *map(cell, rest)]
        table.add_row(cell(row.case.label), *(cells[place] for place in shown))
    return table


def heading_lines(found: PairComparison) -> list[str]:
    """The two runs, and every difference around them."""
    lines = [f"{name}: {side_text(side)}" for name, side in (("A", found.before), ("B", found.after))]
    differing = [f"  {'machine' if each.is_machine else 'differs'}: {each.text}" for each in found.surroundings]
    return [*lines, *(differing or ["Nothing recorded of their surroundings differs."])]


def side_text(side: Side) -> str:
    """'20261122-165516 of suite quick, 2026-11-22T16:55:16+00:00, commit 0256221, with 2 further runs'."""
    run = side.run.run
    more = f", with {plural(len(side.more), 'further run')}" if side.more else ""
    return plain(f"{run.name} of {run.suite}, {run.created}, commit {commit_of(run) or 'not recorded'}{more}")


def row_cells(row: Row) -> tuple[str, ...]:
    """The cells under HEADINGS."""
    found = row.judgement
    text = found.measure.text
    return (
        found.verdict.value,
        found.measure.title,
        text(found.before),
        text(found.after),
        change_text(found),
        interval_text(found),
        p_text(found),
        number_text(found.test.delta, 2) if found.test else "",
        readings_text(found),
        found.why,
    )


def change_text(found: Judgement) -> str:
    """'+12.30 %', of a share '+1.20 points'; of what was nothing 'from 0'."""
    if not math.isfinite(found.change):
        return NOT_KNOWN if math.isnan(found.change) else "from 0"
    if found.measure.is_share:
        return f"{found.change * 100:+.2f} points"
    small = found.change and abs(found.change) < 5e-5
    return f"{found.change * 100:+.1g} %" if small else percent_text(found.change, signed=True)


def interval_text(found: Judgement) -> str:
    """'+8.1 to +16.4 %'; empty where there is none."""
    if found.interval is None:
        return ""
    unit = "points" if found.measure.is_share else "%"
    return f"{found.interval.low * 100:+.1f} to {found.interval.high * 100:+.1f} {unit}"


def p_text(found: Judgement) -> str:
    """'0.0079'; empty for what is counted."""
    if found.p is None:
        return ""
    return "< 0.0001" if found.p < 1e-4 else number_text(found.p, 2)


def readings_text(found: Judgement) -> str:
    """'5, 5', or '15 of 3 launches, 5'."""
    if found.measure.kind is Kind.COUNTED and found.launches == (1, 1):
        return ""
    pairs = zip(found.readings, found.launches, strict=True)
    return ", ".join(f"{count} of {launches} launches" if launches > 1 else str(count) for count, launches in pairs)


def outcome_lines(found: PairComparison) -> list[str]:
    """Cases that ended another way, and those that only one run tried."""
    lines = [
        f"{each.verdict.value}: {each.case.label}: {each.before}, then {each.after}: {each.reason or 'no reason given'}"
        for each in found.outcomes
    ]
    for name, cases in (("A", found.only_before), ("B", found.only_after)):
        if cases:
            lines.append(f"only in {name}: {'; '.join(_label(case) for case in cases)}")
    return [plain(line) for line in lines]


def summary_line(found: PairComparison) -> str:
    """'4 cases in both: 1 worse, 0 improved, 9 noisy, 12 same.'"""
    predictions = found.prediction_counts
    off = f" Errors of the formulas: {_counts_text(predictions)}." if any(predictions.values()) else ""
    return f"{plural(found.shared, 'case')} in both: {_counts_text(found.counts)}.{off}"


def _counts_text(counts: dict[Verdict, int]) -> str:
    return ", ".join(f"{count} {verdict.value}" for verdict, count in counts.items())


def note_lines(found: PairComparison) -> list[str]:
    """What a reader has to keep in mind."""
    return [SINGLE] if found.is_single else []


def definitions(found: PairComparison) -> list[str]:
    """What the verdicts mean, with the numbers that were used."""
    alpha, least = number_text(found.limits.alpha, 3), percent_text(found.limits.least)
    return [
        "A and B: medians over a case's steps (or answers) after warm-up, of the slowest rank. Interval: the change"
        f" that the test leaves at {alpha}, case by case. Effect: Cliff's delta: -1 (all of B smaller) to 1 (larger).",
        "p: two-sided Mann-Whitney, exact up to 60 readings, adjusted by Holm over all cases of a quantity: the chance"
        f" of any false call among them is at most {alpha}, as far as readings are independent.",
        f"worse, improved: p < {alpha}, and the change is at least {least}, at least what launches of one side differ"
        " by, and at least what the machine's own operators (timed before each run, with the same torch) changed by;"
        f" never where other processes kept more than {CROWDED_CORES:g} cores busy meanwhile.",
        f"same: the whole interval is within {least}, or the change is found and smaller. noisy: neither can be said.",
        "Counted quantities have no test: bytes sent and caches are the same if equal, peak memory within 0.01 %, a"
        " loss within 0.1 %, an error of the formulas within 0.1 points; with several launches, where ranges meet.",
    ]


def _label(case: CaseComparison) -> str:
    return case.case.label if case.is_ok else f"{case.case.label} ({case.status})"
