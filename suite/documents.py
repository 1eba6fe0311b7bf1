"""JSON documents that a person or a program hands in: strict UTF-8, strict JSON, refused in one line."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from suite.parse import SpecError, require, shown


def read_json(path: str, where: str) -> Any:
    """A JSON document from a file, or from standard input for `-`. SpecError names `where` and what is wrong."""
    try:
        text = _bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise SpecError(f"{where}: {shown(path)} is not UTF-8 text (byte {error.start}); give a JSON file") from None
    except (OSError, ValueError) as error:  # ValueError: a null byte in the path
        reason = getattr(error, "strerror", None) or error
        raise SpecError(
            f"{where}: {shown(path)} cannot be read ({reason}); give a JSON file, or - for standard input"
        ) from None
    try:
        return json.loads(text, object_pairs_hook=_unique)
    except SpecError as error:
        raise SpecError(f"{where}: {shown(path)}: {error}") from None
    except RecursionError:
        raise SpecError(f"{where}: {shown(path)} is nested too deeply to be read") from None
    except ValueError as error:
        what = f"is not JSON ({error})" if text.strip() else "is empty; expected JSON"
        raise SpecError(f"{where}: {shown(path)} {what}") from None


def _bytes(path: str) -> bytes:
    if path != "-":
        return Path(path).read_bytes()
    if sys.stdin is None:
        raise OSError("standard input is closed")
    return sys.stdin.buffer.read()


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object whose keys each stand there once: of two, a reader cannot know which was meant."""
    seen: set[str] = set()
    for name, _ in pairs:
        require(name not in seen, f"key {shown(name)} stands there twice; give it once")
        seen.add(name)
    return dict(pairs)
