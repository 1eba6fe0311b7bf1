"""Pickles of plain data read without pickle: nothing in the file is called, imported or built but built-in containers.

torch.cuda.memory._dump_snapshot pickles a dictionary of dictionaries, lists, text and numbers, so a reader of those
opcodes is all that it takes (torch's own page for such files, MemoryViz.js, has one too). The opcodes are split by the
standard library's `pickletools.genops`, which decodes and never executes. Every opcode that could name, call or build
an object (GLOBAL, REDUCE, BUILD, PERSID, ...) is refused by its name. Protocols 2 to 5.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable
from functools import partial
from typing import Any

from suite.parse import SpecError, require, shown

#: opcodes whose decoded argument is the value
_VALUES = frozenset(
    {
        "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "INT", "FLOAT", "BINFLOAT", "UNICODE",
        "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8",
    }
)  # fmt: skip
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_EMPTY: dict[str, type] = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_MARK = object()


class _Machine:
    """The stack and the memo of a pickle that is being read."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.steps: dict[str, Callable[[Any], None]] = {
            **dict.fromkeys(_VALUES, self.stack.append),
            **{name: partial(self._constant, value) for name, value in _CONSTANTS.items()},
            **{name: partial(self._empty, kind) for name, kind in _EMPTY.items()},
            **{name: partial(self._tuple, count) for name, count in _TUPLES.items()},
            **dict.fromkeys(("PROTO", "FRAME", "STOP"), lambda _: None),
            **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT"), self._put),
            **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), lambda slot: self.stack.append(self.memo[slot])),
            "MEMOIZE": lambda _: self._put(len(self.memo)),
            "MARK": lambda _: self.stack.append(_MARK),
            "POP": lambda _: self._pop(),
            "POP_MARK": lambda _: self._marked().clear(),
            "DUP": lambda _: self.stack.append(self.stack[-1]),
            "TUPLE": lambda _: self.stack.append(tuple(self._marked())),
            "LIST": lambda _: self.stack.append(self._marked()),
            "DICT": lambda _: self.stack.append(_pairs(self._marked())),
            "APPEND": lambda _: self._extend([self._pop()]),
            "APPENDS": lambda _: self._extend(self._marked()),
            "SETITEM": lambda _: self._update([self._pop(), self._pop()][::-1]),
            "SETITEMS": lambda _: self._update(self._marked()),
        }

    def _pop(self) -> Any:
        value = self.stack.pop()
        require(value is not _MARK, "an opcode takes more than there is")
        return value

    def _put(self, slot: int) -> None:
        self.memo[slot] = self.stack[-1]

    def _marked(self) -> list[Any]:
        """What stands above the last mark, which goes with it."""
        place = len(self.stack) - 1
        while self.stack[place] is not _MARK:
            place -= 1
        values = self.stack[place + 1 :]
        del self.stack[place:]
        return values

    def _constant(self, value: Any, _: Any) -> None:
        self.stack.append(value)

    def _empty(self, kind: type, _: Any) -> None:
        self.stack.append(kind())

    def _tuple(self, count: int, _: Any) -> None:
        self.stack.append(tuple([self._pop() for _ in range(count)][::-1]))

    def _extend(self, values: list[Any]) -> None:
        target = self.stack[-1]
        require(isinstance(target, list), "APPENDS to what is no list")
        target.extend(values)

    def _update(self, values: list[Any]) -> None:
        target = self.stack[-1]
        require(isinstance(target, dict), "SETITEMS of what is no dictionary")
        target.update(_pairs(values))


def _pairs(values: list[Any]) -> dict[Any, Any]:
    require(len(values) % 2 == 0, "a key without a value")
    return dict(zip(values[::2], values[1::2], strict=True))


def read_data_pickle(data: bytes, where: str) -> Any:
    """The plain data that a pickle holds. SpecError, in one line, for one that is torn, or that asks for anything that
    is no plain data: nothing of it has been executed then, nor ever is."""
    machine = _Machine()
    try:
        for opcode, argument, place in pickletools.genops(data):
            step = machine.steps.get(opcode.name)
            if step is None:
                raise SpecError(
                    f"{where}: pickle opcode {opcode.name} ({shown(argument)}, byte {place}) is no plain data and is"
                    " never executed here; write the snapshot as JSON: json.dump(torch.cuda.memory._snapshot(), file)"
                )
            step(argument)
        value = machine.stack[-1]
    except SpecError as refusal:
        raise refusal if str(refusal).startswith(where) else _torn(where, refusal) from None
    except (ValueError, IndexError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise _torn(where, error) from None
    require(value is not _MARK, f"{where}: not a whole pickle; write the snapshot again")
    return value


def _torn(where: str, error: Exception) -> SpecError:
    first = (str(error).splitlines() or [""])[0]
    return SpecError(f"{where}: not a whole pickle ({shown(first)}); write the snapshot again, or as JSON")
