"""Standard output and standard error, whatever they are joined to: a terminal, a pipe, a full disk, nothing."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from typing import TYPE_CHECKING

from reports.text import plain, shorten

if TYPE_CHECKING:
    from rich.console import Console

#: Columns where there is no terminal to fit: tables show everything, and lines are whole for grep.
PIPED_COLUMNS = 160
MESSAGE_CHARACTERS = 1000


def open_streams() -> None:
    """Make both streams take any text: what an encoding lacks is written escaped, a closed stream swallows all."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115  (as long as the process)
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def abandon_output() -> None:
    """Where standard output refuses what is still held for it, let that go nowhere: nothing is said of it at exit."""
    try:
        sys.stdout.flush()
    except OSError:
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def tell(message: object) -> None:
    """One line on standard error, whatever the message holds."""
    with contextlib.suppress(OSError):  # nobody is left to tell
        print(shorten(plain(message), MESSAGE_CHARACTERS), file=sys.stderr, flush=True)


def output() -> Console:
    """Standard output as a rich console."""
    from rich.console import Console  # here: an answer in JSON does not wait for it

    has_width = sys.stdout.isatty() or "COLUMNS" in os.environ
    return Console(width=None if has_width else PIPED_COLUMNS)
