"""How long an estimate takes: alone, and in a search over layouts. Processor seconds; nothing is run but arithmetic.

Alone: a case of its own in a warm process, with nothing kept from other cases; the median over different cases. In a
search: 10,000 layouts of llama3-70b on 64 to 1024 GPUs, each the largest moment of its fullest rank, in a Search that
begins empty. The cases are built before the clock starts.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

from memory.estimate import MemoryModel
from memory.search import Search
from suite.case import Case
from suite.layout import Layout, Recompute, RecomputeKind, Schedule
from suite.models import preset
from suite.parse import SpecError
from suite.spec import Cluster, Workload

MODEL, DEVICE, PER_NODE, SEQ_LEN = "llama3-70b", "h100-sxm", 8, 8192
SEARCHED = 10_000
ALONE = 200  # cases of each kind of layout that are timed alone
GLOBAL_BATCH = 1024  # sequences an optimizer step
WORLDS = (64, 128, 256, 512, 1024)
DEGREES = (1, 2, 4, 8)
PIPELINES = (
    (1, Schedule.ONE_F_ONE_B, 1),
    *((pp, schedule, stages) for pp in (2, 4, 8, 16) for schedule, stages in (
        (Schedule.ONE_F_ONE_B, 1), (Schedule.INTERLEAVED, 2), (Schedule.INTERLEAVED, 4), (Schedule.ZBV, 2),
    )),
)  # fmt: skip
RECOMPUTE = tuple(Recompute(kind) for kind in (RecomputeKind.NONE, RecomputeKind.SELECTIVE, RecomputeKind.FULL))


@dataclass(frozen=True)
class EstimateSpeed:
    """Processor seconds of an estimate."""

    alone: dict[str, float]  # median by kind of layout: one rank's largest moment
    layouts: int
    amortised: float  # a layout of the search
    by_kind: dict[str, float]  # the same, of each kind of layout
    building: float  # a case, before it is estimated


def lines(speed: EstimateSpeed) -> list[str]:
    """The figures for a reader."""
    alone = ", ".join(f"{kind} {seconds * 1e3:.2f}" for kind, seconds in speed.alone.items())
    kinds = ", ".join(f"{kind} {seconds * 1e3:.3f}" for kind, seconds in speed.by_kind.items())
    return [
        f"estimate alone, ms: {alone}",
        f"estimate in a search of {speed.layouts:,} layouts, ms a layout: {speed.amortised * 1e3:.3f} ({kinds};"
        f" to build a case {speed.building * 1e3:.3f})",
    ]


def measure() -> EstimateSpeed:
    """Time both."""
    start = time.process_time()
    everything = list(search_cases())
    building = (time.process_time() - start) / len(everything)
    cases = evenly(everything, SEARCHED)
    seconds, search = [], Search()
    for case in cases:
        start = time.process_time()
        search.peak_bytes(case)
        seconds.append(time.process_time() - start)
    spent: dict[str, list[float]] = {}
    for case, took in zip(cases, seconds, strict=True):
        spent.setdefault(kind_of(case.layout), []).append(took)
    of_kind = {kind: evenly([case for case in cases if kind_of(case.layout) == kind], ALONE) for kind in sorted(spent)}
    return EstimateSpeed(
        alone={kind: statistics.median(map(_alone, some)) for kind, some in of_kind.items()},
        layouts=len(cases),
        amortised=sum(seconds) / len(seconds),
        by_kind={kind: sum(took) / len(took) for kind, took in sorted(spent.items())},
        building=building,
    )


def _alone(case: Case) -> float:
    start = time.process_time()
    MemoryModel(case).peak_bytes()
    return time.process_time() - start


def evenly(cases: Sequence[Case], count: int) -> list[Case]:
    """So many of the cases, at even distances; all where they are fewer."""
    count = min(count, len(cases))
    return [cases[index * len(cases) // count] for index in range(count)]


def kind_of(layout: Layout) -> str:
    """What tells estimates apart by what they cost."""
    return "+".join(["pp"] * (layout.pp > 1) + ["fsdp" if layout.fsdp > 1 else "dp"])


def search_cases(worlds: Sequence[int] = WORLDS, contexts: Sequence[int] = (1,)) -> Iterator[Case]:
    """Every layout of the grid that the rules take and whose micro-batches make up the global batch."""
    model = preset(MODEL)
    for world, cp, tp, (pp, schedule, stages), fsdp, micro_batch, recompute, reshards in product(
        worlds, contexts, DEGREES, PIPELINES, (1, *(2**power for power in range(1, 11))), (1, 2, 4), RECOMPUTE,
        (True, False),
    ):  # fmt: skip
        dp, left = divmod(world, tp * pp * fsdp * cp)
        count, rest = divmod(GLOBAL_BATCH, max(1, dp) * fsdp * micro_batch)
        if not dp or left or not count or rest or (fsdp == 1 and not reshards):
            continue
        try:
            layout = Layout(
                dp=dp, fsdp=fsdp, cp=cp, tp=tp, pp=pp, schedule=schedule, virtual_stages=stages, recompute=recompute,
                reshard_after_forward=reshards,
            )  # fmt: skip
            work = Workload(seq_len=SEQ_LEN, micro_batch=micro_batch, micro_batches=count)
            yield Case(model, layout, work, Cluster(DEVICE, world // PER_NODE, PER_NODE))
        except SpecError:
            continue
