"""A file of another tool as documents: plain, gzip or zip; JSON, a pickle of plain data, or a page that holds one.

What torch writes of its memory: `torch.cuda.memory._dump_snapshot` a pickle; `_memory_viz.trace_plot` and
`segment_plot` a page with that pickle in base64 inside JSON; `json.dump(torch.cuda.memory._snapshot(), file)` JSON;
`torch.profiler` .json and .json.gz. A zip holds one document or one a rank.
"""

from __future__ import annotations

import base64
import binascii
import gzip
import io
import json
import re
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reports.intake.data_pickle import read_data_pickle
from suite.parse import SpecError, require, shown
from suite.units import GIB, bytes_text

#: bytes of one unpacked document; as Python's objects it takes some ten times that
LARGEST = GIB
#: documents of one import: more than ranks that anybody traces one by one
MOST = 1024
_SMALLER = "record less: fewer max_entries, context=None, fewer profiled steps"
_IN_PAGE = re.compile(rb'"base64":\s*"([A-Za-z0-9+/=]+)"')
_SUFFIXES = (".json", ".gz", ".pickle", ".pkl", ".zip", ".html")


@dataclass(frozen=True)
class Document:
    """What a file, or a member of an archive, holds."""

    name: str
    """the file's name, without its folder"""
    data: Any


def read_documents(path: str, limit: int = LARGEST) -> list[Document]:
    """The documents of a file, a zip or a folder, in the order of their names. SpecError, in one line, for what cannot
    be read, is empty, is larger than `limit` bytes unpacked, or is none of the forms that are known."""
    where = Path(path)
    try:
        files = sorted(each for each in where.iterdir() if each.suffix in _SUFFIXES) if where.is_dir() else [where]
        require(bool(files), f"FILE: {shown(path)} holds no file named {', '.join(_SUFFIXES)}")
        require(len(files) <= MOST, f"FILE: {shown(path)} holds {len(files)} files, more than {MOST}; name one")
        return [found for each in files for found in _read(each, limit)]
    except (OSError, ValueError) as error:
        if isinstance(error, SpecError):
            raise
        reason = getattr(error, "strerror", None) or error
        raise SpecError(f"FILE: {shown(path)} cannot be read ({reason}); name a file of another tool") from None


def _read(path: Path, limit: int) -> Iterator[Document]:
    where = f"FILE: {shown(str(path))}"
    size = path.stat().st_size
    require(path.is_file(), f"{where} is no file (a device, a pipe or a folder); name a file")
    require(size <= limit, f"{where} has {bytes_text(size)}, more than {bytes_text(limit)}; {_SMALLER}")
    yield from _unpacked(path.name, path.read_bytes(), limit, where)


def _unpacked(name: str, data: bytes, limit: int, where: str) -> Iterator[Document]:
    require(bool(data.strip()), f"{where} is empty")
    if data.startswith(b"PK\x03\x04"):
        yield from _members(data, limit, where)
        return
    if data.startswith(b"\x1f\x8b"):
        name, data = name.removesuffix(".gz"), _gunzipped(data, limit, where)
        require(bool(data.strip()), f"{where} is empty")
    yield Document(name, _document(data, where))


def _members(data: bytes, limit: int, where: str) -> Iterator[Document]:
    """The documents of a zip; of its members those whose names end as such files do."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            named = (each for each in archive.infolist() if each.filename.endswith(_SUFFIXES))
            members = sorted(named, key=lambda each: each.filename)
            require(bool(members), f"{where} is a zip without a member named {', '.join(_SUFFIXES)}")
            require(len(members) <= MOST, f"{where} holds {len(members)} members, more than {MOST}")
            for member in members:
                inside = f"{where}: {member.filename}"
                with archive.open(member) as file:
                    content = file.read(limit + 1)
                _require_size(content, limit, inside)
                require(not content.startswith(b"PK\x03\x04"), f"{inside} is a zip in a zip; unpack it")
                yield from _unpacked(Path(member.filename).name, content, limit, inside)
    except (zipfile.BadZipFile, zlib.error, RuntimeError, NotImplementedError, EOFError) as error:
        raise SpecError(f"{where} is not a whole zip ({error})") from None


def _gunzipped(data: bytes, limit: int, where: str) -> bytes:
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(data)) as file:
            content = file.read(limit + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise SpecError(f"{where} is not a whole gzip file ({error})") from None
    _require_size(content, limit, where)
    return content


def _require_size(content: bytes, limit: int, where: str) -> None:
    require(len(content) <= limit, f"{where} unpacks to more than {bytes_text(limit)}; {_SMALLER}")


def _document(data: bytes, where: str) -> Any:
    if data.startswith(b"\x80"):
        return read_data_pickle(data, where)
    if data.lstrip().startswith(b"<"):
        found = _IN_PAGE.search(data)
        if found is None:
            raise SpecError(f"{where} is a page without a snapshot in it (a timeline's is a picture: give its .json)")
        try:
            return read_data_pickle(base64.b64decode(found[1]), where)
        except binascii.Error as error:
            raise SpecError(f"{where}: the snapshot in the page is damaged ({error})") from None
    try:
        return json.loads(data.decode("utf-8-sig"), strict=False)  # kernels' names hold control characters
    except UnicodeDecodeError as error:
        raise SpecError(f"{where} is neither JSON nor a pickle, gzip or zip (byte {error.start})") from None
    except RecursionError:
        raise SpecError(f"{where} is nested too deeply to be read") from None
    except ValueError as error:
        raise SpecError(f"{where} is not JSON ({error})") from None
