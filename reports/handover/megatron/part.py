"""Part: some of a script's arguments that belong together, and what of the case they leave unsaid."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Part:
    """Arguments of one kind, in the order in which they are written."""

    title: str
    arguments: tuple[str, ...]
    """each as the script has it: an option, and its values where it takes any"""
    unsaid: tuple[str, ...] = ()
    """what Megatron-LM cannot express of it, a line each: the setting, its value, what it does instead"""


def given(*arguments: str | None) -> tuple[str, ...]:
    """Those of the arguments that are there."""
    return tuple(argument for argument in arguments if argument is not None)
