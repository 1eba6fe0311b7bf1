"""The text a run trains on: a file, a folder of files, or the documentation that every CPython ships.

Only text is ever read: strict UTF-8, nothing unpickled, nothing executed, nothing downloaded.
"""

from __future__ import annotations

import hashlib
import os
import platform
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from suite.parse import SpecError, require

#: What a folder is searched for, in any case of letters. A file named outright may end in anything.
TEXT_SUFFIXES = (".adoc", ".markdown", ".md", ".org", ".rst", ".tex", ".text", ".txt")

_FIELD = "recipe.data"


@dataclass(frozen=True)
class Corpus:
    """A text and where it came from."""

    name: str
    """The source in words: a path, with the number of files and their suffixes for a folder."""
    text: str
    """All of it; files are joined by a line feed."""

    @cached_property
    def sha256(self) -> str:
        """64 hex digits of the text's UTF-8 bytes: the same text has the same digest wherever it lies."""
        return hashlib.sha256(self.text.encode()).hexdigest()


def read_corpus(path: str) -> Corpus:
    """The corpus at `path`; "" is Python's own documentation.

    A folder is searched recursively for files with one of TEXT_SUFFIXES, hidden names left out, and
    read in the order of their relative paths. Line ends are kept; a leading byte-order mark is dropped.

    Raises SpecError, naming recipe.data and the value, for a path that is missing, unreadable, no
    regular file or folder, not UTF-8 text, or that holds nothing but white space.
    """
    if not path:
        return _python_documentation()
    place = Path(os.path.expanduser(path))
    try:
        place.stat()
    except FileNotFoundError:
        raise SpecError(f"{_FIELD}: {path!r} does not exist; {_accepted()}") from None
    except (OSError, ValueError) as error:  # ValueError: a null byte in the path
        raise SpecError(f"{_FIELD}: {path!r} cannot be read ({_reason(error)}); {_accepted()}") from None
    corpus = _read_folder(path, place) if place.is_dir() else Corpus(path, _read_text(path, place))
    require(bool(corpus.text.strip()), f"{_FIELD}: {corpus.name!r} holds no text but white space; {_accepted()}")
    return corpus


def _python_documentation() -> Corpus:
    """The topics of Python's help(), about 465,000 characters; the digest tells one version's text from another's."""
    try:
        from pydoc_data.topics import topics
    except ModuleNotFoundError:  # some distributions cut it out of the standard library
        raise SpecError(f"{_FIELD}: '' needs pydoc_data, which this Python is without; {_accepted()}") from None
    text = "\n".join(topics[key] for key in sorted(topics))
    return Corpus(f"documentation of Python {platform.python_version()}", text)


def _read_folder(path: str, folder: Path) -> Corpus:
    files = sorted(_text_files(path, folder), key=lambda file: file.relative_to(folder).parts)
    require(bool(files), f"{_FIELD}: no file in {path!r} ends in {', '.join(TEXT_SUFFIXES)}; {_accepted()}")
    suffixes = sorted({file.suffix.lower() for file in files})
    text = "\n".join(_read_text(path, file) for file in files)
    return Corpus(f"{path} ({len(files)} files: {', '.join(suffixes)})", text)


def _text_files(path: str, folder: Path) -> Iterator[Path]:
    def refuse(error: OSError) -> None:
        raise SpecError(f"{_FIELD}: {path!r} holds a folder that cannot be read: {error.filename!r} ({_reason(error)})")

    for parent, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            if not name.startswith(".") and Path(name).suffix.lower() in TEXT_SUFFIXES:
                yield Path(parent, name)


def _read_text(path: str, file: Path) -> str:
    """The file's text; `path` is the value that the user gave, which messages repeat."""
    inside = "" if str(file) == os.path.expanduser(path) else f": {str(file)!r}"
    try:
        # Opening a pipe would wait for a writer, and a device may have no end.
        require(file.is_file(), f"{_FIELD}: {path!r}{inside} is not a regular file; {_accepted()}")
        raw = file.read_bytes()
    except OSError as error:
        raise SpecError(f"{_FIELD}: {path!r}{inside} cannot be read ({_reason(error)}); {_accepted()}") from None
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        found = f"byte 0x{raw[error.start]:02x} at offset {error.start}"
        raise SpecError(f"{_FIELD}: {path!r}{inside} is not UTF-8 text ({found}); {_accepted()}") from None
    # UTF-16 without a mark, and many binary formats, decode as UTF-8; a null byte gives them away.
    null = raw.find(b"\0")
    require(null < 0, f"{_FIELD}: {path!r}{inside} is not text (null byte at offset {null}); {_accepted()}")
    return text.removeprefix("\ufeff")


def _reason(error: OSError | ValueError) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def _accepted() -> str:
    return "give a UTF-8 text file, a folder of them, or '' for Python's own documentation"
