"""Why a question has no answer: no layout is legal, or none fits; then which comes nearest, and what would do."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

from reports.plan.asked import PER_NODE, Asked
from reports.plan.bounds import Bounds
from reports.plan.instants import Flying
from reports.plan.solve import Solver, limit_bytes
from reports.plan.space import Grain, Pipe, Space, Spread
from reports.plan.work import Engine, engine_of
from suite.case import Case
from suite.layout import Recompute, RecomputeKind
from suite.parse import SpecError
from suite.units import bytes_text

#: layouts with the lowest bounds whose memory is estimated
NEAREST = 32
#: how often the GPUs are doubled in search of enough
DOUBLINGS = 8


class Miss(NamedTuple):
    """A layout and its peak."""

    peak_bytes: int
    case: Case


def why_nothing(solver: Solver, asked: Asked) -> str:
    """One line: what would have to change."""
    miss = leanest(solver, asked)
    if miss is None:
        return _why_none_is_legal(asked)
    limit = int(limit_bytes(asked))
    said = (
        f"no layout fits {asked.gpus} x {asked.device.name}: the leanest, {miss.case.label}, needs"
        f" {bytes_text(miss.peak_bytes)} on its fullest rank"
    )
    if miss.peak_bytes > limit:
        said += f", {bytes_text(miss.peak_bytes - limit)} more than the {bytes_text(limit)} that count as fitting"
    else:
        said += ", and what torch's allocator reserves for it is too much; --accept tight takes it"
    more = _enough(solver, asked)
    return f"{said}; {more}" if more else f"{said}; {DOUBLINGS} times twice as many devices would not do either"


def leanest(solver: Solver, asked: Asked) -> Miss | None:
    """The layout that needs least; None where none is legal. Recomputation is whole, where the model takes that, and
    micro-batches are as small as can be, unless they are fixed."""
    small = {"micro_batch": 1, **asked.fixed}
    whole = {"recompute": Recompute(RecomputeKind.FULL), **small}
    return _leanest(solver, replace(asked, fixed=whole)) or _leanest(solver, replace(asked, fixed=small))


def _leanest(solver: Solver, asked: Asked) -> Miss | None:
    space = Space(asked)
    bounds = Bounds(space, None)
    nearest = heapq.nsmallest(NEAREST, _bounded(space, bounds), key=lambda each: each[0])
    misses = []
    for _, grain, pipe, spread in nearest:
        try:
            case = space.case(grain, pipe, spread)
            misses.append(Miss(solver.memory.peak_bytes(case), case))
        except SpecError:
            continue
    return min(misses, key=lambda miss: miss.peak_bytes, default=None)


def _bounded(space: Space, bounds: Bounds) -> Iterator[tuple[float, Grain, Pipe, Spread]]:
    for grain, pp in space.grains():
        if space.refuses_grain(grain):
            continue
        for pipe in space.pipes(grain, pp).legal:
            flying: dict[Engine, Flying] = {}
            for spread in space.spreads(grain, pipe).legal:
                engine = engine_of(spread)
                if engine not in flying:
                    flying[engine] = bounds.flying(grain, pipe, engine)
                yield bounds.nbytes(grain, spread, flying[engine], pipe.micro_batches), grain, pipe, spread


def _enough(solver: Solver, asked: Asked) -> str:
    """How many more devices would do."""
    more = asked
    for _ in range(DOUBLINGS):
        is_part = more.nodes == 1 and 2 * more.per_node <= PER_NODE
        more = more.on(1, 2 * more.per_node) if is_part else more.on(2 * more.nodes, more.per_node)
        try:
            found = solver.plan(replace(more, best=1)).answers
        except SpecError:
            continue
        if found:
            return f"{more.gpus} would do: {found[0].case.label}, {bytes_text(found[0].peak_bytes)}"
    return ""


def _why_none_is_legal(asked: Asked) -> str:
    space, refused, batches = Space(asked), Counter[str](), 0
    for grain, pp in space.grains():
        if space.data_ranks(grain, pp) % _fixed_ranks(asked):
            continue
        batches += 1
        why = space.refuses_grain(grain)
        if why:
            refused[why] += 1
            continue
        pipes = space.pipes(grain, pp)
        refused += pipes.refused
        for pipe in pipes.legal:
            refused += space.spreads(grain, pipe).refused
    if not batches:
        fixed = f" with {', '.join(f'{name} {value}' for name, value in asked.fixed.items())}" if asked.fixed else ""
        return (
            f"--global-batch: {asked.global_batch} sequences are no multiple of the data-parallel ranks of any layout"
            f" of {asked.gpus} devices{fixed}; take a multiple of {_fewest_ranks(asked)}"
        )
    reasons = refused.most_common(1)
    why = reasons[0][0] if reasons else "nothing has all that is fixed; fix less"
    return f"no layout of {asked.gpus} devices is legal: {why}"


def _fewest_ranks(asked: Asked) -> int:
    """The fewest data-parallel ranks of a layout that takes some batch."""
    space = Space(replace(asked, global_batch=asked.gpus))
    ranks = [space.data_ranks(grain, pp) for grain, pp in space.grains() if not space.refuses_grain(grain)]
    return min((each for each in ranks if each % _fixed_ranks(asked) == 0), default=asked.gpus)


def _fixed_ranks(asked: Asked) -> int:
    """What data-parallel ranks are a multiple of in every layout that has what is fixed."""
    return int(asked.fixed.get("dp", 1)) * int(asked.fixed.get("fsdp", 1))
