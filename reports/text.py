"""Text that came from outside (names, paths, reasons, stderr) made safe to show."""

from __future__ import annotations

import unicodedata

from suite.units import bytes_text

#: Unicode categories that a terminal, an XML parser or a file encoder would choke on or act upon:
#: controls (escape sequences), formats (direction overrides), lone surrogates (undecodable file names), unassigned.
_UNSAFE = frozenset({"Cc", "Cf", "Cs", "Cn"})
_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


def plain(text: object) -> str:
    """`text` on one line, every control, format or undecodable character shown as U+FFFD, line ends as spaces."""
    return " ".join(plain_lines(text).replace("\t", " ").split("\n"))


def plain_lines(text: object) -> str:
    """As `plain`, but line ends and tabs stay: for the last lines of a log. CR LF and CR become LF."""
    unified = str(text).replace("\r\n", "\n").replace("\r", "\n")
    return "".join(
        _REPLACEMENT if unicodedata.category(letter) in _UNSAFE and letter not in "\n\t" else letter
        for letter in unified
    )


def shorten(text: str, limit: int) -> str:
    """`text`, its end replaced by an ellipsis where it is longer than `limit` characters."""
    return text if len(text) <= limit else text[: limit - 1].rstrip() + "…"


def difference_text(value: float | None) -> str:
    """A difference in bytes with its sign: 1536 -> '+1.50 KiB', 0 -> '0 B'."""
    return f"+{bytes_text(value)}" if value is not None and value > 0 else bytes_text(value)


def plural(count: int, noun: str) -> str:
    """'1 case', '2 cases'."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
