"""Files of other tools, packed in every way: what they hold, and the one line that the others are refused with."""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from reports.intake.data_pickle import read_data_pickle
from reports.intake.packed import read_documents
from suite.parse import SpecError

pytestmark = pytest.mark.unit
PLAIN = {
    "numbers": [0, 1, -1, 255, 256, 65536, 2**31, 2**40, -(2**70), 0.5, True, False, None],
    "tuples": [(), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)],
    "text": ["", "é", "x" * 300],
    "many": [{"action": "alloc", "size": number} for number in range(1200)],
}


class Command:
    """What a hostile pickle holds: a call."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_plain_data_is_what_pickle_would_give(protocol: int) -> None:
    shared = {"frames": PLAIN["many"][:2], **PLAIN, "again": PLAIN["many"]}
    found = read_data_pickle(pickle.dumps(shared, protocol), "f")
    assert found == shared == pickle.loads(pickle.dumps(shared, protocol))
    assert found["again"] is found["many"]


@pytest.mark.parametrize("protocol", range(6))
def test_a_call_is_refused_by_name_and_never_made(protocol: int, tmp_path: Path) -> None:
    marker = tmp_path / "called"
    data = pickle.dumps({"segments": [], "x": Command(marker)}, protocol)
    with pytest.raises(SpecError, match=r"f: pickle opcode (STACK_)?GLOBAL .* is no plain data and is never executed"):
        read_data_pickle(data, "f")
    assert not marker.exists()


def refused(data: bytes) -> str:
    """What a pickle is refused with; nothing where it is whole by chance."""
    try:
        read_data_pickle(data, "f")
    except SpecError as refusal:
        return str(refusal)
    return ""


@given(st.binary(max_size=40), st.integers(0, 200))
@example(b"\x80\x04.", 0)
@example(b"\x80\x02}q\x00(.", 0)
@example(b"\x80\x02K\x01(u.", 0)
@example(b"\x80\x02](K\x01K\x02u.", 0)
@example(b"\x80\x02}(]K\x01u.", 0)
@example(b"\x80\x02h\x05.", 0)
def test_a_damaged_pickle_is_refused_in_one_line(noise: bytes, place: int) -> None:
    whole = pickle.dumps(PLAIN["tuples"] + PLAIN["text"], 4)
    for data in (noise, whole[:place], whole[:place] + noise + whole[place + len(noise) :]):
        refusal = refused(data)
        assert "\n" not in refusal
        assert refusal.startswith("f") or not refusal


def packed(form: str, data: bytes) -> bytes:
    if form == "gzip":
        return gzip.compress(data)
    if form == "zip":
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("inner/rank1.json", data)
            archive.writestr("inner/rank0.json.gz", gzip.compress(data))
            archive.writestr("README.txt", b"not taken")
        return file.getvalue()
    return data


@pytest.mark.parametrize("form", ["plain", "gzip", "zip"])
@pytest.mark.parametrize("write", [json.dumps, pickle.dumps])
def test_every_packing_gives_the_document(form: str, write: Any, tmp_path: Path) -> None:
    data = {"segments": [{"total_size": 3}]}
    written = write(data)
    path = tmp_path / "snap.pt.trace.json"
    path.write_bytes(packed(form, written.encode() if isinstance(written, str) else written))
    found = read_documents(str(path))
    assert [document.data for document in found] == [data] * (2 if form == "zip" else 1)
    assert [document.name for document in found] == (["rank0.json", "rank1.json"] if form == "zip" else [path.name])


def test_a_folder_is_a_file_a_rank(tmp_path: Path) -> None:
    for name in ("rank1.json", "rank0.json", "notes.txt"):
        (tmp_path / name).write_text("{}")
    assert [document.name for document in read_documents(str(tmp_path))] == ["rank0.json", "rank1.json"]


@pytest.mark.parametrize(
    "content, words",
    [
        (b"", "is empty"),
        (b" \n", "is empty"),
        (b"{", "is not JSON"),
        (b"[" * 100_000, "is nested too deeply"),
        (b"\xff\xfe\x00", "is neither JSON nor a pickle, gzip or zip"),
        (b"<html><img src='data:image/png;base64,AAAA'></html>", "is a page without a snapshot in it"),
        (b'<html>[{"base64": "gAQ"}]', "the snapshot in the page is damaged"),
        (gzip.compress(b"{}")[:-4], "is not a whole gzip file"),
        (gzip.compress(b""), "is empty"),
        (gzip.compress(b" " * 5000 + b"{}"), "unpacks to more than 4.00 KiB; record less"),
        (packed("zip", b"{}")[:60], "is not a whole zip"),
        (packed("zip", b" " * 5000 + b"{}"), "unpacks to more than 4.00 KiB"),
        (b"{" + b" " * 5000 + b"}", "has 4.88 KiB, more than 4.00 KiB; record less"),
    ],
    # contents hold the time of day, and tests have to be called the same in every process
    ids=lambda given: given if isinstance(given, str) else "file",
)
def test_what_cannot_be_read_is_refused_in_one_line(content: bytes, words: str, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(content)
    limit = 4096 if "4.00 KiB" in words else 2**30
    with pytest.raises(SpecError) as caught:
        read_documents(str(path), limit)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "name, words",
    [("none.json", "No such file"), ("a\0b", "null byte"), ("", "holds no file"), ("/dev/zero", "is no file")],
)
def test_a_path_that_leads_nowhere_is_refused_in_one_line(name: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=words):
        read_documents(str(tmp_path / name))
