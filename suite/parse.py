"""Strict reading of untrusted mappings (JSON, flags) into the project's frozen dataclasses.

An unknown key, a wrong type or a value outside an enumeration is a `SpecError` whose one line
names the field, the value met and what would have been accepted. Nothing is coerced silently.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
import types
import typing
from collections.abc import Iterable, Mapping
from enum import Enum
from functools import cache
from typing import Any, TypeVar


class SpecError(ValueError):
    """Bad input, said in one line that names the field, the value and what would do."""


T = TypeVar("T")

#: how a float that JSON cannot write is spelled
NON_FINITE = ("nan", "inf", "-inf")
#: beyond it readers of JSON may round (RFC 8259, section 6), and sizes multiplied out leave a float's range
LARGEST_INTEGER = 2**53 - 1
#: characters of a refused value that a message repeats
SHOWN_CHARACTERS = 80


def setting(default: Any, help: str) -> Any:
    """A dataclass field with its documentation, which is also its flag's help text."""
    return dataclasses.field(default=default, metadata={"help": help})


def nearest(word: str, choices: Iterable[str]) -> str:
    """A hint for an unknown word: the near ones if any are near, else all of them."""
    known = list(choices)
    close = difflib.get_close_matches(word, known, n=3, cutoff=0.6)
    return f"did you mean {', '.join(close)}?" if close else f"known: {', '.join(known)}"


def from_mapping(cls: type[T], data: Mapping[str, Any], where: str) -> T:
    """Build the dataclass `cls` from `data`; `where` is the path that messages begin with.

    Raises SpecError for a non-mapping, an unknown key, a missing required key or a wrong type;
    the dataclass's own validation may raise SpecError too.
    """
    if not isinstance(data, Mapping):
        raise SpecError(f"{where}: expected an object with keys, got {shown(data)}")
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init}  # type: ignore[arg-type]
    for key in data:
        if key not in fields:
            raise SpecError(f"{where}.{key}: unknown key; {nearest(str(key), fields)}")
    required = {
        name
        for name, field in fields.items()
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    }
    for name in sorted(required - set(data)):
        raise SpecError(f"{where}.{name}: missing; it has no default")
    hints: dict[str, Any] = _hints(cls)  # type: ignore[arg-type]
    return cls(**{key: convert(value, hints[key], f"{where}.{key}") for key, value in data.items()})


def convert(value: Any, kind: Any, where: str) -> Any:
    """`value` as the annotated type `kind`; SpecError if it is not one."""
    if kind is int and type(value) is int and abs(value) > LARGEST_INTEGER:
        raise SpecError(f"{where}: {shown(value)} is beyond {LARGEST_INTEGER}, the largest whole number taken")
    if kind is Any or type(value) is kind:  # most values; a store has many
        return value
    if typing.get_origin(kind) is tuple:
        return _convert_tuple(value, kind, where)
    if typing.get_origin(kind) is dict:
        return _convert_dict(value, kind, where)
    if isinstance(kind, types.UnionType) or typing.get_origin(kind) is typing.Union:
        return _convert_union(value, kind, where)
    if isinstance(kind, type) and isinstance(value, kind) and not (kind is int and isinstance(value, bool)):
        return value
    if isinstance(kind, type) and issubclass(kind, Enum):
        return _convert_enum(value, kind, where)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if kind is float and value in NON_FINITE:
        return float(value)
    if isinstance(kind, type) and hasattr(kind, "parse"):
        return kind.parse(convert(value, str, where), where)
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        return from_mapping(kind, value, where)
    raise SpecError(f"{where}: expected {_type_name(kind)}, got {shown(value)}")


def to_mapping(value: Any) -> Any:
    """The JSON form of a dataclass, the inverse of `from_mapping`: enums and parsed types as text.

    A number that JSON has no word for is one of NON_FINITE, so that the text stays standard JSON.
    """
    if isinstance(value, Enum):
        return value.value
    if hasattr(type(value), "parse"):
        return str(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_mapping(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, list | tuple):
        return [to_mapping(item) for item in value]
    if isinstance(value, dict):
        return {str(to_mapping(key)): to_mapping(item) for key, item in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def from_text(text: str, kind: Any, where: str) -> Any:
    """A flag's text as the annotated type `kind` (numbers and true/false are read, then `convert`)."""
    if typing.get_origin(kind) is tuple:
        item = typing.get_args(kind)[0]
        return tuple(item.from_text(part, where) for part in text.split(","))
    options = typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
    for option in options:
        if option is bool and text.lower() in {"true", "false"}:
            return text.lower() == "true"
        if option in (int, float):
            try:
                return option(text)
            except ValueError:
                continue
    return convert(text, kind, where)


def shown(value: Any) -> str:
    """A refused value as a message repeats it: whole if it is short, else its beginning."""
    text = repr(value)
    return text if len(text) <= SHOWN_CHARACTERS else text[: SHOWN_CHARACTERS - 3] + "..."


def require(condition: bool, message: str) -> None:
    """Raise SpecError(message) unless the condition holds."""
    if not condition:
        raise SpecError(message)


def _convert_union(value: Any, kind: Any, where: str) -> Any:
    options = typing.get_args(kind)
    if value is None and type(None) in options:
        return None
    refusals = []
    for option in options:
        if option is type(None):
            continue
        try:
            return convert(value, option, where)
        except SpecError as refusal:
            refusals.append(str(refusal))
    plain = [option for option in options if option in (bool, int, float, str)]
    if len(plain) > 1:
        raise SpecError(f"{where}: expected {' or '.join(map(_type_name, plain))}, got {shown(value)}")
    raise SpecError(refusals[0])


def _convert_enum(value: Any, kind: type[Enum], where: str) -> Enum:
    try:
        return kind(value)
    except ValueError:
        accepted = [str(member.value) for member in kind]
        raise SpecError(f"{where}: {shown(value)} is not known; {nearest(str(value), accepted)}") from None


def _convert_tuple(value: Any, kind: Any, where: str) -> tuple[Any, ...]:
    """A list as `tuple[X, ...]`, or as `tuple[X, Y]` of that very length."""
    if not isinstance(value, list | tuple):
        raise SpecError(f"{where}: expected a list, got {shown(value)}")
    kinds = typing.get_args(kind)
    if kinds[-1] is Ellipsis:
        kinds = kinds[:1] * len(value)
    require(len(kinds) == len(value), f"{where}: expected {len(kinds)} items, got {len(value)}: {shown(value)}")
    pairs = zip(value, kinds, strict=True)
    return tuple(convert(item, item_kind, f"{where}[{index}]") for index, (item, item_kind) in enumerate(pairs))


def _convert_dict(value: Any, kind: Any, where: str) -> dict[Any, Any]:
    """An object as `dict[K, V]`; JSON's keys are text, so a whole number is read from its digits."""
    if not isinstance(value, Mapping):
        raise SpecError(f"{where}: expected an object with keys, got {shown(value)}")
    key_kind, item_kind = typing.get_args(kind)
    return {
        _convert_key(key, key_kind, f"{where} key"): convert(item, item_kind, f"{where}.{key}")
        for key, item in value.items()
    }


def _convert_key(key: Any, kind: Any, where: str) -> Any:
    if kind is int and isinstance(key, str) and re.fullmatch(r"-?\d+", key, flags=re.ASCII):
        return int(key)
    return convert(key, kind, where)


def _type_name(kind: Any) -> str:
    names = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
    return names.get(kind, getattr(kind, "__name__", str(kind)))


@cache
def _hints(cls: Any) -> dict[str, Any]:
    return typing.get_type_hints(cls)
