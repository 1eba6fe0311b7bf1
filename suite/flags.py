"""Command-line flags for everything a Case is made of, read off the dataclasses' own fields."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from suite.case import Case, case_from
from suite.parse import SpecError, from_text, nearest, to_mapping
from suite.spec import Cluster, Layout, Recipe, Workload

PARTS: dict[str, type] = {"layout": Layout, "workload": Workload, "cluster": Cluster, "recipe": Recipe}


class OneLineParser(argparse.ArgumentParser):
    """An ArgumentParser whose refusals are one line on standard error, exit status 2, with near flags named."""

    def error(self, message: str) -> NoReturn:
        """Refuse."""
        raise SpecError(f"{message} (`{self.prog} --help` lists what is)")

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse, and name the flags near an unknown one."""
        known, unknown = self.parse_known_args(args, namespace)
        if unknown:
            flags = [flag for parser in self._chosen(known) for flag in parser._option_string_actions]
            raise SpecError(f"{unknown[0]}: unknown argument; {nearest(unknown[0].split('=')[0], flags)}")
        return known

    def _chosen(self, known: argparse.Namespace) -> list[argparse.ArgumentParser]:
        """The parser of the verb that was named, else this one."""
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction):
                return [action.choices[name] for name in [getattr(known, action.dest)] if name in action.choices]
        return [self]


def add_case_flags(parser: argparse.ArgumentParser) -> None:
    """--case, --model, --hf-config, --global-batch, and a flag for each field of the case's parts."""
    parser.add_argument("--case", metavar="FILE", help="a Case as JSON; - reads standard input; flags change it")
    parser.add_argument("--model", help="a preset's name, as in `models`")
    parser.add_argument("--hf-config", metavar="FILE", help="a Hugging Face config.json of a supported family")
    parser.add_argument("--global-batch", type=int, help="sequences a step; sets micro_batches")
    for part, kind in PARTS.items():
        group = parser.add_argument_group(part)
        for field in dataclasses.fields(kind):
            default = to_mapping(field.default)
            text = f"{field.metadata['help']} [{default if default != '' else 'none'}]".replace("%", "%%")
            group.add_argument(_flag(field.name), metavar=field.name.upper(), help=text)


def case_of(options: argparse.Namespace) -> Case:
    """The Case that the flags describe. SpecError where they do not describe one."""
    data = _base(options)
    for part, kind in PARTS.items():
        hints = typing.get_type_hints(kind)
        given = {
            field.name: to_mapping(from_text(text, hints[field.name], _flag(field.name)))
            for field in dataclasses.fields(kind)
            if (text := getattr(options, field.name)) is not None
        }
        if given:
            data[part] = {**data.get(part, {}), **given}
    if options.global_batch is not None:
        _set_global_batch(data, options.global_batch)
    return case_from(data)


def read_json(path: str, where: str) -> Any:
    """A JSON document from a file, or from standard input for `-`. SpecError names what is wrong with it."""
    try:
        text = sys.stdin.read() if path == "-" else Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(
            f"{where}: {path!r} cannot be read ({error}); give a JSON file, or - for standard input"
        ) from None
    try:
        return json.loads(text)
    except ValueError as error:
        raise SpecError(f"{where}: {path!r} is not JSON ({error})") from None


def _base(options: argparse.Namespace) -> dict[str, Any]:
    given = [flag for flag in ("model", "hf_config", "case") if getattr(options, flag) is not None]
    if not given:
        raise SpecError("--model: missing; name a preset (`models` lists them), or give --case or --hf-config")
    if {"model", "hf_config"} <= set(given):
        raise SpecError("--hf-config: given beside --model; give one of them")
    data: dict[str, Any] = {}
    if options.case is not None:
        read = read_json(options.case, "--case")
        if not isinstance(read, Mapping):
            raise SpecError(f"--case: expected an object with keys, got {str(read)[:60]!r}")
        data = dict(read)
        for part in PARTS:
            if part in data and not isinstance(data[part], Mapping):
                raise SpecError(f"{part}: expected an object with keys, got {data[part]!r}")
    if options.model is not None:
        data["model"] = options.model
    if options.hf_config is not None:
        from suite.models.hf_config import read_hf_config

        data["model"] = to_mapping(read_hf_config(options.hf_config))
    return data


def _set_global_batch(data: dict[str, Any], global_batch: int) -> None:
    case = case_from(data)
    each = case.workload.micro_batch * case.layout.data_ranks
    if global_batch < 1 or global_batch % each:
        raise SpecError(
            f"--global-batch: {global_batch} is not a multiple of micro_batch({case.workload.micro_batch})"
            f" * dp({case.layout.dp}) * fsdp({case.layout.fsdp}) = {each}"
        )
    data["workload"] = {**data.get("workload", {}), "micro_batches": global_batch // each}


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
