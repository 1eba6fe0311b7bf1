"""A document's keys, each taken once by its path: what nobody takes is left over, and is listed and not dropped."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

from suite.parse import SpecError, convert

T = TypeVar("T")
#: what Hugging Face's trainers fill in
AUTO = "auto"


class Keys:
    """The leaves of nested objects by dotted path, as in `zero_optimization.stage`. `where` names the document."""

    def __init__(self, document: Any, where: str) -> None:
        if not isinstance(document, Mapping):
            raise SpecError(f"{where}: expected an object with keys")
        self.where = where
        self.left: dict[str, Any] = dict(_leaves(document, ""))
        self.automatic: list[str] = []
        self.sections = frozenset(key for key, value in document.items() if isinstance(value, Mapping))

    def take(self, path: str, kind: type[T], *, meaning: str = "") -> T | None:
        """The value at a path, which must be of that kind; None where it is absent, null or `auto`. A whole number may
        be written as a float is, as in 5e8. `meaning` says what stands for `auto`."""
        value = self.left.pop(path, None)
        if value == AUTO and meaning:
            self.automatic.append(f"{path} auto: its trainer fills it in; {meaning}")
            return None
        if value is None:
            return None
        if kind is int and type(value) is float and value.is_integer():
            value = int(value)
        found: T = convert(value, kind, f"{self.where}: {path}")
        return found

    def skip(self, paths: Mapping[str, Any] | frozenset[str]) -> Iterator[str]:
        """Take what is of these paths or under them; a line each."""
        for path in [path for path in self.left if _is_under(path, paths)]:
            yield line(path, self.left.pop(path))


def line(path: str, value: Any) -> str:
    """A key with its value, as the document has it."""
    return f"{path} {json.dumps(value, ensure_ascii=False)}"


def _is_under(path: str, paths: Mapping[str, Any] | frozenset[str]) -> bool:
    parts = path.split(".")
    return any(".".join(parts[:length]) in paths for length in range(1, len(parts) + 1))


def _leaves(value: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, item in value.items():
        path = f"{prefix}{key}"
        if isinstance(item, Mapping) and item:
            yield from _leaves(item, f"{path}.")
        else:
            yield path, item
