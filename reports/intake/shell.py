"""What a shell script would start: its commands with variables and arrays put in. Nothing is run.

Followed: assignments, arrays, `+=`, ${NAME:-default}, $(( )), if with [ ] and [[ ]], && and ||. Not followed, and told:
loops, case, functions, what other files set. A variable that the script does not set stays a mark in its word.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable
from dataclasses import dataclass, field

from reports.intake.shell_expand import expand, unset
from reports.intake.shell_words import MARK, Kind, Piece, Token, Word, tokens

SEPARATORS = ("\n", ";", "&", "|", "&&", "||", ";;", ")")
_ASSIGNED = re.compile(r"([A-Za-z_]\w*)(\+?)=", flags=re.ASCII)
_COMPARED: dict[str, Callable[[int, int], bool]] = {
    "-eq": operator.eq, "-ne": operator.ne, "-gt": operator.gt, "-ge": operator.ge, "-lt": operator.lt,
    "-le": operator.le,
}  # fmt: skip


@dataclass
class Script:
    """A script as far as it was followed."""

    variables: dict[str, list[str]] = field(default_factory=dict)
    """words of each: one of a plain variable"""
    commands: list[list[str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """what was not followed, a line each"""

    def note(self, line: str) -> None:
        """Tell it once."""
        if line not in self.notes:
            self.notes.append(line)


def follow(text: str) -> Script:
    """The script's commands, variables, and what was not followed."""
    reader = _Reader(list(tokens(text.replace(MARK, ""))), Script())
    while reader.place < len(reader.tokens):
        reader.block((), True)
        reader.place += 1  # a closing word or bracket that nothing opened
    return reader.script


class _Reader:
    """A cursor over the tokens of a script, and what they have set so far."""

    def __init__(self, read: list[Token], script: Script) -> None:
        self.tokens, self.script, self.place = read, script, 0

    def peek(self) -> Token | None:
        return self.tokens[self.place] if self.place < len(self.tokens) else None

    def plain(self) -> str | None:
        """The next token as it stands, where it is an operator or a word without quotes and variables."""
        token = self.peek()
        return token.plain if isinstance(token, Word) else token

    def block(self, until: tuple[str, ...], is_live: bool) -> None:
        """Statements up to one of the words `until`, which stays."""
        while self.place < len(self.tokens):
            word = self.plain()
            if word in until or (word == ")" and not until):
                return
            if word in SEPARATORS:
                self.place += 1
            else:
                self.chain(is_live)

    def chain(self, is_live: bool) -> bool:
        """Commands joined by && and ||: a test decides what follows it, any other command succeeds."""
        result = self.command(is_live)
        while self.plain() in ("&&", "||"):
            goes_on = result == (self.plain() == "&&")
            self.place += 1
            while self.plain() == "\n":
                self.place += 1
            after = self.command(is_live and goes_on)
            result = after if goes_on else result
        return result

    def command(self, is_live: bool) -> bool:
        """One command, whole; False where it is a test that fails."""
        start, word = self.place, self.plain()
        if word == "if":
            self.conditional(is_live)
        elif word in ("for", "while", "until", "case", "function"):
            self.skip({"case": "esac", "function": "}"}.get(word, "done"))
            self.script.note(f"{word}: not followed")
        elif word in ("{", "("):
            self.place += 1
            self.block(("}" if word == "{" else ")",), is_live)
            self.place += 1
        elif word == "!":
            self.place += 1
            self.command(is_live)
            return False
        elif word in ("[", "[[", "test"):
            return self.test()
        else:
            self.simple(is_live)
        self.place = max(self.place, start + 1)
        return True

    def skip(self, closing: str) -> None:
        """Past the word that closes what begins here."""
        opening, depth = self.plain(), 0
        opened = ("for", "while", "until") if closing == "done" else ("{",) if closing == "}" else (opening,)
        while self.place < len(self.tokens):
            word = self.plain()
            depth += (word in opened) - (word == closing)
            self.place += 1
            if word == closing and depth == 0:
                return

    def conditional(self, is_live: bool) -> None:
        """if, elif, else: the first branch whose tests hold."""
        is_open = is_live
        while self.plain() in ("if", "elif"):
            self.place += 1
            holds = self.chain(is_live)
            self.block(("then",), False)
            self.place += 1
            self.block(("elif", "else", "fi"), is_open and holds)
            is_open = is_open and not holds
        if self.plain() == "else":
            self.place += 1
            self.block(("fi",), is_open)
        self.place += 1

    def test(self) -> bool:
        """[ ], [[ ]]: a variable that is not set is empty, a file is not there."""
        opening = self.plain()
        closing = {"[": "]", "[[": "]]"}.get(str(opening))
        self.place += 1
        words: list[str] = []
        while self.place < len(self.tokens) and (closing is not None or self.plain() not in SEPARATORS):
            token = self.tokens[self.place]
            self.place += 1
            if isinstance(token, Word) and token.plain == closing:
                break
            words += [token] if isinstance(token, str) else [self.bare(token)]
        return _holds(words)

    def bare(self, word: Word) -> str:
        """A word of a test."""
        text = " ".join(expand(word, self.script.variables))
        if name := unset(text):
            self.script.note(f"a test of {name}, which the script does not set: taken as not set")
        return re.sub(f"{MARK}.*?{MARK}", "", text, flags=re.DOTALL)

    def simple(self, is_live: bool) -> None:
        """Assignments, then a command's words up to what ends it."""
        words: list[str] = []
        while self.place < len(self.tokens) and self.plain() not in SEPARATORS:
            token = self.tokens[self.place]
            self.place += 1
            if isinstance(token, str):
                self.redirection()
            elif not words or words[0] in ("export", "declare", "local", "readonly"):
                if token.is_joined and token.plain is not None and not _ASSIGNED.fullmatch(token.plain):
                    self.skip("}")  # name() { ... }
                    self.script.note("function: not followed")
                    return
                if not self.assignment(token, is_live):
                    words += expand(token, self.script.variables)
            else:
                words += expand(token, self.script.variables)
        if not is_live or not words:
            return
        if words[0] in ("source", "."):
            self.script.note(f"{' '.join(words[:2]).replace(MARK, '$')}: not read")
        self.script.commands.append(words)

    def redirection(self) -> None:
        """What follows < or >: a file, or & and a number."""
        if self.plain() == "&":
            self.place += 1
        if isinstance(self.peek(), Word):
            self.place += 1

    def assignment(self, word: Word, is_live: bool) -> bool:
        """NAME=value, NAME+=value or NAME=( ... ); False where the word is none."""
        first = word.pieces[0] if word.pieces else None
        found = _ASSIGNED.match(first.text) if first is not None and first.kind is Kind.TEXT else None
        if first is None or found is None or first.is_quoted:
            return False
        name, is_added = found[1], bool(found[2])
        if word.is_joined and first.text == found[0]:
            values = self.array()
        else:
            rest = Word((Piece(Kind.TEXT, first.text[found.end() :], True), *word.pieces[1:]))
            values = [" ".join(expand(rest, self.script.variables))]
            if is_added:
                values = ["".join([*self.script.variables.get(name, []), *values])]
                is_added = False
        if is_live:
            self.script.variables[name] = (self.script.variables.get(name, []) if is_added else []) + values
        return True

    def array(self) -> list[str]:
        values: list[str] = []
        self.place += 1
        while self.place < len(self.tokens) and self.plain() != ")":
            token = self.tokens[self.place]
            values += expand(token, self.script.variables) if isinstance(token, Word) else []
            self.place += 1
        self.place += 1
        return values


def _holds(words: list[str]) -> bool:
    """Does a test hold? || binds less than &&."""
    for joiner, combine in (("||", any), ("-o", any), ("&&", all), ("-a", all)):
        if joiner in words:
            place = words.index(joiner)
            return combine([_holds(words[:place]), _holds(words[place + 1 :])])
    if words[:1] == ["!"]:
        is_file = len(words) > 2 and words[1] in ("-f", "-d", "-e")
        return not is_file and not _holds(words[1:])
    if len(words) == 2:
        return words[0] == ("-z" if words[1] == "" else "-n")
    if len(words) == 3 and words[1] in ("=", "=="):
        return words[0] == words[2]
    if len(words) == 3 and words[1] == "!=":
        return words[0] != words[2]
    if len(words) == 3 and words[1] in _COMPARED:
        try:
            return _COMPARED[words[1]](int(words[0]), int(words[2]))
        except ValueError:
            return False
    return len(words) == 1 and words[0] != ""
