"""Reading a Hugging Face config.json one field at a time, so that no field is misread or passed over. Torch-free."""

from __future__ import annotations

import difflib
import json
import math
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, cast

from suite.parse import SpecError, convert

T = TypeVar("T")
REQUIRED: Any = object()
LONGEST = 60  # characters of a value or key in a message


@dataclass(frozen=True)
class Unfollowed:
    """What of a file is not followed, and is listed instead of refused: a line each."""

    maths: list[str] = field(default_factory=list)
    """fields that change numbers alone"""
    unknown: list[str] = field(default_factory=list)
    """fields that nobody asked for, with their values"""
    assumed: dict[str, str] = field(default_factory=dict)
    """fields that are left out, with what stands for them"""
    harmless: dict[str, str] = field(default_factory=dict)
    """fields that say nothing about the arithmetic of a step"""


class Fields:
    """The fields of one object. It remembers which were asked for: `close` refuses the rest.

    A field whose value is null counts as left out, as in transformers. Every refusal is a SpecError of one line that
    begins with `where`.
    """

    def __init__(self, data: Any, where: str, unfollowed: Unfollowed | None = None) -> None:
        self.unfollowed = unfollowed
        if not isinstance(data, Mapping):
            raise SpecError(f"{where}: expected an object with keys, got {shown(data)}")
        self.where = where
        self.notices: list[str] = []
        """what is read and not followed to the letter, a line each"""
        self._nulls = {key for key, value in data.items() if value is None}
        self._data = {key: value for key, value in data.items() if value is not None}
        self._known: set[str] = set()

    def take(self, name: str, kind: type[T], default: T | None = REQUIRED) -> T:
        """The field as `kind` (numbers are finite), or the default; SpecError if it is missing or of another type."""
        self._known.add(name)
        if name not in self._data:
            if default is REQUIRED:
                raise SpecError(f"{self.where}: {name}: missing; give {_WORDS[kind]}")
            if self.unfollowed is not None and default not in (0, []):  # these stand for what follows from others
                self.unfollowed.assumed[name] = f"{name} {shown(default)}: left out, transformers' own default"
            return cast(T, default)
        value = self._data[name]
        try:
            found = convert(value, kind, name)
        except SpecError:
            raise SpecError(f"{self.where}: {name}: expected {_WORDS[kind]}, got {shown(value)}") from None
        if isinstance(found, float) and not math.isfinite(found):
            raise SpecError(f"{self.where}: {name}: expected {_WORDS[kind]}, got {shown(value)}")
        return cast(T, found)

    def size(self, name: str, default: int = REQUIRED) -> int:
        """A whole number of at least 1, or the default as it is."""
        found = self.take(name, int, default)
        if self.has(name) and found < 1:
            raise SpecError(f"{self.where}: {name}: must be at least 1, got {shown(found)}")
        return found

    def only(self, name: str, *accepted: Any, why: str) -> None:
        """Refuse the field unless it is left out or one of `accepted`; `why` says what is not modelled."""
        self._known.add(name)
        value = self._data.get(name, accepted[0])
        if not any(type(value) is type(item) and value == item for item in accepted):
            choices = " or ".join(shown(item) for item in accepted)
            raise SpecError(f"{self.where}: {name}: {shown(value)} is not modelled ({why}); accepted: {choices}")

    def only_maths(self, name: str, *accepted: Any, alike: tuple[Any, ...], why: str) -> None:
        """As `only`, but what is `alike` changes numbers, and neither a tensor's size nor a kernel's work: it is listed
        where there is a list of such, and refused where there is none."""
        value = self._data.get(name)
        if self.unfollowed is not None and any(type(value) is type(item) and value == item for item in alike):
            self._known.add(name)
            self.unfollowed.maths.append(f"{name} {shown(value)}: {why}; sizes and work are the same")
        else:
            self.only(name, *accepted, why=why)

    def none(self, name: str, why: str) -> None:
        """Refuse the field unless it is left out, null or empty."""
        self._known.add(name)
        if self._data.get(name):
            raise SpecError(f"{self.where}: {name}: {shown(self._data[name])} is not modelled ({why}); leave it out")

    def refuse(self, name: str, reason: str) -> SpecError:
        """The error for a field's value, to be raised."""
        return SpecError(f"{self.where}: {name}: {shown(self._data.get(name))} {reason}")

    def has(self, name: str) -> bool:
        """Is the field there, and not null?"""
        return name in self._data

    def positive(self, name: str, default: float = REQUIRED) -> float:
        """A finite number above 0, or the default."""
        found = self.take(name, float, default)
        if found <= 0:
            raise self.refuse(name, "must be positive")
        return found

    def says_null(self, name: str) -> bool:
        """Is the field there and null? The few defaults that null does not stand for need to know."""
        return name in self._nulls

    def raw(self, name: str) -> Any:
        """The value as it stands, None where it is left out."""
        self._known.add(name)
        return self._data.get(name)

    def skip(self, names: Iterable[str]) -> None:
        """These fields say nothing about the model's arithmetic."""
        skipped = tuple(names)
        self._known.update(skipped)
        if self.unfollowed is not None:
            found = [name for name in self._data if name in skipped or name.startswith("_")]
            self.unfollowed.harmless.update({name: f"{name} {shown(self._data[name])}" for name in found})

    def close(self) -> None:
        """Refuse the first field that nobody asked for: it may change the model; where there is a list for such, list
        them. Private ones (_x) are let pass."""
        for name in self._data:
            if name in self._known or name.startswith("_"):
                continue
            if self.unfollowed is not None:
                self.unfollowed.unknown.append(f"{shown(name)} {shown(self._data[name])}")
                continue
            near = difflib.get_close_matches(name[:LONGEST], self._known, n=1, cutoff=0.8)
            hint = f"did you mean {near[0]}?" if near else "remove it if the model is the same without it"
            raise SpecError(f"{self.where}: {shown(name)}: unknown field, so what it changes is not modelled; {hint}")


_WORDS: dict[Any, str] = {int: "a whole number", float: "a number", bool: "true or false", str: "text", list: "a list"}


def shown(value: Any) -> str:
    """A value in a message: one line, never long."""
    text = repr(value)
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."


def read_object(path: str, unfollowed: Unfollowed | None = None) -> Fields:
    """The fields of a JSON file (- is standard input) that holds one object; SpecError if it cannot be read or holds
    something else."""
    where = f"hf-config {path!r}"
    try:
        data = json.loads(sys.stdin.buffer.read() if path == "-" else Path(path).read_bytes())
    except OSError as error:
        raise SpecError(f"{where}: cannot be read ({error.strerror}); give a model's config.json") from None
    except (ValueError, RecursionError) as error:
        first = (str(error).splitlines() or [""])[0]
        raise SpecError(f"{where}: not JSON ({first}); give a model's config.json") from None
    return Fields(data, where, unfollowed)
