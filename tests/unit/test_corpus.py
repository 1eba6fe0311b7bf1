"""What is read as a corpus, and how each unfit input is refused."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from pydoc_data.topics import topics

import pytest

from suite.corpus import TEXT_SUFFIXES, read_corpus
from suite.parse import SpecError

pytestmark = pytest.mark.unit


def refusal(path: str | Path) -> str:
    """The one line with which `path` is refused; it names the field, the value and what would do."""
    with pytest.raises(SpecError) as caught:
        read_corpus(str(path))
    message = str(caught.value)
    assert message.startswith("recipe.data: ")
    assert str(path) in message
    assert "give a UTF-8 text file" in message
    assert "\n" not in message
    return message


def test_default_is_pythons_documentation_in_key_order() -> None:
    corpus = read_corpus("")
    first, second = sorted(topics)[:2]
    assert corpus.text.startswith(topics[first] + "\n" + topics[second])
    assert len(corpus.text) == sum(map(len, topics.values())) + len(topics) - 1
    assert len(corpus.text) > 300_000


def test_file_is_read_as_it_is(tmp_path: Path) -> None:
    file = tmp_path / "log.anything"
    file.write_bytes("één\r\ntwo\n".encode())
    corpus = read_corpus(str(file))
    assert corpus.text == "één\r\ntwo\n"
    assert corpus.name == str(file)
    assert corpus.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()


def test_byte_order_mark_is_dropped(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_bytes(b"\xef\xbb\xbfabc")
    assert read_corpus(str(file)).text == "abc"


def test_home_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.txt").write_text("at home")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert read_corpus("~/a.txt").text == "at home"


def test_folder_is_read_in_path_order_and_says_what_it_took(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / ".hidden").mkdir()
    for name, text in {
        "b/z.md": "third",
        "b/a.TXT": "second",
        "a.rst": "first",
        "c.txt": "",
        "b/model.pkl": "never",
        ".hidden/x.txt": "never",
        ".x.txt": "never",
        "code.py": "never",
    }.items():
        (tmp_path / name).write_text(text)
    corpus = read_corpus(str(tmp_path))
    assert corpus.text == "first\nsecond\nthird\n"
    assert corpus.name == f"{tmp_path} (4 files: .md, .rst, .txt)"


def test_digest_follows_the_text_not_the_place(tmp_path: Path) -> None:
    for name, text in {"a": "same", "b": "same", "c": "other"}.items():
        (tmp_path / name).write_text(text)
    a, b, c = (read_corpus(str(tmp_path / name)).sha256 for name in "abc")
    assert a == b != c


@pytest.mark.parametrize("name", ["absent.txt", "nul\0byte", "n" * 5000], ids=["absent", "null", "long"])
def test_path_that_is_not_there(tmp_path: Path, name: str) -> None:
    with pytest.raises(SpecError, match=r"^recipe\.data: .*(does not exist|cannot be read)"):
        read_corpus(str(tmp_path / name))


def test_missing_path_is_named(tmp_path: Path) -> None:
    assert "does not exist" in refusal(tmp_path / "absent.txt")


def test_unreadable_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "secret.txt"
    file.write_text("abc")

    def deny(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_bytes", deny)  # chmod would not stop root
    assert "Permission denied" in refusal(file)
    assert str(file) in refusal(tmp_path)


def test_unreadable_folder_inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def deny(path: str) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "scandir", deny)
    with pytest.raises(SpecError, match=r"^recipe\.data: .*folder that cannot be read.*Permission denied"):
        read_corpus(str(tmp_path))


def test_bytes_that_are_not_utf8_name_file_and_offset(tmp_path: Path) -> None:
    (tmp_path / "fine.txt").write_text("fine")
    file = tmp_path / "latin.txt"
    file.write_bytes("café au lait".encode("latin-1"))
    assert "byte 0xe9 at offset 3" in refusal(file)
    message = refusal(tmp_path)
    assert str(file) in message
    assert "byte 0xe9 at offset 3" in message


def test_null_bytes_are_not_text(tmp_path: Path) -> None:
    file = tmp_path / "wide.txt"
    file.write_bytes("abc".encode("utf-16-le"))  # valid UTF-8, but no text
    assert "null byte at offset 1" in refusal(file)


def test_pickle_is_refused_and_never_loaded(tmp_path: Path) -> None:
    file = tmp_path / "data.pkl"
    marker = tmp_path / "executed"
    # Protocol 0 is plain ASCII: text to this reader, and nothing more than text.
    file.write_bytes(b"cos\nsystem\n(S'touch " + str(marker).encode() + b"'\ntR.")
    assert read_corpus(str(file)).text.startswith("cos\nsystem")
    assert not marker.exists()
    file.write_bytes(b"\x80\x04\x95")
    assert "byte 0x80 at offset 0" in refusal(file)


@pytest.mark.parametrize("text", ["", " \n\t\r\n "], ids=["empty", "white space"])
def test_nothing_to_train_on(tmp_path: Path, text: str) -> None:
    file = tmp_path / "a.txt"
    file.write_text(text)
    assert "no text but white space" in refusal(file)
    assert "no text but white space" in refusal(tmp_path)


def test_folder_without_text_names_the_suffixes(tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_text("abc")
    message = refusal(tmp_path)
    assert all(suffix in message for suffix in TEXT_SUFFIXES)


def test_pipe_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.txt")
    assert "not a regular file" in refusal(tmp_path / "pipe.txt")
    assert "not a regular file" in refusal(tmp_path)
