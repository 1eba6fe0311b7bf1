"""`compare RUN_A RUN_B`: what its flags ask, and the answers in every form."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from reports.asked_files import check_files, write_files
from reports.judge import Limits, Verdict
from reports.load import load_run
from reports.measures import measures_named
from reports.regress.mapping import pair_mapping
from reports.regress.pair import PairComparison, Side, compare_runs
from reports.regress.surroundings import commit_of, differences, other_machine
from reports.regress.text import print_pair
from reports.streams import output, tell
from reports.summary import RunComparison, compare_run
from suite.parse import SpecError, nearest, require, shown, to_mapping
from suite.stats import ALPHA, LEAST

#: what --fail-on takes, and the verdicts that it means
_FAILING = {"worse": (Verdict.WORSE,), "changed": (Verdict.WORSE, Verdict.IMPROVED)}


def compare_two(options: argparse.Namespace) -> int:
    """Compare two runs and say it; 1 where --fail-on names what was found. SpecError for runs that cannot be."""
    failing = _failing(options.fail_on)
    check_files(options.page, options.markdown)
    measures, limits = measures_named(options.quantity), _limits(options)
    first, second = options.runs
    before = _side(first, options.more_a, "--more-a")
    after = _side(second, options.more_b, "--more-b")
    _check_machines((before.run, *before.more, after.run, *after.more), options.across_machines)
    found = compare_runs(before, after, measures, limits)
    _check_shared(found)
    _write(found, options)
    if options.json:
        print(json.dumps(to_mapping(pair_mapping(found)), allow_nan=False))
    else:
        print_pair(found, output())
    return 1 if found.fails(failing) else 0


def _failing(named: str | None) -> Sequence[Verdict]:
    if named is None:
        return ()
    if named not in _FAILING:
        raise SpecError(f"--fail-on: {shown(named)} is not known; {nearest(named, _FAILING)}")
    return _FAILING[named]


def _limits(options: argparse.Namespace) -> Limits:
    alpha = ALPHA if options.alpha is None else options.alpha
    require(alpha < 1, f"--alpha: {alpha:g} is no chance; give a number between 0 and 1, as {ALPHA}")
    least = LEAST if options.least is None else options.least
    require(least < 1, f"--least: {least:g} is no fraction; 2 % is 0.02")
    return Limits(alpha, least)


def _side(path: str, more: Sequence[str] | None, flag: str) -> Side:
    """A run with further ones of the same code; those of another commit are told. A run counts once."""
    for place, each in enumerate(paths := [path, *(more or ())]):
        earlier = [Path(other).resolve() for other in paths[:place]]
        require(Path(each).resolve() not in earlier, f"{flag}: {shown(each)} is on that side already; name other runs")
    first = compare_run(load_run(path))
    rest = tuple(compare_run(load_run(each)) for each in more or ())
    for other in rest:
        if commit_of(other.run) != commit_of(first.run):
            tell(f"{other.run.name}: commit {commit_of(other.run)}, not {commit_of(first.run)} as {first.run.name}")
    return Side(first, rest)


def _check_machines(runs: Sequence[RunComparison], across: bool) -> None:
    """Refuse runs of different machines, or say that they are."""
    for other in runs[1:]:
        found = other_machine(differences(runs[0].run, other.run))
        said = "; ".join(each.text for each in found)
        require(
            not found or across,
            f"{other.run.name}: another machine than {runs[0].run.name}'s ({said}); --across-machines compares them",
        )
        if found:
            tell(f"different machines ({said}): a difference in time may be theirs alone")
        if not any(name in run.run.environment for run in (runs[0], other) for name in ("cpu", "cores")):
            tell(f"{other.run.name}: neither it nor {runs[0].run.name} says what machine it ran on")


def _check_shared(found: PairComparison) -> None:
    first, second = found.before.run, found.after.run
    require(
        found.shared > 0,
        f"{first.run.name} and {second.run.name} have no case in common ({len(found.before.cases)} and"
        f" {len(found.after.cases)} that ran); compare runs of one suite",
    )
    names = ", ".join(measure.name for measure in found.measures)
    require(
        bool(found.rows or found.outcomes),
        f"{first.run.name} and {second.run.name} share {found.shared} cases, and none has {names} in both",
    )


def _write(found: PairComparison, options: argparse.Namespace) -> None:
    """The page and the pull request's comment, where they were asked for; both are made before either is written."""
    texts: dict[str, str] = {}
    if options.page is not None:
        from reports.regress.page import render_pair

        texts[options.page] = render_pair(found)
    if options.markdown is not None:
        from reports.regress.markdown import pair_markdown

        texts[options.markdown] = pair_markdown(found)
    write_files(texts)
