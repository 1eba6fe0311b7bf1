"""A shell script's text as tokens: words, of pieces that are text or variables, and the operators between them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

#: operators, longest first; a newline ends a command as ; does
OPERATORS = ("&&", "||", ";;", ">>", "<<", "\n", ";", "&", "|", "(", ")", "<", ">")
#: around what stands for a variable that is not set, in a text that was put together already
MARK = "\0"
#: a line that goes on in the next
CONTINUED = "\\\n"
_NAME = re.compile(r"[A-Za-z_]\w*|\d|[@*#?$!-]", flags=re.ASCII)
_CLOSING = {"{": "}", "(": ")", "((": "))"}


class Kind(StrEnum):
    """What a piece of a word stands for."""

    TEXT = "text"
    VARIABLE = "variable"  # the name, or what stands in the braces
    ARITHMETIC = "arithmetic"  # what stands in $(( ))
    COMMAND = "command"  # what stands in $( ), which is never run


@dataclass(frozen=True)
class Piece:
    """A part of a word. What is not quoted is split at blanks once its variables are known."""

    kind: Kind
    text: str
    is_quoted: bool


@dataclass(frozen=True)
class Word:
    """A word as it is written; `is_joined`: a parenthesis follows without a blank, as in NAME=(."""

    pieces: tuple[Piece, ...]
    is_joined: bool = False

    @property
    def plain(self) -> str | None:
        """The text of a word without quotes and variables, else None."""
        is_plain = all(piece.kind is Kind.TEXT and not piece.is_quoted for piece in self.pieces)
        return "".join(piece.text for piece in self.pieces) if is_plain else None


Token = Word | str


def tokens(text: str) -> Iterator[Token]:
    """Words and operators in order. Comments are left out; a quote or a bracket that nothing closes ends with the
    text."""
    place, text = 0, text.replace("\r\n", "\n")
    while place < len(text):
        operator = next((item for item in OPERATORS if text.startswith(item, place)), None)
        if operator is not None:
            yield operator
            place += len(operator)
        elif text.startswith(CONTINUED, place):
            place += len(CONTINUED)
        elif text[place].isspace():
            place += 1
        elif text[place] == "#":
            place = _end(text, "\n", place)
        else:
            pieces, place = _word(text, place)
            yield Word(pieces, text.startswith("(", place))


def pieces_of(text: str) -> tuple[Piece, ...]:
    """What stands in double quotes, or after := and :- in braces, as pieces."""
    return tuple(_quoted(text, False))


def _word(text: str, place: int) -> tuple[tuple[Piece, ...], int]:
    """The word that begins at `place`, and where it ends."""
    pieces: list[Piece] = []
    while place < len(text) and not text[place].isspace() and text[place] not in ";&|()<>":
        letter = text[place]
        if text.startswith(CONTINUED, place):
            place += len(CONTINUED)
        elif letter == "\\":
            pieces.append(Piece(Kind.TEXT, text[place + 1 : place + 2], True))
            place += 2
        elif letter == "'":
            end = _end(text, "'", place + 1)
            pieces.append(Piece(Kind.TEXT, text[place + 1 : end], True))
            place = end + 1
        elif letter == '"':
            end = _closing_quote(text, place + 1)
            pieces += _quoted(text[place + 1 : end], True) or [Piece(Kind.TEXT, "", True)]
            place = end + 1
        elif letter == MARK:
            end = _end(text, MARK, place + 1) + 1
            pieces.append(Piece(Kind.TEXT, text[place:end], True))
            place = end
        elif letter in "$`":
            piece, place = _expansion(text, place, False)
            pieces.append(piece)
        else:
            pieces.append(Piece(Kind.TEXT, letter, False))
            place += 1
    return _joined(pieces), place


def _quoted(text: str, is_quoted: bool) -> list[Piece]:
    """Text in double quotes: variables count, blanks do not split."""
    pieces: list[Piece] = []
    place = 0
    while place < len(text):
        if text[place] in "$`":
            piece, place = _expansion(text, place, is_quoted)
            pieces.append(piece)
        elif text[place] == '"' and not is_quoted:  # quotes of a default in braces
            place += 1
        elif text.startswith(CONTINUED, place):
            place += len(CONTINUED)
        else:
            place += text[place] == "\\" and text[place + 1 : place + 2] in ("$", "`", '"', "\\")
            pieces.append(Piece(Kind.TEXT, text[place : place + 1], is_quoted))
            place += 1
    return list(_joined(pieces))


def _expansion(text: str, place: int, is_quoted: bool) -> tuple[Piece, int]:
    """What begins with $ or a backquote at `place`, and where it ends."""
    if text[place] == "`":
        end = _end(text, "`", place + 1)
        return Piece(Kind.COMMAND, text[place + 1 : end], is_quoted), end + 1
    after = place + 1
    for opening, kind in (("((", Kind.ARITHMETIC), ("(", Kind.COMMAND), ("{", Kind.VARIABLE)):
        if text.startswith(opening, after):
            end = _balanced(text, after + len(opening), opening[0], _CLOSING[opening])
            return Piece(kind, text[after + len(opening) : end], is_quoted), end + len(opening)
    name = _NAME.match(text, after)
    if name is None:
        return Piece(Kind.TEXT, "$", is_quoted), after
    return Piece(Kind.VARIABLE, name[0], is_quoted), name.end()


def _balanced(text: str, place: int, opening: str, closing: str) -> int:
    """Where the bracket closes that was opened before `place`."""
    depth = 0
    while place < len(text):
        if depth == 0 and text.startswith(closing, place):
            return place
        depth += (text[place] == opening) - (text[place] == closing[0])
        place += 1
    return place


def _closing_quote(text: str, place: int) -> int:
    """Where a double quote closes: not inside $( ) or ${ }, whose quotes are their own."""
    while place < len(text) and text[place] != '"':
        if text[place] == "\\":
            place += 2
        elif text[place] == "$" and text[place + 1 : place + 2] in ("(", "{"):
            place = _expansion(text, place, True)[1]
        else:
            place += 1
    return min(place, len(text))


def _end(text: str, mark: str, place: int) -> int:
    found = text.find(mark, place)
    return len(text) if found < 0 else found


def _joined(pieces: list[Piece]) -> tuple[Piece, ...]:
    """Neighbouring letters as one piece."""
    joined: list[Piece] = []
    for piece in pieces:
        last = joined[-1] if joined else None
        if (
            last is not None
            and piece.kind is Kind.TEXT
            and last.kind is Kind.TEXT
            and last.is_quoted == piece.is_quoted
        ):
            joined[-1] = Piece(Kind.TEXT, last.text + piece.text, piece.is_quoted)
        else:
            joined.append(piece)
    return tuple(joined)
