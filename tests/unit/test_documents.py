"""Cases handed in as JSON: one or several, from a file or standard input, refused in one line at every level."""

from __future__ import annotations

import argparse
import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from suite.case import Case
from suite.documents import read_json
from suite.flags import OneLineParser, add_case_flags, case_of, cases_of
from suite.parse import SpecError

pytestmark = pytest.mark.unit

TINY: dict[str, Any] = {"model": "gpt-1m", "workload": {"seq_len": 64}}


def parsed(path: Path | str, *words: str) -> argparse.Namespace:
    parser = OneLineParser(prog="estimate")
    add_case_flags(parser)
    options, _ = parser.parse_known_args(["--case", str(path), *words])
    return options


def refused(content: bytes | str, path: Path) -> str:
    """What is said of a file with that content."""
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(SpecError) as error:
        case_of(parsed(path))
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 400
    return str(error.value).replace(repr(str(path)), "FILE")


def through_stdin(monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content), encoding="ascii"))


def test_a_dash_reads_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    through_stdin(monkeypatch, json.dumps({**TINY, "recipe": {"data": "Füße.txt"}}, ensure_ascii=False).encode())
    case = case_of(parsed("-", "--steps", "3"))
    assert (case.model.name, case.workload.seq_len, case.recipe.steps) == ("gpt-1m", 64, 3)
    assert case.recipe.data == "Füße.txt"  # UTF-8, whatever the locale


@pytest.mark.parametrize("content", [b"\xff\xfe{}", b""])
def test_standard_input_that_holds_no_json(monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    through_stdin(monkeypatch, content)
    with pytest.raises(SpecError, match=r"^--case: '-' is (not UTF-8 text|empty; expected JSON)"):
        case_of(parsed("-"))


def test_standard_input_that_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(SpecError, match=r"^--case: '-' cannot be read \(standard input is closed\)"):
        case_of(parsed("-"))


def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path: Path) -> None:
    path = tmp_path / "case.json"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(TINY).encode())
    assert case_of(parsed(path)).workload.seq_len == 64


def test_a_case_written_by_one_verb_is_read_by_another(tmp_path: Path) -> None:
    path = tmp_path / "case.json"
    path.write_text(json.dumps(TINY))
    case = case_of(parsed(path, "--fsdp", "2", "--clip-norm", "inf"))
    path.write_text(json.dumps(case.to_mapping(), allow_nan=False))
    assert case_of(parsed(path)) == case


def test_a_list_of_cases_is_a_suite_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "cases.json"
    path.write_text(json.dumps([TINY, {"model": "llama-1m"}]))
    first, second = cases_of(parsed(path, "--steps", "5"))
    assert (first.model.name, second.model.name) == ("gpt-1m", "llama-1m")
    assert (first.recipe.steps, second.recipe.steps) == (5, 5)
    assert first.workload.seq_len == 64  # a change to one leaves the other as it is
    assert second.workload.seq_len == Case(second.model).workload.seq_len
    with pytest.raises(SpecError, match="holds 2 cases; this verb takes one"):
        case_of(parsed(path))
    path.write_text(json.dumps([TINY, {"model": "llama-1m", "layout": {"dp": 0}}]))
    with pytest.raises(SpecError, match=r"^case 2: layout\.dp: must be at least 1, got 0$"):
        cases_of(parsed(path))


@pytest.mark.parametrize(
    "content, message",
    [
        ("", "--case: FILE is empty; expected JSON"),
        (" \n", "--case: FILE is empty; expected JSON"),
        (b"\xff{}", "--case: FILE is not UTF-8 text (byte 0); give a JSON file"),
        ("{", "--case: FILE is not JSON (Expecting property name"),
        ('{"model": "gpt2",}', "--case: FILE is not JSON ("),
        ("[" * 100_000, "--case: FILE is nested too deeply to be read"),
        ("9" * 5000, "--case: FILE is not JSON (Exceeds the limit"),
        ("[]", "--case: FILE holds no case"),
        ('"gpt2"', "--case: expected a Case (an object with keys), got 'gpt2'"),
        ("[[]]", "--case: expected a Case (an object with keys), got []"),
        ("null", "--case: expected a Case (an object with keys), got None"),
        ("{}", "case.model: missing; give a preset's name or an object"),
        ('{"model": "gpt2", "model": "gpt-1m"}', "--case: FILE: key 'model' stands there twice; give it once"),
        ('{"model": "gpt2", "layuot": {}}', "case.layuot: unknown key; did you mean layout?"),
        ('{"model": 5}', "model: expected a preset's name or an object with keys, got 5"),
        ('{"model": {"family": "encoder"}}', "model.family: 'encoder' is not known; did you mean decoder?"),
        ('{"model": {"layers": "2"}}', "model.layers: expected a whole number, got '2'"),
        ('{"model": {"layer": 2}}', "model.layer: unknown key; did you mean layers?"),
        ('{"model": "gpt2", "layout": null}', "layout: expected an object with keys, got None"),
        ('{"model": "gpt2", "layout": [1]}', "layout: expected an object with keys, got [1]"),
        ('{"model": "gpt2", "layout": {"dp": 2.0}}', "layout.dp: expected a whole number, got 2.0"),
        ('{"model": "gpt2", "layout": {"dp": true}}', "layout.dp: expected a whole number, got True"),
        ('{"model": "gpt2", "layout": {"ddp": 2}}', "layout.ddp: unknown key; did you mean dp"),
        ('{"model": "gpt2", "layout": {"recompute": 2}}', "layout.recompute: expected text, got 2"),
        ('{"model": "gpt2", "workload": {"precision": null}}', "workload.precision: None is not known; known: fp32"),
        ('{"model": "gpt2", "workload": {"seq_len": NaN}}', "workload.seq_len: expected a whole number, got nan"),
        ('{"model": "gpt2", "workload": {"seq_len": 1e3}}', "workload.seq_len: expected a whole number, got 1000.0"),
        ('{"model": "gpt2", "cluster": {"device": 5}}', "cluster.device: expected text, got 5"),
        ('{"model": "gpt2", "recipe": {"learning_rate": NaN}}', "recipe.learning_rate: must be finite and not neg"),
        ('{"model": "gpt2", "recipe": {"learning_rate": "1e-3"}}', "recipe.learning_rate: expected a number, got '1e"),
        ('{"model": "gpt2", "recipe": {"weight_decay": Infinity}}', "recipe.weight_decay: must be finite and not ne"),
        ('{"model": "gpt2", "recipe": {"data": ["a"]}}', "recipe.data: expected text, got ['a']"),
        (
            json.dumps({"model": "gpt2", "workload": {"micro_batch": 10**400}}),
            f"workload.micro_batch: 1{'0' * 76}... is beyond 9007199254740991, the largest whole number taken",
        ),
        (json.dumps({"model": "gpt2", "layout": {"x" * 9000: 1}})[:80], "--case: FILE is not JSON (Unterminated"),
        (json.dumps({"model": "gpt2", "layout": "x" * 9000}), f"layout: expected an object with keys, got '{'x' * 76}"),
    ],
)
def test_what_is_wrong_with_a_case_is_said_in_one_line(
    content: bytes | str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # a short name: long ones are cut in the middle
    assert refused(content, Path("case.json")).startswith(message)


@pytest.mark.parametrize("path", ["/nowhere/case.json", "/", "", "a\0b"])
def test_a_file_that_cannot_be_read(path: str) -> None:
    with pytest.raises(SpecError, match=r"^--case: '.*' cannot be read \(.*\); give a JSON file, or - for standard"):
        read_json(path, "--case")
