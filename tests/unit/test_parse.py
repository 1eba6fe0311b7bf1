"""Reading untrusted mappings: what is accepted, and the one line that says why something is not."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import pytest

from suite.layout import Recompute, RecomputeKind
from suite.parse import NON_FINITE, SpecError, convert, from_mapping, from_text, nearest, setting, to_mapping

pytestmark = pytest.mark.unit


class Colour(StrEnum):
    RED = "red"
    GREEN = "green"


@dataclass(frozen=True)
class Leaf:
    size: int
    weight: float = 1.0


@dataclass(frozen=True)
class Tree:
    name: str
    leaf: Leaf = setting(Leaf(1), "a leaf")
    colour: Colour = Colour.RED
    mode: Recompute = Recompute()
    limit: int | None = None
    leaves: tuple[Leaf, ...] = ()
    pair: tuple[str, int] = ("a", 1)
    by_rank: dict[int, str] = field(default_factory=dict)
    by_colour: dict[Colour, Leaf] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)


FULL = Tree(
    name="oak",
    leaf=Leaf(2, 0.5),
    colour=Colour.GREEN,
    mode=Recompute(RecomputeKind.EVERY, 3),
    limit=7,
    leaves=(Leaf(3), Leaf(4, -0.25)),
    pair=("b", 2),
    by_rank={0: "zero", 11: "eleven"},
    by_colour={Colour.RED: Leaf(5)},
    facts={"list": [1, None, {"deep": True}], "text": "x"},
)


def test_a_dataclass_survives_json() -> None:
    mapping = to_mapping(FULL)
    assert json.loads(json.dumps(mapping)) == mapping  # nothing in it that JSON would change
    assert from_mapping(Tree, mapping, "tree") == FULL


def test_the_json_form_is_plain() -> None:
    assert to_mapping(FULL) == {
        "name": "oak",
        "leaf": {"size": 2, "weight": 0.5},
        "colour": "green",
        "mode": "every-3",
        "limit": 7,
        "leaves": [{"size": 3, "weight": 1.0}, {"size": 4, "weight": -0.25}],
        "pair": ["b", 2],
        "by_rank": {"0": "zero", "11": "eleven"},
        "by_colour": {"red": {"size": 5, "weight": 1.0}},
        "facts": {"list": [1, None, {"deep": True}], "text": "x"},
    }


def test_left_out_keys_take_their_defaults() -> None:
    assert from_mapping(Tree, {"name": "elm"}, "tree") == Tree("elm")


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_numbers_that_json_cannot_write(value: float) -> None:
    text = to_mapping(Leaf(1, value))["weight"]
    assert text in NON_FINITE
    back = from_mapping(Leaf, {"size": 1, "weight": text}, "leaf").weight
    assert back == value or (math.isnan(back) and math.isnan(value))


@pytest.mark.parametrize(
    "mapping, message",
    [
        (["name"], "tree: expected an object with keys, got ['name']"),
        ({}, "tree.name: missing; it has no default"),
        ({"name": 3}, "tree.name: expected text, got 3"),
        ({"name": "x", "colours": 1}, "tree.colours: unknown key; did you mean colour, by_colour?"),
        ({"name": "x", "colour": "rad"}, "tree.colour: 'rad' is not known; did you mean red?"),
        ({"name": "x", "leaf": {"size": "2"}}, "tree.leaf.size: expected a whole number, got '2'"),
        ({"name": "x", "leaf": {"size": True}}, "tree.leaf.size: expected a whole number, got True"),
        ({"name": "x", "leaf": {"size": 2.0}}, "tree.leaf.size: expected a whole number, got 2.0"),
        ({"name": "x", "leaf": {"size": 2, "weight": "1.5"}}, "tree.leaf.weight: expected a number, got '1.5'"),
        ({"name": "x", "leaf": {"size": 2, "weight": True}}, "tree.leaf.weight: expected a number, got True"),
        ({"name": "x", "limit": "7"}, "tree.limit: expected a whole number, got '7'"),
        ({"name": "x", "leaves": {"size": 1}}, "tree.leaves: expected a list, got {'size': 1}"),
        ({"name": "x", "leaves": "ab"}, "tree.leaves: expected a list, got 'ab'"),
        ({"name": "x", "leaves": [{"size": 1}, {}]}, "tree.leaves[1].size: missing; it has no default"),
        ({"name": "x", "pair": ["a"]}, "tree.pair: expected 2 items, got 1: ['a']"),
        ({"name": "x", "pair": ["a", "b"]}, "tree.pair[1]: expected a whole number, got 'b'"),
        ({"name": "x", "by_rank": []}, "tree.by_rank: expected an object with keys, got []"),
        ({"name": "x", "by_rank": {"one": "a"}}, "tree.by_rank key: expected a whole number, got 'one'"),
        ({"name": "x", "by_rank": {"1": 2}}, "tree.by_rank.1: expected text, got 2"),
        (
            {"name": "x", "by_colour": {"blue": {"size": 1}}},
            "tree.by_colour key: 'blue' is not known; known: red, green",
        ),
        (
            {"name": "x", "mode": "some"},
            "tree.mode: 'some' is not known; accepted: none, selective, selective-op, full, every-<n> with n >= 1",
        ),
    ],
)
def test_a_refusal_names_the_field_and_the_value(mapping: Any, message: str) -> None:
    with pytest.raises(SpecError) as refused:
        from_mapping(Tree, mapping, "tree")
    assert str(refused.value) == message


def test_a_whole_number_is_a_number() -> None:
    weight = from_mapping(Leaf, {"size": 1, "weight": 3}, "leaf").weight
    assert weight == 3.0
    assert isinstance(weight, float)


def test_anything_is_any() -> None:
    value = {"a": [1, (2,)]}
    assert convert(value, Any, "x") is value


@pytest.mark.parametrize(
    "text, kind, value",
    [
        ("3", int, 3),
        ("3", float, 3.0),
        ("1e-3", float, 1e-3),
        ("True", bool, True),
        ("false", bool, False),
        ("3", int | None, 3),
        ("green", Colour, Colour.GREEN),
        ("every-2", Recompute, Recompute(RecomputeKind.EVERY, 2)),
        ("3", str, "3"),
    ],
)
def test_flags(text: str, kind: Any, value: Any) -> None:
    read = from_text(text, kind, "--flag")
    assert (read, type(read)) == (value, type(value))


@pytest.mark.parametrize("text, kind", [("3.5", int), ("yes", bool), ("blue", Colour), ("x", float)])
def test_flags_refused(text: str, kind: Any) -> None:
    with pytest.raises(SpecError, match=rf"^--flag: .*'{text}'"):
        from_text(text, kind, "--flag")


def test_hints_for_unknown_words() -> None:
    assert nearest("layer", ["layers", "heads"]) == "did you mean layers?"
    assert nearest("zzz", ["layers", "heads"]) == "known: layers, heads"


@pytest.mark.parametrize("value", ["maybe", 2.5, None])
def test_a_union_of_plain_types_is_refused_with_all_of_them(value: object) -> None:
    with pytest.raises(SpecError) as error:
        convert(value, bool | int, "here")
    assert str(error.value) == f"here: expected true or false or a whole number, got {value!r}"
