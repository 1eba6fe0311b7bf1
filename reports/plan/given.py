"""The question of a plan as its flags give it: what is fixed, what is to be found."""

from __future__ import annotations

import argparse
import dataclasses
import os
import typing
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import product
from math import prod
from typing import Any

from memory.verdict import Verdict
from reports.plan.asked import PER_NODE, Asked, Objective
from suite import flags
from suite.case import Case, case_from
from suite.hardware import DeviceKind, device
from suite.layout import AXES, Engine, Layout, Schedule
from suite.parse import SpecError, from_text, nearest, require, shown
from suite.spec import Workload

#: settings of a workload that a plan finds, unless they are fixed
FOUND = ("micro_batch", "micro_batches")
#: values of what is not fixed among which there must be some that the rules take beside what is
TRIED: dict[str, tuple[Any, ...]] = {
    "dp": (1, 2), "fsdp": (1, 2), "pp": (1, 2), "virtual_stages": (1, 2), "schedule": tuple(Schedule),
    "engine": tuple(Engine), "reshard_after_forward": (True, False), "zero": (0, 1, 2, 3),
}  # fmt: skip


def add_plan_flags(parser: argparse.ArgumentParser) -> None:
    """What is fixed, and what is wanted."""
    above_zero = flags.above_zero(int)
    parser.add_argument(
        "--fixed",
        metavar="NAME=VALUE,...",
        help="settings that every layout has, as tp=8,recompute=full; flags fix too",
    )
    parser.add_argument("--max-gpus", type=above_zero, metavar="N", help="try fewer GPUs too, halving N down")
    parser.add_argument("--objective", metavar="WHAT", default="time", help=f"{', '.join(Objective)} [time]")
    parser.add_argument("--best", type=above_zero, metavar="N", default=10, help="layouts that are shown [10]")
    parser.add_argument("--accept", metavar="VERDICT", default="fits", help="fits, or tight: the bound need not [fits]")
    parser.add_argument("--fronts", action="store_true", help="time against memory, and against fewer GPUs")
    parser.add_argument("--run", type=above_zero, metavar="N", help="run the best N here, and say whether they rank so")
    parser.add_argument("--runs", metavar="FOLDER", help="with --run: where runs are kept [runs]")
    parser.add_argument("--save", metavar="FILE.json", help="write the best layout's Case, which --case takes")
    parser.add_argument("--page", metavar="FILE.html", help="write a page of the plan")
    parser.add_argument("--markdown", metavar="FILE.md", help="write it as Markdown, for a pull request")
    parser.add_argument("--calibration", metavar="FILE", help="of this machine, as `calibrate` writes it, for the cpu")


def asked_of(options: argparse.Namespace) -> Asked:
    """The question that the flags ask. SpecError for what contradicts itself."""
    fixed = _fixed(options)
    base, global_batch = _base(options)
    nodes, per_node = _cluster(options, base)
    asked = Asked(
        base=base,
        nodes=nodes,
        per_node=per_node,
        global_batch=global_batch,
        fixed=fixed,
        objective=flags.member(Objective, options.objective, "--objective"),
        accept=flags.member(Verdict, options.accept, "--accept", (Verdict.FITS, Verdict.TIGHT)),
        best=options.best,
    )
    asked.weight(1.0)  # an objective that the device has no figure for is refused before the search
    _check_degrees(fixed, asked.gpus)
    _check_together(fixed)
    _check_model(asked)
    return asked


def _base(options: argparse.Namespace) -> tuple[Case, int]:
    """The model, the work and the device, on one rank; and the global batch."""
    found: list[int] = []

    def settle(data: dict[str, Any]) -> None:
        if options.case is not None and options.global_batch is None and not _is_fixed(options, *FOUND):
            found.append(case_from(data).global_batch)
        for part in ("layout", "serving", "cache"):
            data.pop(part, None)
        work, cluster = data.get("workload", {}), data.get("cluster", {})
        if isinstance(work, Mapping):
            data["workload"] = {name: value for name, value in work.items() if name not in FOUND}
        if isinstance(cluster, Mapping):
            data["cluster"] = {name: value for name, value in cluster.items() if name not in ("nodes", "per_node")}

    wanted = options.global_batch
    found_flags = dict.fromkeys([*_kinds(), "global_batch", "nodes", "per_node"])
    own = argparse.Namespace(**{**vars(options), **found_flags})
    base = flags.case_of(own, settle)
    require(
        wanted is not None or bool(found),
        "--global-batch: missing; layouts are compared over the same sequences a step, say how many",
    )
    return base, wanted if wanted is not None else found[0]


def _cluster(options: argparse.Namespace, base: Case) -> tuple[int, int]:
    """Machines and devices of each."""
    nodes = 1 if options.nodes is None else from_text(options.nodes, int, "--nodes")
    is_cpu = device(base.cluster.device).kind is DeviceKind.CPU
    usual = len(os.sched_getaffinity(0)) if is_cpu else PER_NODE
    per_node = usual if options.per_node is None else from_text(options.per_node, int, "--per-node")
    require(nodes >= 1, f"--nodes: must be at least 1, got {nodes}")
    require(per_node >= 1, f"--per-node: must be at least 1, got {per_node}")
    if options.max_gpus is not None:
        require(
            options.nodes is None,
            f"--max-gpus: given beside --nodes {nodes}; one says how many there may be, the other how many there are",
        )
        per_node = min(per_node, options.max_gpus)
        nodes = options.max_gpus // per_node
    return nodes, per_node


def _fixed(options: argparse.Namespace) -> dict[str, Any]:
    """What --fixed and the layout's own flags give. SpecError where they give a setting twice."""
    fixed: dict[str, Any] = {}
    for name, text, where in _given(options):
        value = from_text(text, _kinds()[name], where)
        require(
            fixed.get(name, value) == value,
            f"{where}: {name} is {value} here and {fixed.get(name)} before; give one of them",
        )
        fixed[name] = value
    return fixed


def _given(options: argparse.Namespace) -> Iterator[tuple[str, str, str]]:
    """(Setting, its text, the flag it comes from)."""
    kinds = _kinds()
    for part in (options.fixed or "").split(",") if options.fixed is not None else ():
        name, is_given, text = part.strip().partition("=")
        name = name.strip().replace("-", "_")
        require(bool(is_given and name and text), f"--fixed: {shown(part)} is not NAME=VALUE, as in tp=8")
        require(name in kinds, f"--fixed: {shown(name)} is no setting of a layout; {nearest(name, kinds)}")
        yield name, text.strip(), "--fixed"
    for name in kinds:
        text = getattr(options, name)
        if text is not None:
            yield name, text, "--" + name.replace("_", "-")


def _kinds() -> dict[str, Any]:
    """Of each setting that can be fixed, its type."""
    layout, work = typing.get_type_hints(Layout), typing.get_type_hints(Workload)
    return {name: layout[name] for name in _layout_names()} | {name: work[name] for name in FOUND}


def _layout_names() -> list[str]:
    return [field.name for field in dataclasses.fields(Layout)]


def _is_fixed(options: argparse.Namespace, *names: str) -> bool:
    return any(name in names for name, _, _ in _given(options))


def _check_degrees(fixed: Mapping[str, Any], gpus: int) -> None:
    """Refuse fixed degrees that no layout of so many devices has."""
    degrees = {axis: fixed[axis] for axis in AXES if axis in fixed}
    for axis, degree in degrees.items():
        require(degree >= 1, f"--fixed: {axis} must be at least 1, got {degree}")
    ranks = prod(degrees.values())
    if gpus % ranks or (len(degrees) == len(AXES) and ranks != gpus):
        text = " * ".join(f"{axis}({degree})" for axis, degree in degrees.items())
        raise SpecError(
            f"--fixed: {text} = {ranks} ranks, and there are {gpus} devices, which is no multiple of it; fix less, or"
            " give other --nodes and --per-node"
        )


def _check_together(fixed: Mapping[str, Any]) -> None:
    """Refuse fixed settings that no layout has together, whatever is found for the others."""
    settings = {name: value for name, value in fixed.items() if name not in FOUND}
    free = {name: values for name, values in TRIED.items() if name not in settings}
    why: dict[str, int] = {}
    for values in product(*free.values()):
        try:
            Layout(**settings, **dict(zip(free, values, strict=True)))
        except SpecError as error:
            # of the reasons, the one that speaks most of what was fixed, and least of what was not
            text = str(error).removeprefix("layout: ")
            why[text] = sum(1 if name in settings else -1 for name in _layout_names() if f"{name}(" in text)
        else:
            return
    raise SpecError(f"--fixed: {max(why, key=why.__getitem__)}")


def _check_model(asked: Asked) -> None:
    """Refuse fixed degrees that the model does not divide into."""
    parts = {name: asked.fixed[name] for name in ("tp", "cp", "context", "ep") if name in asked.fixed}
    work = replace(asked.base.workload, micro_batches=1)
    replace(asked.base, layout=Layout(**parts), workload=work, cluster=replace(asked.base.cluster, nodes=1, per_node=0))
    layers, stages = asked.base.model.layers, asked.fixed.get("pp", 1) * asked.fixed.get("virtual_stages", 1)
    require(
        stages <= layers,
        f"--fixed: pp * virtual_stages = {stages} stages, and {asked.base.model.name} has {layers} blocks; every stage"
        " holds at least one",
    )
