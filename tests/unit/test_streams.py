"""Standard output and standard error, whatever they are joined to."""

from __future__ import annotations

import io
import sys

import pytest

from reports.streams import MESSAGE_CHARACTERS, PIPED_COLUMNS, abandon_output, open_streams, output, tell

pytestmark = pytest.mark.unit


def test_a_message_is_one_plain_line(capsys: pytest.CaptureFixture[str]) -> None:
    tell("a\x1b[31m\nb\r\nc\u202ed")
    assert capsys.readouterr().err == "a\N{REPLACEMENT CHARACTER}[31m b c\N{REPLACEMENT CHARACTER}d\n"
    tell("x" * 10_000)
    assert len(capsys.readouterr().err) == MESSAGE_CHARACTERS + 1


def test_a_message_that_nobody_can_hear_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    class Deaf(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    monkeypatch.setattr(sys, "stderr", Deaf())
    tell("hello")


def test_a_letter_that_the_encoding_lacks_is_written_escaped(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    open_streams()
    print("Füße \udcff", flush=True)
    assert raw.getvalue() == b"F\\xfc\\xdfe \\udcff\n"


def test_a_closed_stream_swallows_what_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, None)
    open_streams()
    print("nowhere", flush=True)
    tell("nowhere")


def test_output_that_is_taken_is_not_abandoned(capfd: pytest.CaptureFixture[str]) -> None:
    print("before")
    abandon_output()
    print("after")
    assert capfd.readouterr().out == "before\nafter\n"


@pytest.mark.parametrize("columns, width", [(None, PIPED_COLUMNS), ("72", 72)])
def test_without_a_terminal_lines_are_long(
    columns: str | None, width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    if columns:
        monkeypatch.setenv("COLUMNS", columns)
    assert output().width == width
