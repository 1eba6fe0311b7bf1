"""Settings: Megatron-LM's arguments by name, each read once, so that those nobody read can be listed."""

from __future__ import annotations

import ast
import math
import re
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from reports.intake.megatron.options import Option, Takes, by_flag, options
from reports.intake.shell_expand import unset
from reports.intake.shell_words import MARK
from suite.parse import SpecError, nearest, require, shown

#: a line of the list that Megatron-LM's logs begin with; a launcher may have put a rank before it
LOGGED = re.compile(r"^(?:\[?\w+\]?:\s*)?\s*([a-zA-Z_]\w*) \.{2,} ?(.*?)\s*$", flags=re.ASCII | re.MULTILINE)
#: torch's names of formats, which are options' own ones but for these
_FORMATS = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}
#: characters of a setting in a list
LONGEST = 200
_KINDS = {"int": "a whole number", "float": "a number"}


@dataclass(frozen=True)
class Given:
    """A setting as a file has it: how it is written there, and its values."""

    flag: str
    values: tuple[str, ...]

    @property
    def line(self) -> str:
        """As it stands in the file; variables that are not set by their names."""
        is_switch = self.flag.startswith("--") and self.values in (("True",), ("False",))
        text = self.flag if is_switch else " ".join((self.flag, *self.values))
        return textwrap.shorten(re.sub(f"{MARK}\\$?(.*?){MARK}", r"$\1", text), LONGEST, placeholder="...")


@dataclass
class Settings:
    """What a file says, by the names of Megatron-LM's parsed arguments."""

    given: dict[str, Given] = field(default_factory=dict)
    unknown: list[Given] = field(default_factory=list)
    """options that Megatron-LM has not"""
    assumed: list[str] = field(default_factory=list)
    unmodelled: list[str] = field(default_factory=list)
    taken: set[str] = field(default_factory=set)

    def text(self, name: str) -> str | None:
        """The setting's value as text, its default where the file has none, None where there is none. SpecError where
        it is a variable that the script does not set."""
        self.taken.add(name)
        if name not in self.given:
            return options()[name].default or None if name in options() else None
        given, option = self.given[name], options().get(name)
        value = " ".join(given.values)
        is_one = option is None or option.takes is not Takes.SOME
        require(not is_one or len(given.values) == 1, f"{given.flag}: takes one value, got {shown(value)}")
        variable = unset(value)
        if variable is not None:
            raise SpecError(
                f"{given.flag}: {variable} is not set in the file; set it there, or write the value in its place"
            )
        return value

    def number(self, name: str) -> float | None:
        """The setting as a number, whole where Megatron-LM takes no other; SpecError where it is none."""
        value = self.text(name)
        if value is None:
            return None
        kind = options()[name].kind if name in options() else "int"
        try:
            found = int(value) if kind == "int" else float(value)
        except ValueError:
            found = math.nan
        if not math.isfinite(found):
            flag = self.given[name].flag if name in self.given else name
            raise SpecError(f"{flag}: expected {_KINDS[kind]}, got {shown(value)}")
        return found

    def whole(self, name: str, default: int | None = None) -> int:
        """A whole number of at least 1; SpecError where it is missing and there is no default."""
        found = self.number(name)
        if found is None:
            require(default is not None, f"{_flag(name)}: missing; the case needs it")
            return int(default or 0)
        require(found >= 1 and found == int(found), f"{_flag(name)}: must be a whole number above zero, got {found:g}")
        return int(found)

    def share(self, name: str) -> float:
        """A number that has a default."""
        return float(self.number(name) or 0.0)

    def is_on(self, name: str) -> bool:
        """Is the switch on?"""
        return self.text(name) == "True"

    def word(self, name: str) -> str:
        """A setting of a few words; SpecError where it is none of them."""
        value = self.text(name) or ""
        choices = options()[name].choices
        require(
            not choices or value in choices or not value,
            f"{_flag(name)}: {shown(value)} is not known; {nearest(value, choices)}",
        )
        return value

    def says(self, name: str) -> bool:
        """Does the file give it?"""
        return name in self.given

    def leave(self, name: str, why: str) -> None:
        """List a setting as not modelled, with the reason."""
        self.taken.add(name)
        option = options().get(name)
        default = f"{_flag(name)} {option.default if option else ''} (Megatron-LM's default)"
        self.unmodelled.append(f"{self.given[name].line if name in self.given else default}: {why}")


def _flag(name: str) -> str:
    return options()[name].flags[0] if name in options() else name


def from_words(words: Sequence[str]) -> Settings:
    """The settings that a command's words give. SpecError for an option without its value, or a switch with one."""
    settings = Settings()
    place = 0
    while place < len(words):
        flag, equals, value = words[place].partition("=")
        place += 1
        if not flag.startswith("--"):
            continue
        end = next((at for at in range(place, len(words)) if words[at].startswith("--")), len(words))
        values = [value] if equals else list(words[place:end])
        option = by_flag().get(flag) or _abbreviated(flag, settings)
        if option is None:
            settings.unknown.append(Given(flag, tuple(values)))
        else:
            settings.given[option.name] = Given(flag, _checked(option, flag, values))
        place = end
    return settings


def _abbreviated(flag: str, settings: Settings) -> Option | None:
    """The one option that begins like this, as parsers before Megatron-LM's own refusal of abbreviations took it."""
    found = {option.name: option for name, option in by_flag().items() if name.startswith(flag) and len(flag) > 4}
    if len(found) != 1:
        return None
    option = next(iter(found.values()))
    settings.assumed.append(f"{flag}: taken as {option.flags[0]}; Megatron-LM takes no abbreviations any more")
    return option


def _checked(option: Option, flag: str, values: list[str]) -> tuple[str, ...]:
    """The option's values: of a switch, what it makes of the setting. Several words of one value are left to whoever
    reads it: a script that does not quote its variables has split them."""
    if option.takes in (Takes.ONE, Takes.SOME):
        require(bool(values), f"{flag}: no value follows it; give {_KINDS.get(option.kind, 'one')}")
        return tuple(values)
    require(not values, f"{flag}: is a switch and takes no value, got {shown(' '.join(values))}")
    is_off = option.takes is Takes.CLEAR or (option.takes is Takes.EITHER and flag.startswith("--no-"))
    return ("False" if is_off else "True",)


def from_log(text: str) -> Settings:
    """The settings of the list of arguments in a log: those that are not at their defaults."""
    settings = Settings()
    for name, value in LOGGED.findall(text):
        words = _logged_words(value)
        option = options().get(name)
        usual = tuple(option.default.split()) if option is not None else ("False",)
        if words and name not in settings.given and words != usual:
            settings.given[name] = Given(name, words)
    return settings


def _logged_words(value: str) -> tuple[str, ...]:
    """A logged value as words: the items of a list, the last part of an enumeration's or a type's name."""
    if value.startswith(("[", "(")):
        try:
            items: Iterable[object] = ast.literal_eval(value)
            return tuple(str(item) for item in items)
        except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
            return (value,)
    if value in ("None", ""):
        return ()
    word = re.sub(r"^(?:[A-Z]\w*|torch)\.", "", value)
    return (_FORMATS.get(word, word),)
