"""What `calibrate` does: measure this machine's operators, products, memory, collectives and overheads; write them."""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from memory.estimate import MemoryModel
from parallelism.calibration.asking import Item, OperatorTimeError, measure_operators
from parallelism.overheads.asking import Family, OverheadError, exact_families, families, measure_overheads
from parallelism.simulator.cpu_costs import items_of
from parallelism.simulator.cpu_operators import untimed
from parallelism.simulator.cpu_wanted import wanted_of
from reports.streams import output, tell
from reports.text import plural
from suite.case import Case
from suite.cases import suite_of
from suite.environment import available_cores
from suite.hardware import matmul_dtype
from suite.hardware.calibration import Calibration, readable, write_calibration
from suite.hardware.collective_calibration import CollectiveTimeError, grid, measure_collectives
from suite.hardware.collective_times import Exchange
from suite.hardware.matrix_rate import BUSY_CORES, SHAPES, MatrixRateError, measure_matrix_rates
from suite.hardware.operator_times import Crowd
from suite.parse import require, shown
from suite.units import percent_text, rate_text, seconds_text

#: cases whose operators are measured: those that the suites train, so that their steps need no interpolation
SUITES, QUICK_SUITES = ("default", "strategies"), ("quick",)


@dataclass(frozen=True)
class Budget:
    """Seconds of timing for each kind; starting the processes comes on top."""

    operators: float
    """a number of ranks at once"""
    products: float
    collectives: float
    overheads: float


WHOLE = Budget(operators=12.0, products=2.0, collectives=30.0, overheads=20.0)
QUICK = Budget(operators=2.0, products=0.3, collectives=2.0, overheads=1.0)


class CalibrationError(RuntimeError):
    """A measuring process failed; one line says how."""


def calibrate(cases: Sequence[Case], budget: Budget, tell: Callable[[object], None] = tell) -> Calibration:
    """This machine, measured at the very shapes that these cases need: operators, collectives and overheads alone,
    never a step. Cases on other devices, and those of which something is not timed, are left out.

    Raises CalibrationError, in one line, where a measuring process fails.
    """
    wanted = _measurable(cases)
    return _measured(wanted, needed_by(wanted), budget, tell)


def calibrate_widely(ranks: Sequence[int], quick: bool, tell: Callable[[object], None] = tell) -> Calibration:
    """This machine with no case in view: the operators of the suites' cases with so many ranks, collectives over a grid
    of sizes and groups, the strategies' overheads as they add up from units and parameters. As `calibrate` otherwise.
    """
    suites, budget = (QUICK_SUITES, QUICK) if quick else (SUITES, WHOLE)
    cases = [case for name in suites for case in suite_of(name) if case.cluster.per_node in ranks]
    counts = ",".join(map(str, ranks))
    require(bool(cases), f"--ranks: no case of the suites {' and '.join(suites)} has {counts} ranks; try 1,2,4")
    exchanges = [exchange for exchange in grid(quick) if exchange.world in ranks]
    return _measured(_measurable(cases), Messages(exchanges, families() if max(ranks) > 1 else ()), budget, tell)


@dataclass(frozen=True)
class Messages:
    """What is measured between ranks, and of strategies."""

    exchanges: Sequence[Exchange]
    families: Sequence[Family]


def needed_by(cases: Iterable[Case]) -> Messages:
    """What the cases say, and what their strategies cost at their own sizes."""
    wanted = wanted_of((case, MemoryModel(case).ledger_of_share(0)) for case in cases)
    if not wanted.exchanges:
        return Messages((), ())
    return Messages(
        wanted.exchanges, (*families(), *exact_families(wanted.cores, wanted.units, wanted.engines, wanted.halves))
    )


def _measurable(cases: Iterable[Case]) -> list[Case]:
    here = [case for case in cases if can_calibrate(case)]
    require(bool(here), "calibrate: none of the cases runs on this machine's CPU with what is timed")
    return here


def _measured(cases: Sequence[Case], messages: Messages, budget: Budget, tell: Callable[[object], None]) -> Calibration:
    start = time.monotonic()
    try:
        found = _operators(cases, budget, tell)
        found = _products(found, cases, budget, tell)
        found = _said(found, messages, budget, tell)
    except (OperatorTimeError, MatrixRateError, CollectiveTimeError, OverheadError) as error:
        raise CalibrationError(str(error)) from None
    created = datetime.now(UTC).isoformat(timespec="seconds")
    return replace(found, created=created, seconds=round(time.monotonic() - start, 1))


def can_calibrate(case: Case) -> bool:
    """Does it run on this machine's CPU alone, with operators that are timed?"""
    return case.cluster.device == "cpu" and case.cluster.nodes == 1 and not untimed(case)


def items_by_crowd(cases: Iterable[Case]) -> dict[Crowd, set[Item]]:
    """The operators of these cases, beside how many ranks each runs."""
    found: dict[Crowd, set[Item]] = defaultdict(set)
    for case in cases:
        crowd = Crowd.of(case.cluster.per_node, available_cores())
        used = items_of(case, MemoryModel(case).ledger_of_share(0))
        found[crowd] |= {Item(use.operator, use.shape, kind) for use, kind in used}
    return dict(sorted(found.items()))


def _operators(cases: Sequence[Case], budget: Budget, tell: Callable[[object], None]) -> Calibration:
    parts = []
    for crowd, items in items_by_crowd(cases).items():
        tell(f"measuring {plural(len(items), 'operator')} with {crowd} ...")
        parts.append(measure_operators(crowd, items, budget.operators))
    busiest = max(part.machine.other_cores for part in parts)
    return Calibration(
        machine=replace(parts[0].machine, other_cores=busiest),
        operators=tuple(each for part in parts for each in part.operators),
        memory=tuple(part.memory for part in parts),
        overheads=parts[-1].overheads,
    )


def _products(found: Calibration, cases: Sequence[Case], budget: Budget, tell: Callable[[object], None]) -> Calibration:
    ranks = sorted({case.cluster.per_node for case in cases})
    dtypes = sorted({matmul_dtype(case.workload.precision) for case in cases})
    tell(f"measuring matrix products (ranks at once: {', '.join(map(str, ranks))}) ...")
    rates = measure_matrix_rates(ranks, budget.products, SHAPES, dtypes)
    return replace(found, matrix=rates.rates)


def _said(found: Calibration, messages: Messages, budget: Budget, tell: Callable[[object], None]) -> Calibration:
    if messages.exchanges:
        tell(f"measuring {plural(len(messages.exchanges), 'collective')} ...")
        times, others = measure_collectives(messages.exchanges, budget.collectives)
        machine = replace(found.machine, other_cores=max(found.machine.other_cores, others))
        found = replace(found, machine=machine, collectives=times)
    if messages.families:
        tell("measuring what strategies cost the host ...")
        overheads, _ = measure_overheads(messages.families, budget.overheads)
        named = {name: max(0.0, summary.median) for name, summary in overheads.items()}
        found = replace(found, overheads=found.overheads | named)
    return found


# --- the verb ----------------------------------------------------------------------------------------------------


def run_calibrate(options: argparse.Namespace) -> int:
    """Measure, write the file, show what came of it."""
    ranks = ranks_given(options.ranks)
    path = Path(options.out)
    require(path.parent.is_dir(), f"--out: {shown(str(path.parent))} is no folder; name a file in one that is there")
    require(not path.is_dir(), f"--out: {shown(str(path))} is a folder; name a file")
    try:
        calibration = calibrate_widely(ranks, options.quick)
    except CalibrationError as error:
        tell(f"shardscope: {error}")
        return 1
    write_calibration(calibration, path)
    if options.json:
        print(readable(calibration.to_mapping()))
    else:
        print_calibration(calibration, path)
    return 0


def ranks_given(text: str) -> tuple[int, ...]:
    """Numbers of ranks at once, with commas. SpecError names what is no such number."""
    found = []
    for word in text.split(","):
        number = int(word) if word.strip().isascii() and word.strip().isdecimal() else 0
        require(1 <= number <= 64, f"--ranks: {shown(word)} is not a number from 1 to 64; give some, as in 1,2,4")
        found.append(number)
    return tuple(sorted(set(found)))


def print_calibration(calibration: Calibration, path: Path) -> None:
    """What was measured, a line a kind."""
    console, machine = output(), calibration.machine
    noisy = sum(time.is_noisy for time in calibration.operators)
    lines = [f"{machine.cpu}, {plural(machine.cores, 'core')}, torch {machine.torch}, OMP {machine.wait_policy}"]
    if machine.other_cores > BUSY_CORES:
        lines.append(f"other processes kept {machine.other_cores:.1f} cores busy meanwhile: figures are less sure")
    share = percent_text(noisy / len(calibration.operators), 0)
    lines.append(f"operators    {len(calibration.operators)}, {share} of them noisy (IQR above a tenth of the median)")
    for dtype, ranks in sorted({(each.dtype, each.ranks) for each in calibration.matrix}):
        best = max(each.flops_per_second for each in calibration.matrix if (each.dtype, each.ranks) == (dtype, ranks))
        lines.append(f"products     {dtype}, {plural(ranks, 'rank')} at once: up to {rate_text(best)} a rank")
    for rate in calibration.memory:
        small, large = (f"{rate.bytes_per_second.values[end] / 2**30:.1f}" for end in (0, -1))
        lines.append(f"memory       {plural(rate.ranks, 'rank')} at once: {large} GiB/s a rank, {small} within caches")
    lines.append(f"collectives  {len(calibration.collectives)}")
    lines += [f"overhead     {name}: {seconds_text(value)}" for name, value in sorted(calibration.overheads.items())]
    lines.append(f"took {calibration.seconds:.0f} s, written to {path}")
    console.print("\n".join(lines), highlight=False, markup=False, soft_wrap=True)
