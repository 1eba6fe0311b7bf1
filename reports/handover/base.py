"""What a target's writer gives: the configuration as text, and what the target cannot say."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Handover:
    """A case in a target's own form."""

    text: str
    """the whole file, with a comment for each of `unsaid` where the form has comments"""
    filename: str
    """what the target's own documentation calls such a file"""
    unsaid: tuple[str, ...] = ()
    """what the target cannot express, a line each: the setting, its value, and what it does instead"""
    usage: str = ""
    """how the target is started with it"""
