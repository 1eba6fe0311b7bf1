"""A configuration that was read and the case flags as one Case: flags stand over the file, the file over --case."""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from reports.intake.base import Taken
from suite import flags
from suite.case import PARTS, Case
from suite.parse import convert, require, shown


@dataclass(frozen=True)
class Merged:
    """The Case, and what of the file or of --case something stronger stood over, a line each."""

    case: Case
    overruled: tuple[str, ...]


def merge(taken: Taken, options: argparse.Namespace, name: str) -> Merged:
    """The Case of a file called `name` and of the flags beside it.

    A model comes from --model or --hf-config, else from the file, else from --case. SpecError where none has one, and
    for parts that do not fit.
    """
    base, said, over = flags.given_base(options), dict(taken.case), flags.given_parts(options)
    require(
        "model" in base or "model" in said,
        f"--model: missing; {name} says nothing of the model: name a preset (`models` lists them), or give --hf-config"
        " or --case",
    )
    for part in PARTS:
        require(isinstance(base.get(part, {}), Mapping), f"--case: {part}: expected an object with keys")
    if options.model is not None or options.hf_config is not None:
        over["model"] = base["model"]
    data = {**base, **said, **{part: {**base.get(part, {}), **said[part]} for part in PARTS if part in said}}
    beneath = {**base, "model": None} if "model" in over else base
    overruled = [*_differing(said, beneath, name, "--case"), *_differing(over, said, "the flags", name)]
    data |= {"model": over.pop("model")} if "model" in over else {}
    known = {f"{part}.{key}" for side in (said, over) for part in PARTS for key in side.get(part, {})}

    def settle(whole: dict[str, Any]) -> None:
        if "layout" in said and "cluster.per_node" not in known:  # again what the layout needs
            whole["cluster"] = {key: value for key, value in whole.get("cluster", {}).items() if key != "per_node"}
        batch, asked = taken.global_batch, options.global_batch
        _settle_ranks(whole, known, said.get("workload", {}), batch, name)
        if batch is not None and asked is None:
            overruled.extend(_settle_batch(whole, known, batch, name))
        elif batch is not None and asked != batch:
            overruled.append(f"global batch: {asked} of the flags is taken, not {batch} of {name}")

    return Merged(flags.case_over(data, options, settle), tuple(overruled))


def _differing(strong: Mapping[str, Any], weak: Mapping[str, Any], stronger: str, weaker: str) -> Iterator[str]:
    """A line for each key that both sides have, and differently."""
    if weak.get("model") is not None and strong.get("model", weak["model"]) != weak["model"]:
        ours, other = _model_name(strong["model"]), _model_name(weak["model"])
        yield f"model: {ours} of {stronger} is taken, not {other} of {weaker}"
    for part in PARTS:
        for key, value in strong.get(part, {}).items():
            other = weak.get(part, {}).get(key, value)
            if other != value:
                yield f"{part}.{key}: {shown(value)} of {stronger} is taken, not {shown(other)} of {weaker}"


def _model_name(model: Any) -> str:
    return str(model["name"]) if isinstance(model, Mapping) and "name" in model else shown(model)


def _settle_ranks(data: dict[str, Any], known: set[str], own: Mapping[str, Any], batch: int | None, name: str) -> None:
    """dp where neither side says it: of the machines, or of the file's batch and its `own` sizes, which flags may have
    changed since."""
    if {"layout.dp", "layout.fsdp"} & known:
        return
    layout = dict(data.get("layout", {}))
    per_node = _size(data, "cluster", "per_node", 0)
    if "cluster.per_node" in known and per_node:
        ranks = _size(data, "cluster", "nodes") * per_node
        others = math.prod(_size(data, "layout", axis) for axis in ("fsdp", "tp", "cp", "pp", "ep"))
        require(
            ranks % others == 0,
            f"cluster: {ranks} ranks are no multiple of the layout's fsdp * tp * cp * pp * ep = {others}",
        )
        data["layout"] = {**layout, "dp": ranks // others}
    elif batch is not None and {"workload.micro_batch", "workload.micro_batches"} <= known:
        micro, count, fsdp = _batch_of({**data, "workload": {**data["workload"], **own}})
        ep = _size(data, "layout", "ep")
        each = micro * count * fsdp * ep
        require(
            batch % each == 0,
            f"{name}: a global batch of {batch} is no multiple of micro_batch({micro}) * micro_batches({count})"
            f" * fsdp({fsdp}){f' * ep({ep})' if ep > 1 else ''} = {each}",
        )
        data["layout"] = {**layout, "dp": batch // each}


def _settle_batch(data: dict[str, Any], known: set[str], batch: int, name: str) -> Iterator[str]:
    """micro_batch or micro_batches where one of them is not said; a line where both are, and make another batch."""
    ranks = _size(data, "layout", "dp") * _size(data, "layout", "fsdp")
    micro, count, _ = _batch_of(data)
    workload = dict(data.get("workload", {}))
    if {"workload.micro_batch", "workload.micro_batches"} <= known:
        made = micro * count * ranks
        if made != batch:
            yield (
                f"global batch: {made} = micro_batch({micro}) * micro_batches({count}) * {ranks} data ranks is taken,"
                f" not {batch} of {name}"
            )
        return
    fixed, key = (micro, "micro_batches") if "workload.micro_batch" in known else (count, "micro_batch")
    if not {"workload.micro_batch", "workload.micro_batches"} & known:
        fixed, key = 1, "micro_batch"
        workload["micro_batches"] = 1
    require(
        batch % (fixed * ranks) == 0,
        f"{name}: a global batch of {batch} is no multiple of {fixed} * {ranks} data ranks; give --dp, --micro-batch or"
        " --global-batch",
    )
    data["workload"] = {**workload, key: batch // (fixed * ranks)}


def _batch_of(data: Mapping[str, Any]) -> tuple[int, int, int]:
    return (
        _size(data, "workload", "micro_batch"),
        _size(data, "workload", "micro_batches"),
        _size(data, "layout", "fsdp"),
    )


def _size(data: Mapping[str, Any], part: str, key: str, default: int = 1) -> int:
    """A whole number of a part of the case, which is not checked as a whole yet."""
    where = f"{part}.{key}"
    value: int = convert(data.get(part, {}).get(key, default), int, where)
    require(value >= default, f"{where}: must be at least {default}, got {value}")
    return value
