"""Megatron-LM's options: names, what they take and what they are when nobody gives them, from options.csv.

The table is what `add_megatron_arguments` of NVIDIA/Megatron-LM d98e8a64 (August 2026) defines.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from pathlib import Path


class Takes(StrEnum):
    """What follows an option."""

    SET = "set"  # nothing: it makes the setting true
    CLEAR = "clear"  # nothing: it makes it false
    EITHER = "either"  # nothing: --name, or --no-name
    ONE = "one"
    SOME = "some"


@dataclass(frozen=True)
class Option:
    """A setting: its name among the parsed arguments, and the options that set it."""

    name: str
    flags: tuple[str, ...]
    takes: Takes
    kind: str
    """int, float, or nothing for text"""
    default: str
    """as text; nothing for None"""
    choices: tuple[str, ...]


@cache
def options() -> dict[str, Option]:
    """Every setting by its name."""
    path = Path(__file__).with_name("options.csv")
    with path.open(encoding="utf-8", newline="") as file:
        rows = [
            Option(
                row["dest"], tuple(row["options"].split()), Takes(row["kind"]), row["type"], row["default"],
                tuple(row["choices"].split()),
            )
            for row in csv.DictReader(file)
        ]  # fmt: skip
    return {row.name: row for row in rows}


@cache
def by_flag() -> dict[str, Option]:
    """The settings by their options, as in --num-layers."""
    return {flag: option for option in options().values() for flag in option.flags}
