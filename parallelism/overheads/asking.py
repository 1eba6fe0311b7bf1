"""Measures the overheads of strategies, in processes of their own, and takes them apart. Torch-free."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from parallelism.overheads.pipeline_parts import messages, pipeline
from parallelism.overheads.shapes import ENGINE_FEW, ENGINE_MANY, FEW, HALVES, LONG, LOTS, MANY, SHORT, SOME, TALL
from suite.child import ChildError, ask
from suite.hardware.overheads import ContextCore, Engine, Kept, Overhead, ShardedUnit, TensorHalf, ZeroEngine, name_of
from suite.launch import rank_variables
from suite.parse import require
from suite.stats import Summary, summarize

WORKER = "parallelism.overheads.worker"
#: work before each probe, as long as it takes alone: some operators; about a block of a small model
BETWEEN_S, BLOCK_S = 300e-6, 1e-3
#: of each probe
READINGS = 5
#: seconds for torch's import and the forks of a family; and how much longer than their slots slow calls may take
START_ALLOWANCE_S, SLOWNESS_ALLOWANCE = 60.0, 12.0

#: a probe's readings by its name
Readings = Mapping[str, Sequence[float]]
#: names of overheads and how each is made of a probe's one reading
Formula = Callable[[Mapping[str, float]], dict[str, float]]


class OverheadError(RuntimeError):
    """The measuring process failed; one line says how."""


@dataclass(frozen=True)
class Family:
    """Probes that run together, and what is made of them."""

    name: str
    formula: Formula
    ranks: int = 2
    arguments: dict[str, Any] = field(default_factory=dict)
    between_s: float = BETWEEN_S
    """work of a rank before each call: ranks that have worked longer wait longer for each other"""
    shares: float = 1.0
    """of time: more for more probes"""


def exact_families(
    cores: Iterable[ContextCore],
    stacks: Iterable[ShardedUnit],
    engines: Iterable[ZeroEngine] = (),
    halves: Iterable[TensorHalf] = (),
) -> tuple[Family, ...]:
    """What cases need measured at their own shapes: attention cores, halves of blocks divided over ranks, FSDP2's
    units, DeepSpeed's engines."""
    return (
        *map(_half_family, sorted(set(halves))),
        *map(_core_family, sorted(set(cores))),
        *map(_unit_family, sorted(set(stacks))),
        *map(_engine_family, sorted(set(engines))),
    )


def families() -> tuple[Family, ...]:
    """What every calibration measures."""
    return (
        Family("sharding", lambda row: sharding(row, False), arguments={"divided": False}),
        Family("sharding", lambda row: sharding(row, True), arguments={"divided": True}),
        Family("divided", divided),
        Family("checkpoints", checkpoints),
        Family("replicas", replicas),
        Family("pipeline", pipeline, shares=6.0),
        Family("messages", messages, shares=3.0),
    )


def measure_overheads(
    wanted: Sequence[Family], seconds: float, readings: int = READINGS
) -> tuple[dict[str, Summary], float]:
    """Each overhead's readings, about `seconds` for all families of one share each, and the cores that others kept
    busy meanwhile.

    Raises OverheadError, in one line, where the measuring process fails or hangs.
    """
    require(0 < seconds < 3600, f"seconds: must be above 0 and below 3600, got {seconds}")
    request = [
        {"name": each.name, "ranks": each.ranks, "arguments": each.arguments}
        | {"seconds": each.shares * seconds / len(wanted), "between_s": each.between_s}
        for each in wanted
    ]
    try:
        answer = ask(
            WORKER,
            {"families": request, "readings": readings},
            START_ALLOWANCE_S * len(wanted) + SLOWNESS_ALLOWANCE * seconds,
            rank_variables(1),
        )
    except ChildError as error:
        raise OverheadError(f"overheads: the measuring process: {error}") from None
    found: dict[str, Summary] = {}
    for family, ranks in zip(wanted, answer["answers"], strict=True):
        found |= summaries(family.formula, ranks)
    return found, answer["other_cores"]


def seconds_of(summaries: Mapping[str, Summary]) -> dict[str, float]:
    """For a calibration: medians; one below nothing is noise around it."""
    return {name: max(0.0, summary.median) for name, summary in summaries.items()}


def summaries(formula: Formula, ranks: Mapping[str, Sequence[Sequence[float]]]) -> dict[str, Summary]:
    """The formula of every round, the ranks' readings of one averaged: what disturbs a round disturbs all of it."""
    rounds = {name: [statistics.fmean(now) for now in zip(*rows, strict=True)] for name, rows in ranks.items()}
    taken: dict[str, list[float]] = {}
    for index in range(len(next(iter(rounds.values())))):
        for name, seconds in formula({probe: values[index] for probe, values in rounds.items()}).items():
            taken.setdefault(name, []).append(seconds)
    found = {name: summarize(values) for name, values in taken.items()}
    return {name: summary for name, summary in found.items() if summary is not None}


def units(row: Mapping[str, float]) -> tuple[float, float, float]:
    """A unit's three figures over a bare one: kept gathered, freed, freed and reduced."""
    kept, freed, reduced = ((row[kind] - row["bare"]) / TALL for kind in ("kept", "freed", "reduced"))
    return kept, freed, reduced


def sharding(row: Mapping[str, float], divided: bool) -> dict[str, float]:
    """A unit kept gathered has hooks and one gather; freed, hooks and two; reduced, a reduction on top. The
    collectives, timed alone, are taken off."""

    def parts(parameters: int) -> tuple[float, float, float]:
        own = {name.split(".")[0]: seconds for name, seconds in row.items() if name.endswith(f".{parameters}")}
        kept, freed, reduced = units(own)
        return 2 * kept - freed, freed - kept - own["gather"], reduced - freed - own["scatter"]

    pairs = (
        (Overhead.FSDP_HOOKS_UNIT, Overhead.FSDP_HOOKS_PARAMETER),
        (Overhead.FSDP_GATHER_UNIT, Overhead.FSDP_GATHER_PARAMETER),
        (Overhead.FSDP_REDUCE_UNIT, Overhead.FSDP_REDUCE_PARAMETER),
    )
    found: dict[str, float] = {}
    for (base, slope), few, many in zip(pairs, parts(FEW), parts(MANY), strict=True):
        each = (many - few) / (MANY - FEW)
        found |= {name_of(base, divided): few - FEW * each, name_of(slope, divided): each}
    return found


def divided(row: Mapping[str, float]) -> dict[str, float]:
    """What one more DTensor costs over one more plain parameter."""

    def each(what: str, kind: str) -> float:
        return (row[f"{what}.{kind}.{LOTS}"] - row[f"{what}.{kind}.{SOME}"]) / (LOTS - SOME)

    first, again, clip, update = (
        each(what, "divided") - each(what, "plain") for what in ("first", "again", "clip", "update")
    )
    return {
        Overhead.DIVIDED_USE: first,
        Overhead.DIVIDED_ADD: again - first,
        Overhead.DIVIDED_CLIP: clip,
        Overhead.DIVIDED_UPDATE: update,
    }


def checkpoints(row: Mapping[str, float]) -> dict[str, float]:
    """A region more, over a bare one and its forward pass again."""

    def region(kind: str, operators: int) -> float:
        def more(name: str) -> float:
            return (row[f"{name}.{operators}.{TALL}"] - row[f"{name}.{operators}.1"]) / (TALL - 1)

        return more(kind) - more("bare") - more("forward")

    pairs = {
        "whole": (Overhead.REGION, Overhead.REGION_OPERATOR),
        "selective": (Overhead.SELECTIVE_REGION, Overhead.SELECTIVE_OPERATOR),
    }
    found: dict[str, float] = {}
    for kind, (base, slope) in pairs.items():
        each = (region(kind, LONG) - region(kind, SHORT)) / (LONG - SHORT)
        found |= {base: region(kind, SHORT) - SHORT * each, slope: each}
    return found


def replicas(row: Mapping[str, float]) -> dict[str, float]:
    """DDP over a bare stack, unreduced; and what a reduction adds, without its all-reduce."""
    left = {count: row[f"left.{count}"] - row[f"bare.{count}"] for count in (SOME, LOTS)}
    more = {
        count: row[f"reduced.{count}"] - row[f"left.{count}"] - row[f"all-reduce.{count}"] for count in (SOME, LOTS)
    }
    hook, copy = ((each[LOTS] - each[SOME]) / (LOTS - SOME) for each in (left, more))
    return {
        Overhead.DDP_STEP: left[SOME] - SOME * hook,
        Overhead.DDP_PARAMETER: hook,
        Overhead.DDP_REDUCE: more[SOME] - SOME * copy,
        Overhead.DDP_REDUCE_PARAMETER: copy,
    }


def _core_family(core: ContextCore) -> Family:
    sizes = asdict(core)
    shape = [sizes[name] for name in ("sequences", "tokens", "heads", "kv_heads", "width")]
    settings = {name: sizes[name] for name in ("method", "kernel", "balanced", "ranks")}
    names = {"forward": core.name(whole=False), "whole": core.name(whole=True)}
    return Family(
        "context", lambda row: {names[probe]: seconds for probe, seconds in row.items()},
        core.world, settings | {"shape": shape}, BLOCK_S,
    )  # fmt: skip


def _half_family(half: TensorHalf) -> Family:
    def formula(row: Mapping[str, float]) -> dict[str, float]:
        return {
            half.name(whole=name == "whole"): (row[f"divided.{name}"] - row[f"bare.{name}"]) / HALVES
            for name in ("forward", "whole")
        }

    sizes = asdict(half)
    groups = sizes.pop("groups")
    return Family("tensor", formula, half.ranks * groups, sizes)


def _unit_family(unit: ShardedUnit) -> Family:
    def formula(row: Mapping[str, float]) -> dict[str, float]:
        return dict(zip((unit.name(kind) for kind in Kept), units(row), strict=True))

    sizes = asdict(unit)
    groups = sizes.pop("groups")
    return Family("units", formula, unit.ranks * groups, sizes)


def _engine_family(engine: ZeroEngine) -> Family:
    def formula(row: Mapping[str, float]) -> dict[str, float]:
        return {engine.name(part): seconds for part, seconds in engine_parts(row, engine.stage).items()}

    return Family("engine", formula, engine.ranks, {"stage": engine.stage})


def engine_parts(row: Mapping[str, float], stage: int) -> dict[Engine, float]:
    """A micro-batch more, and a module more, over a bare step; what is left of one is the step's. The collectives of a
    bucket are taken off: in stages 0 and 1 a step's, in 2 and 3 each micro-batch's."""
    few, many = ENGINE_FEW, ENGINE_MANY

    def batch(kind: str, count: int) -> float:
        return row[f"{kind}.{count}.2"] - row[f"{kind}.{count}.1"]

    def each_batch(count: int) -> float:
        said = {2: row[f"all-reduce.{count}"], 3: row[f"scatter.{count}"]}.get(stage, 0.0)
        return batch("engine", count) - batch("bare", count) - said

    def step(count: int) -> float:
        reduced, scalar, gathered = row[f"all-reduce.{count}"], row["scalar"], row[f"gather.{count}"]
        said = (reduced, reduced + scalar + gathered, scalar + gathered, scalar)[stage]
        first = row[f"engine.{count}.1"] - row[f"bare.{count}.1"] - batch("engine", count) + batch("bare", count)
        return first - said

    module, module_step = ((part(many) - part(few)) / (many - few) for part in (each_batch, step))
    rerun = 0.0
    if stage == 3:
        rerun = (batch("rerun", many) - batch("rerun", few) - batch("engine", many) + batch("engine", few)) / (
            many - few
        )
    return {
        Engine.MODULE: module,
        Engine.RERUN: rerun,
        Engine.MICRO_BATCH: each_batch(few) - few * module,
        Engine.MODULE_STEP: module_step,
        Engine.STEP: step(few) - few * module_step,
    }
