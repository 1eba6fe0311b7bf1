"""Command-line flags for everything a Case is made of, read off the dataclasses' own fields."""

from __future__ import annotations

import argparse
import dataclasses
import math
import typing
from collections.abc import Callable, Mapping, Sequence
from enum import Enum, StrEnum
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from suite.case import PARTS, Case, case_from
from suite.documents import read_json
from suite.parse import SpecError, from_text, nearest, require, shown, to_mapping
from suite.passes import ON_RANKS, SERVED, Pass, check_passes, passes_of

#: flags that say which cases there are; the rest change them
BASES = ("case", "model", "hf_config")
E = TypeVar("E", bound=StrEnum)
KINDS = {int: "whole number", float: "number"}
METAVARS: dict[Any, str] = {int: "N", float: "X", bool: "true|false", str: "TEXT"}


class OneLineParser(argparse.ArgumentParser):
    """An ArgumentParser whose refusals are one line on standard error, exit status 2, with near flags named."""

    def error(self, message: str) -> NoReturn:
        """Refuse."""
        raise SpecError(f"{message.removeprefix('argument ')} (see `{self.prog} --help`)")

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse, and name the flags near an unknown one."""
        known, unknown = self.parse_known_args(args, namespace)
        if unknown:
            self._refuse(unknown[0].split("=")[0], known)
        return known

    def _refuse(self, word: str, known: argparse.Namespace) -> NoReturn:
        """An argument that nothing takes: near flags where it looks like one."""
        verbs = next(action.choices for action in self._actions if isinstance(action, argparse._SubParsersAction))
        if known.verb is None:
            raise SpecError(f"{word}: unknown argument; name a verb first: {', '.join(verbs)}")
        flags = [flag for flag in verbs[known.verb]._option_string_actions if flag.startswith("--")]
        if word in flags:
            raise SpecError(f"{word}: write it after {known.verb}")
        hint = nearest(word, flags) if word.startswith("-") else f"flags begin with --, as {flags[-1]}"
        raise SpecError(f"{word}: unknown argument; {hint}")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """A verb is told with those near it."""
        if action.choices is not None and value not in action.choices:
            raise SpecError(f"{action.metavar}: {shown(value)} is not known; {nearest(str(value), action.choices)}")


def above_zero(kind: type) -> Callable[[str], Any]:
    """Reads a flag's text as a number of that kind above zero."""

    def read(text: str) -> Any:
        try:
            value = from_text(text, kind, "")
        except SpecError:
            value = math.nan
        if not value > 0:
            raise argparse.ArgumentTypeError(f"{shown(text)} is not a {KINDS[kind]} above zero")
        return value

    return read


def member(kind: type[E], text: str, flag: str, known: Sequence[E] = ()) -> E:
    """The member of an enumeration that a flag's text names, of `known` ones; SpecError with those near it."""
    names = {str(item): item for item in known or kind}
    require(text in names, f"{flag}: {shown(text)} is not known; {nearest(text, names)}")
    return names[text]


def add_case_flags(parser: argparse.ArgumentParser, without: Sequence[str] = ()) -> None:
    """--case, --model, --hf-config, --global-batch, and a flag for each field of the case's parts, `without` those
    whose names the verb's own flags take."""
    parser.set_defaults(**dict.fromkeys(without))
    parser.add_argument("--case", metavar="FILE", help="a Case, or a list of them, as JSON; - reads standard input")
    parser.add_argument("--model", metavar="NAME", help="a preset's name, as in `models`")
    parser.add_argument("--hf-config", metavar="FILE", help="a Hugging Face config.json of a supported family")
    parser.add_argument(
        "--global-batch", type=above_zero(int), metavar="N", help="sequences a step; sets micro_batches"
    )
    for part, kind in PARTS.items():
        group = parser.add_argument_group(part)
        hints = typing.get_type_hints(kind)
        for field in dataclasses.fields(kind):
            if field.name in without:
                continue
            metavar, text = _metavar(hints[field.name]), f"{field.metadata['help']} [{_default_text(field.default)}]"
            group.add_argument(_flag(field.name), metavar=metavar, help=text.replace("%", "%%"))


def case_of(options: argparse.Namespace, settle: Callable[[dict[str, Any]], None] | None = None) -> Case:
    """The one Case that the flags describe, after `settle` has filled in what a verb has its own defaults for.
    SpecError where they describe none or several."""
    cases = cases_of(options, settle)
    require(len(cases) == 1, f"--case: {options.case!r} holds {len(cases)} cases; this verb takes one")
    return cases[0]


def cases_of(options: argparse.Namespace, settle: Callable[[dict[str, Any]], None] | None = None) -> tuple[Case, ...]:
    """The Cases that the flags describe: one, a file's list of them, or a suite; every flag changes every case."""
    if given_bases(options):
        bases = _given(options)
    elif hasattr(options, "suite"):
        from suite.cases import suite_of

        bases = [case.to_mapping() for case in suite_of(options.suite or "default")]
        for base in bases:
            base["cluster"].pop("per_node")  # again what the layout needs, whatever the flags make of it
    else:
        raise SpecError("--model: missing; name a preset (`models` lists them), or give --case or --hf-config")
    return tuple(
        _changed(base, options, number if len(bases) > 1 else 0, settle) for number, base in enumerate(bases, 1)
    )


def case_over(
    data: Mapping[str, Any], options: argparse.Namespace, settle: Callable[[dict[str, Any]], None] | None = None
) -> Case:
    """The Case that `data` (its JSON form) is with what the flags, but for --case and its like, say of it."""
    return _changed(dict(data), options, 0, settle)


def given_base(options: argparse.Namespace) -> dict[str, Any]:
    """What --case holds, with the model that --model or --hf-config names; SpecError for several cases."""
    items = _given(options)
    require(len(items) == 1, f"--case: {options.case!r} holds {len(items)} cases; this verb takes one")
    return items[0]


def given_parts(options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """The keys of a case's parts that flags give, by part; parts that they say nothing of are left out."""
    parts = {part: _part(part, kind, options) for part, kind in PARTS.items()}
    return {part: given for part, given in parts.items() if given}


def given_bases(options: argparse.Namespace) -> list[str]:
    """Those of --case, --model and --hf-config that were given."""
    return [_flag(name) for name in BASES if getattr(options, name) is not None]


def given_changes(options: argparse.Namespace) -> list[str]:
    """The given flags that change a case."""
    names = ["global_batch", *(field.name for kind in PARTS.values() for field in dataclasses.fields(kind))]
    return [_flag(name) for name in names if getattr(options, name) is not None]


def refuse_beside(options: argparse.Namespace, flag: str, *others: str, why: str) -> None:
    """Refuse every flag about cases, and `others`, beside `flag`: nothing that was given is ignored."""
    given = [*given_bases(options), *given_changes(options)]
    given += [_flag(name) for name in others if getattr(options, name) is not None]
    require(not given, f"{flag}: given beside {', '.join(given)}; {why}")


def suite_name(options: argparse.Namespace, count: int) -> str:
    """What reports call the cases: a suite that flags changed is not that suite any more."""
    if given_bases(options):
        return "one case" if count == 1 else "standard input" if options.case == "-" else Path(options.case).name
    changes = given_changes(options)
    return f"{options.suite or 'default'}{' with ' if changes else ''}{', '.join(changes)}"


def passes_given(options: argparse.Namespace, cases: Sequence[Case]) -> tuple[Pass, ...]:
    """What --passes says, else what the cases have, or what the suite is about. SpecError for passes that the cases do
    not have, and for cases that have none in common."""
    from suite.cases import PASSES

    serves = {case.serves for case in cases}
    require(len(serves) == 1, "--case: some cases are served and some trained; give each kind a run of its own")
    if options.passes is None:
        return SERVED if serves == {True} else PASSES.get("" if options.suite is None else options.suite, ON_RANKS)
    passes = passes_of(options.passes)
    check_passes(serves.pop(), passes)
    require(
        Pass.TRACE not in passes or Pass.MEMORY in passes,
        "--passes: trace without memory; give memory,trace, or run the verb trace",
    )
    return passes


def trained_case_of(options: argparse.Namespace) -> Case:
    """The one Case that the flags describe, which is to be trained."""
    case = case_of(options)
    require(
        not case.serves,
        f"--new-tokens: {options.verb} is about training, and the case is served; take estimate or bench, or leave it"
        " out",
    )
    return case


def _given(options: argparse.Namespace) -> list[dict[str, Any]]:
    """What --case holds, with the model that --model or --hf-config names."""
    require(options.model is None or options.hf_config is None, "--hf-config: given beside --model; give one of them")
    read = read_json(options.case, "--case") if options.case is not None else {}
    items = read if isinstance(read, list) else [read]
    require(bool(items), f"--case: {options.case!r} holds no case")
    model: Any = options.model
    if options.hf_config is not None:
        from suite.models.hf_config import read_hf_config

        model = to_mapping(read_hf_config(options.hf_config))
    for item in items:
        require(isinstance(item, Mapping), f"--case: expected a Case (an object with keys), got {shown(item)}")
    return [dict(item) if model is None else {**item, "model": model} for item in items]


def _changed(
    data: dict[str, Any], options: argparse.Namespace, number: int, settle: Callable[[dict[str, Any]], None] | None
) -> Case:
    """A case with what the flags say of it; `number` is its place among several, else 0."""
    try:
        for part, kind in PARTS.items():
            if given := _part(part, kind, options):
                require(isinstance(data.get(part, {}), Mapping), f"{part}: expected an object with keys")
                data[part] = {**data.get(part, {}), **given}
        if settle is not None:
            settle(data)
        if options.global_batch is not None:
            _set_global_batch(data, options)
        return case_from(data)
    except SpecError as error:
        raise SpecError(f"case {number}: {error}" if number else str(error)) from None


def _part(part: str, kind: type, options: argparse.Namespace) -> dict[str, Any]:
    """The keys of one of a case's parts that flags give."""
    hints = typing.get_type_hints(kind)
    return {
        field.name: to_mapping(from_text(text, hints[field.name], _flag(field.name)))
        for field in dataclasses.fields(kind)
        if (text := getattr(options, field.name)) is not None
    }


def _set_global_batch(data: dict[str, Any], options: argparse.Namespace) -> None:
    require(options.micro_batches is None, "--global-batch: sets micro_batches; leave out --micro-batches")
    case, batch = case_from(data), options.global_batch
    each = case.workload.micro_batch * case.layout.data_ranks
    require(
        batch % each == 0,
        f"--global-batch: {batch} is not a multiple of micro_batch({case.workload.micro_batch})"
        f" * dp({case.layout.dp}) * fsdp({case.layout.fsdp}) = {each}",
    )
    data["workload"] = {**data.get("workload", {}), "micro_batches": batch // each}


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _metavar(kind: Any) -> str:
    if isinstance(kind, type) and issubclass(kind, Enum):
        return "|".join(str(member.value) for member in kind)
    return METAVARS.get(kind, "LEVEL,..." if typing.get_origin(kind) is tuple else "MODE")


def _default_text(default: Any) -> str:
    value = to_mapping(default)
    return str(value).lower() if isinstance(value, bool) else str(value) if value not in ("", []) else "none"
