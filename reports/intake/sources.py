"""The tools whose configurations are read: one line each, and how a file shows which of them it is of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from reports.intake.base import Taken
from reports.intake.deepspeed import is_deepspeed, read_deepspeed
from reports.intake.hugging_face import read_hugging_face, recognises_hugging_face
from reports.intake.megatron.read import is_megatron, read_megatron
from reports.intake.reading import MEASURED
from suite.parse import SpecError, nearest, require, shown

#: characters of a file that recognisers are shown
HEAD_CHARACTERS = 2**20


@dataclass(frozen=True)
class Source:
    """A tool's configurations. `recognises` is shown a file's beginning as text (HEAD_CHARACTERS of it, what is no
    UTF-8 replaced) and must raise nothing; `read` takes a path, or - for standard input, and raises SpecError."""

    recognises: Callable[[str], bool]
    read: Callable[[str], Taken]


#: readers by the name that --from takes; recognisers are asked in this order
SOURCES: dict[str, Source] = {
    "deepspeed": Source(is_deepspeed, read_deepspeed),
    "megatron": Source(is_megatron, read_megatron),
    "hf": Source(recognises_hugging_face, read_hugging_face),
}


def source_of(path: str, named: str | None) -> str:
    """The name of the source that --from names, else of the one that the file's content shows."""
    if named is not None:
        require(named in SOURCES, f"--from: {shown(named)} is not known; {nearest(named, (*SOURCES, *MEASURED))}")
        return named
    require(path != "-", f"--from: missing; standard input is read once, so name its tool: {', '.join(SOURCES)}")
    head = _head(path)
    for name, source in SOURCES.items():
        if source.recognises(head):
            return name
    raise SpecError(f"FILE: {shown(path)} is of no tool that is known; name it with --from: {', '.join(SOURCES)}")


def _head(path: str) -> str:
    try:
        with open(path, encoding="utf-8-sig", errors="replace") as file:
            return file.read(HEAD_CHARACTERS)
    except (OSError, ValueError) as error:  # ValueError: a null byte in the path
        reason = getattr(error, "strerror", None) or error
        raise SpecError(f"FILE: {shown(path)} cannot be read ({reason}); give a tool's configuration") from None
