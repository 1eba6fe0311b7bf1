"""`import`: a configuration that was read and the flags beside it become one Case, and what gave way is said."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pytest

from reports.intake.base import Taken
from reports.intake.merge import merge
from reports.intake.sources import SOURCES, Source, source_of
from reports.intake.verb import add_import_flags, run_import, short
from suite.case import case_from
from suite.flags import OneLineParser, add_case_flags
from suite.parse import SpecError

pytestmark = pytest.mark.unit

ZERO = {"layout": {"zero": 2}, "workload": {"micro_batch": 4, "micro_batches": 2}}


def parsed(*words: str) -> argparse.Namespace:
    parser = OneLineParser(prog="shardscope")
    verb = parser.add_subparsers(dest="verb", metavar="VERB", parser_class=OneLineParser).add_parser("import")
    verb.add_argument("--json", action="store_true")
    add_import_flags(verb)
    add_case_flags(verb)
    options: argparse.Namespace = parser.parse_args(["import", *words])
    return options


def merged(taken: Taken, *words: str) -> Any:
    return merge(taken, parsed("ds{}.json", *words), "ds{}.json")


def test_a_flag_stands_over_the_file_and_that_is_said() -> None:
    found = merged(Taken(ZERO), "--model", "gpt-1m", "--dp", "2", "--zero", "3", "--micro-batch", "4")
    assert (found.case.layout.zero, found.case.layout.dp, found.case.workload.micro_batches) == (3, 2, 2)
    assert found.overruled == ("layout.zero: 3 of the flags is taken, not 2 of ds{}.json",)


def test_the_file_stands_over_a_case_and_that_is_said(tmp_path: Path) -> None:
    base = tmp_path / "case.json"
    base.write_text(
        json.dumps({"model": "gpt-1m", "layout": {"dp": 4}, "workload": {"micro_batch": 1}, "cluster": {"per_node": 4}})
    )
    found = merged(Taken(ZERO | {"model": "llama-1m"}), "--case", str(base), "--seq-len", "64")
    assert (found.case.model.name, found.case.layout.dp, found.case.workload.seq_len) == ("llama-1m", 4, 64)
    assert found.overruled == (
        "model: 'llama-1m' of ds{}.json is taken, not 'gpt-1m' of --case",
        "workload.micro_batch: 4 of ds{}.json is taken, not 1 of --case",
    )


@pytest.mark.parametrize(
    ("said", "words", "sizes"),
    [  # a global batch of 64: micro_batch, micro_batches, dp
        ({"micro_batch": 4, "micro_batches": 2}, [], (4, 2, 8)),
        ({"micro_batch": 4}, ["--dp", "2"], (4, 8, 2)),
        ({"micro_batches": 4}, ["--dp", "2"], (8, 4, 2)),
        ({}, ["--dp", "2"], (32, 1, 2)),
        ({"micro_batch": 2}, ["--nodes", "2", "--per-node", "8"], (2, 2, 16)),
        (
            {"micro_batch": 4, "micro_batches": 2},
            ["--dp", "2", "--global-batch", "16", "--micro-batch", "2"],
            (2, 4, 2),
        ),
    ],
)
def test_a_global_batch_gives_what_neither_side_says(
    said: dict[str, int], words: list[str], sizes: tuple[int, int, int]
) -> None:
    case = merged(Taken({"workload": said}, global_batch=64), "--model", "gpt-1m", *words).case
    assert (case.workload.micro_batch, case.workload.micro_batches, case.layout.dp) == sizes


def test_a_global_batch_that_the_flags_do_not_make_is_said() -> None:
    found = merged(Taken(ZERO, global_batch=64), "--model", "gpt-1m", "--dp", "2")
    assert found.overruled == (
        "global batch: 16 = micro_batch(4) * micro_batches(2) * 2 data ranks is taken, not 64 of ds{}.json",
    )


@pytest.mark.parametrize(
    ("taken", "words", "match"),
    [
        (Taken(ZERO), [], "--model: missing; ds{}.json says nothing of the model"),
        (Taken({"workload": {"micro_batch": 3}}, global_batch=64), ["--dp", "2"], "64 is no multiple of 3 * 2 data"),
        (Taken(ZERO, global_batch=65), [], "65 is no multiple of micro_batch(4) * micro_batches(2)"),
        (Taken({"layout": {"tp": 2}}), ["--per-node", "3"], "3 ranks are no multiple"),
        (Taken(ZERO), ["--dp", "0"], "layout.dp: must be at least 1, got 0"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(taken: Taken, words: list[str], match: str) -> None:
    with pytest.raises(SpecError) as refused:
        merged(taken, *(["--model", "gpt-1m"] if words or taken.global_batch else []), *words)
    assert match in str(refused.value)
    assert "\n" not in str(refused.value)


def test_the_verb_prints_a_case_and_lists_every_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    taken = Taken(ZERO, ("comms_logger: {}",), ("layout.dp: 1",), ("wall_clock_breakdown: true",))
    monkeypatch.setitem(SOURCES, "toy", Source(lambda head: "toy" in head, lambda path: taken))
    path = tmp_path / "ds.json"
    path.write_text('{"toy": 1}')
    words = [str(path), "--model", "gpt-1m", "--dp", "2"]
    assert run_import(parsed(*words)) == 0
    said = capsys.readouterr()
    case = case_from(json.loads(said.out))
    assert (case.layout.zero, case.global_batch) == (2, 16)
    for line in ("not modelled: comms_logger: {}", "assumed: layout.dp: 1", "changes nothing: wall_clock_breakdown"):
        assert line in said.err
    assert run_import(parsed(*words, "--json", "--out", str(tmp_path / "case.json"))) == 0
    document = json.loads(capsys.readouterr().out)
    assert case_from(document["case"]) == case_from(json.loads((tmp_path / "case.json").read_text())) == case
    assert (document["source"], document["unmodelled"]) == ("toy", ["comms_logger: {}"])


def test_a_short_case_reads_back_the_same() -> None:
    case = case_from({"model": "gpt-1m", "layout": {"fsdp": 2, "recompute": "every-2"}, "workload": {"seq_len": 32}})
    said = short(case)
    assert said == {
        "model": "gpt-1m", "layout": {"fsdp": 2, "recompute": "every-2"}, "workload": {"seq_len": 32},
        "cluster": {"per_node": 2},
    }  # fmt: skip
    assert case_from(said) == case


@pytest.mark.parametrize(
    ("path", "named", "match"),
    [
        ("gone.json", None, "FILE: 'gone.json' cannot be read (No such file or directory)"),
        ("gone.json", "nonsense", "--from: 'nonsense' is not known"),
        ("-", None, "--from: missing; standard input is read once"),
        ("nul\0.json", None, "cannot be read"),
    ],
)
def test_a_file_that_cannot_be_told_is_refused(path: str, named: str | None, match: str) -> None:
    with pytest.raises(SpecError) as refused:
        source_of(path, named)
    assert match in str(refused.value)


def test_nonsense_is_of_no_tool(tmp_path: Path) -> None:
    path = tmp_path / "noise"
    path.write_bytes(bytes(range(256)))
    with pytest.raises(SpecError, match="of no tool that is known"):
        source_of(str(path), None)
