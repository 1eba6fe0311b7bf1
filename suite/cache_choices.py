"""What `kv --compare` names: forms of attention and of the cache, joined by +, as changes of a served Case. Torch-free.

Grammar: choice {"," choice}; a choice is word {"+" word}; a word is one of FORMS, with =N or /N where it takes one.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace

from suite.cache import CacheDtype
from suite.case import Case
from suite.models.attention_choices import GROUPS, with_kv_heads, with_latent
from suite.models.decoder import DecoderSpec
from suite.parse import LARGEST_INTEGER, SpecError, nearest, require, shown

FLAG = "--compare"
#: word -> what it does, for the flag's help and the refusals
FORMS = {
    "mha": "a key-value head for every head",
    "gqa": f"{GROUPS} key-value heads, or gqa=N",
    "mqa": "one key-value head",
    "mla": "a latent in DeepSeek-V2's proportions",
    "window": "window=N: the newest N tokens",
    "sinks": "sinks=N+M: the first N beside the newest M",
    "page": "page=N: pages of N tokens",
    "int8": "8-bit codes, a scale a head or int8/N elements",
    "int4": "4-bit codes, the same",
    "fp8": "e4m3",
    "bf16": "16 bits",
    "fp16": "16 bits",
    "fp32": "32 bits",
}
ATTENTION, KEPT, STORED, PAGED = "attention", "what is kept", "what is stored", "pages"
_KIND = {"mha": ATTENTION, "gqa": ATTENTION, "mqa": ATTENTION, "mla": ATTENTION, "window": KEPT, "sinks": KEPT}
_KIND |= {"page": PAGED}
_WORD = re.compile(r"(?P<name>[a-z]+(?:\d+)?)(?:(?P<mark>[=/])(?P<number>.*))?", flags=re.ASCII | re.DOTALL)
_BITS = re.compile(r"(int|fp|bf)(\d+)", flags=re.ASCII)

Change = Callable[[Case], Case]


@dataclass(frozen=True)
class Choice:
    """What one choice is called, and its changes in the order that they were named."""

    name: str
    changes: tuple[Change, ...]

    def of(self, case: Case) -> Case:
        """The case with this choice. SpecError where the model, the layout or the cache does not take it."""
        try:
            for change in self.changes:
                case = change(case)
        except SpecError as error:
            raise SpecError(f"{FLAG}: {self.name}: {error}") from None
        return case


def parse_choices(text: str) -> tuple[Choice, ...]:
    """The choices that a flag's text names. SpecError for a word that is not known, a number that is none, and a
    choice named twice."""
    choices: list[Choice] = []
    for name in text.split(","):
        require(bool(name), f"{FLAG}: {shown(text)} has an empty choice; {nearest('', FORMS)}")
        require(name not in [choice.name for choice in choices], f"{FLAG}: {shown(name)} is named twice")
        choices.append(_choice(name))
    return tuple(choices)


def _choice(name: str) -> Choice:
    changes: list[Change] = []
    said: dict[str, str] = {}
    for word in _words(name):
        found = _WORD.fullmatch(word)
        form = found["name"] if found else word
        if found is None or form not in FORMS:
            raise SpecError(f"{FLAG}: {_unknown(form)}")
        kind = _KIND.get(form, STORED)
        require(kind not in said, f"{FLAG}: {name}: {said.get(kind)} and {word} both say {kind}; leave one out")
        said[kind] = word
        changes.append(_change(word, form, found["mark"] or "", found["number"]))
    require(
        not (KEPT in said and PAGED in said),
        f"{FLAG}: {name}: pages are freed with their sequence, and {said.get(KEPT)} forgets tokens; leave one out",
    )
    return Choice(name, tuple(changes))


def _words(name: str) -> list[str]:
    """The words between the plus signs; the one after sinks=N is its window."""
    words: list[str] = []
    for part in name.split("+"):
        if words and words[-1].startswith("sinks=") and "+" not in words[-1] and part.isdecimal():
            words[-1] += f"+{part}"
        else:
            words.append(part)
    return words


def _unknown(form: str) -> str:
    """Why a word is none: bits that do not exist are said apart."""
    if bits := _BITS.fullmatch(form):
        have = ", ".join(dtype.value for dtype in CacheDtype if dtype is not CacheDtype.AUTO)
        return f"{shown(form)}: no cache has elements of {bits[2]} bits in that form; take {have}"
    return f"{shown(form)} is not known; {nearest(form, FORMS)}"


def _change(word: str, form: str, mark: str, number: str | None) -> Change:
    if form == "sinks":
        first, plus, newest = (number or "").partition("+")
        require(mark == "=" and bool(plus), f"{FLAG}: {shown(word)}: write sinks=N+M, the first N and the newest M")
        return _cache(sinks=_number(word, first), window=_number(word, newest), page_tokens=None)
    if form in ("window", "page"):
        require(mark == "=", f"{FLAG}: {shown(word)}: write {form}=N")
        size = _number(word, number)
        return _cache(window=size, sinks=None, page_tokens=None) if form == "window" else _cache(page_tokens=size)
    if form == "gqa":
        require(mark in ("", "="), f"{FLAG}: {shown(word)}: write gqa or gqa=N")
        kv_heads = GROUPS if not mark else _number(word, number)
        return _model(lambda spec: with_kv_heads(spec, kv_heads))
    if form in ("int8", "int4"):
        require(mark in ("", "/"), f"{FLAG}: {shown(word)}: write {form} or {form}/N, elements that share a scale")
        group = 0 if not mark else _number(word, number)
        return _cache(cache_dtype=CacheDtype(form), quant_group=group)
    require(not mark, f"{FLAG}: {shown(word)}: {form} takes no number")
    if form in ("mha", "mqa", "mla"):
        return _model(_FORMS_OF_ATTENTION[form])
    return _cache(cache_dtype=CacheDtype(form), quant_group=0)


_FORMS_OF_ATTENTION: dict[str, Callable[[DecoderSpec], DecoderSpec]] = {
    "mha": lambda spec: with_kv_heads(spec, spec.heads),
    "mqa": lambda spec: with_kv_heads(spec, 1),
    "mla": with_latent,
}


def _number(word: str, text: str | None) -> int:
    """A whole number of at least one."""
    text = text or ""
    value = int(text) if text.isdecimal() and text.isascii() and len(text) < 17 else 0
    require(0 < value <= LARGEST_INTEGER, f"{FLAG}: {shown(word)}: {shown(text)} is not a whole number above zero")
    return value


def _cache(**settings: object) -> Change:
    def change(case: Case) -> Case:
        return replace(case, cache=replace(case.cache, **settings))  # type: ignore[arg-type]

    return change


def _model(transform: Callable[[DecoderSpec], DecoderSpec]) -> Change:
    def change(case: Case) -> Case:
        return replace(case, model=transform(case.decoder))

    return change
