"""A shell word's variables put in: the words that it becomes. What is not set stays a mark."""

from __future__ import annotations

import ast
import operator
import re
import textwrap
from collections.abc import Callable, Mapping

from reports.intake.shell_words import MARK, Kind, Piece, Word, pieces_of
from suite.parse import SHOWN_CHARACTERS, require, shown

#: characters that a word may grow to
LONGEST = 2**20
_BRACES = re.compile(r"([A-Za-z_]\w*|[0-9])(\[[@*]\])?(?:(:?[-=?])(.*))?", flags=re.ASCII | re.DOTALL)
_OPERATORS: dict[type, Callable[[int, int], int]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.floordiv,
    ast.FloorDiv: operator.floordiv, ast.Mod: operator.mod,
}  # fmt: skip


def unset(word: str) -> str | None:
    """The first variable of a word that the script does not set."""
    parts = word.split(MARK)
    return parts[1] if len(parts) > 1 else None


def expand(word: Word, variables: Mapping[str, list[str]]) -> list[str]:
    """The words that a word becomes."""
    fields: list[str] = [""]
    is_there = False
    for piece in word.pieces:
        values = _values(piece, variables)
        if not piece.is_quoted and piece.kind is not Kind.TEXT:
            values = [part for value in values for part in ([value] if MARK in value else value.split())]
        is_there = is_there or bool(values)
        if values:
            fields[-1] += values[0]
            fields += values[1:]
    require(sum(map(len, fields)) <= LONGEST, f"a word that begins {shown(fields[0][:40])} is too long")
    return fields if is_there else []


def _values(piece: Piece, variables: Mapping[str, list[str]]) -> list[str]:
    if piece.kind is Kind.TEXT:
        return [piece.text]
    if piece.kind is Kind.COMMAND:
        return [_mark(f"$({piece.text.strip()})")]
    if piece.kind is Kind.ARITHMETIC:
        number = _arithmetic(piece.text, variables)
        return [_mark(f"$(({piece.text.strip()}))") if number is None else str(number)]
    found = _BRACES.fullmatch(piece.text)
    if found is None:
        return [_mark(piece.text)]
    name, every, how, default = found.groups()
    if name in variables and (variables[name] != [""] or not (how or "").startswith(":")):
        return [" ".join(variables[name])] if every == "[*]" and piece.is_quoted else variables[name]
    if how is not None and not how.endswith("?"):
        return expand(Word(pieces_of(default)), variables) or [""]
    return [_mark(name)]


def _mark(name: str) -> str:
    """In the place of what the script does not set; on one line."""
    return f"{MARK}{textwrap.shorten(name, SHOWN_CHARACTERS, placeholder='...')}{MARK}"


def _arithmetic(text: str, variables: Mapping[str, list[str]]) -> int | None:
    """The whole number of an expression of + - * / %, or None."""
    plain = re.sub(r"\$\{(\w+)\}|\$(\w+)", lambda match: match[1] or match[2], text.strip())

    def value(node: ast.AST) -> int:
        if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
            return _OPERATORS[type(node.op)](value(node.left), value(node.right))
        if isinstance(node, ast.Name):
            return int(variables[node.id][0])
        if isinstance(node, ast.Constant) and type(node.value) is int:
            return node.value
        raise ValueError(node)

    try:
        return value(ast.parse(plain, mode="eval").body)
    except (SyntaxError, ValueError, KeyError, IndexError, ZeroDivisionError, RecursionError, MemoryError):
        return None
