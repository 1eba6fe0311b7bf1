"""Flags -> Case: every field of a Case's parts has one, and what cannot be read is refused in one line."""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest

from suite.case import Case, case_from
from suite.cases import quick_suite
from suite.flags import PARTS, OneLineParser, above_zero, add_case_flags, case_of, cases_of, given_changes, suite_name
from suite.links import Level
from suite.parse import SpecError, to_mapping

pytestmark = pytest.mark.unit


def parsed(*words: str, suites: bool = False) -> argparse.Namespace:
    """The flags as the verbs read them; with `suites` as a verb that runs several cases."""
    parser = OneLineParser(prog="shardscope")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", parser_class=OneLineParser)
    verb = verbs.add_parser("estimate", allow_abbrev=False)
    verb.add_argument("--json", action="store_true")
    if suites:
        verb.add_argument("--suite")
    add_case_flags(verb)
    options: argparse.Namespace = parser.parse_args(["estimate", *words])
    return options


def case(*words: str) -> Case:
    return case_of(parsed(*words))


def refusal(*words: str) -> str:
    with pytest.raises(SpecError) as refused:
        case(*words)
    return str(refused.value)


@pytest.fixture
def tiny(tmp_path: Path) -> str:
    """A Case in a file."""
    path = tmp_path / "case.json"
    path.write_text(json.dumps({"model": "gpt-1m", "workload": {"seq_len": 64, "micro_batch": 4}}))
    return str(path)


#: a value other than the default for every field; what else it takes to be a valid case
SERVED = ["--new-tokens", "9", "--seq-len", "64"]
VALUES: dict[str, tuple[str, Any, list[str]]] = {
    "dp": ("2", 2, []),
    "fsdp": ("4", 4, []),
    "recompute": ("every-2", "every-2", []),
    "tp": ("2", 2, []),
    "cp": ("2", 2, []),
    "pp": ("2", 2, ["--micro-batches", "2"]),
    "zero": ("3", 3, ["--dp", "2"]),
    "engine": ("deepspeed", "deepspeed", ["--dp", "2"]),
    "schedule": ("gpipe", "gpipe", ["--pp", "2"]),
    "virtual_stages": ("2", 2, ["--pp", "2", "--schedule", "interleaved-1f1b", "--micro-batches", "4"]),
    "stage_split": ("3-1", "3-1", ["--pp", "2", "--micro-batches", "2"]),
    "sequence_parallel": ("false", False, ["--tp", "2"]),
    "context": ("ulysses", "ulysses", ["--cp", "2"]),
    "load_balance": ("false", False, ["--cp", "2"]),
    "reshard_after_forward": ("2", 2, ["--fsdp", "4"]),
    "forward_prefetch": ("1", 1, ["--fsdp", "2"]),
    "backward_prefetch": ("2", 2, ["--fsdp", "2"]),
    "reduce_type": ("bf16", "bf16", ["--fsdp", "2"]),
    "reduction": ("micro-batch", "micro-batch", ["--micro-batches", "2"]),
    "offload": ("parameters", "parameters", ["--dp", "2", "--zero", "3"]),
    "bucket_mib": ("5", 5, ["--dp", "2"]),
    "seq_len": ("64", 64, []),
    "ep": ("2", 2, ["--model", "mixtral-1m"]),
    "imbalance": ("1.5", 1.5, ["--model", "mixtral-1m", "--ep", "2"]),
    "micro_batch": ("3", 3, []),
    "micro_batches": ("5", 5, []),
    "precision": ("fp32", "fp32", []),
    "optimizer": ("sgd", "sgd", []),
    "optimizer_kernel": ("foreach", "foreach", []),
    "attention": ("eager", "eager", []),
    "loss": ("chunked", "chunked", []),
    "device": ("h100-sxm", "h100-sxm", []),
    "nodes": ("2", 2, ["--dp", "4"]),
    "per_node": ("2", 2, ["--dp", "2"]),
    "links": ("ib:*:25e9:8e-6:0.9", [to_mapping(Level("ib", 0, 25e9, 8e-6, 0.9))], []),
    "steps": ("7", 7, []),
    "warmup_steps": ("0", 0, []),
    "learning_rate": ("3e-4", 3e-4, []),
    "weight_decay": ("0", 0.0, []),
    "clip_norm": ("inf", "inf", []),
    "seed": ("42", 42, []),
    "data": ("some where.txt", "some where.txt", []),
    "tokenizer": ("byte", "byte", []),
    "stride": ("16", 16, []),
    "validation_batches": ("2", 2, []),
    "new_tokens": ("9", 9, ["--seq-len", "64"]),
    "shortest_prompt": ("5", 5, SERVED),
    "prefill_tokens": ("32", 32, SERVED),
    "sampling": ("beam", "beam", SERVED),
    "top_k": ("7", 7, SERVED),
    "top_p": ("0.5", 0.5, SERVED),
    "temperature": ("0.7", 0.7, SERVED),
    "beams": ("3", 3, SERVED),
    "cache_dtype": ("int4", "int4", SERVED),
    "quant_group": ("16", 16, [*SERVED, "--cache-dtype", "int8"]),
    "window": ("64", 64, SERVED),
    "sinks": ("4", 4, [*SERVED, "--window", "64"]),
    "memory_block": ("16", 16, [*SERVED, "--window", "64", "--sinks", "4"]),
    "representatives": ("2", 2, SERVED),
    "fetched_blocks": ("3", 3, SERVED),
    "page_tokens": ("16", 16, SERVED),
    "allocation": ("growing", "growing", SERVED),
    "cache_tokens": ("2000", 2000, SERVED),
    "latent_form": ("plain", "plain", [*SERVED, "--model", "mla-1m"]),
}
FIELDS = [(part, field.name) for part, kind in PARTS.items() for field in dataclasses.fields(kind)]


@pytest.mark.parametrize("part, name", FIELDS, ids=[name for _, name in FIELDS])
def test_every_field_has_a_flag_that_sets_it(part: str, name: str) -> None:
    flag = "--" + name.replace("_", "-")
    text, value, rest = VALUES[name]
    made = case("--model", "gpt-1m", flag, text, *rest)
    assert to_mapping(made)[part][name] == value
    assert case_from(json.loads(json.dumps(made.to_mapping()))) == made
    assert made == case("--model", "gpt-1m", f"{flag}={text}", *rest)


@pytest.mark.parametrize("name", [name for _, name in FIELDS])
def test_every_flag_says_its_default(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parsed("--help")
    options = capsys.readouterr().out.partition("\nlayout:")[2].replace("\n\n", "\n  --")
    text = options.partition("--" + name.replace("_", "-") + " ")[2].partition("\n  --")[0]
    assert re.search(r"\[[^]]+\]\s*$", text), text


def test_flags_change_the_case_in_a_file(tiny: str) -> None:
    changed = case("--case", tiny, "--seq-len", "32", "--fsdp", "2", "--model", "llama-1m")
    assert changed == case("--model", "llama-1m", "--seq-len", "32", "--micro-batch", "4", "--fsdp", "2")


def test_a_suite_is_the_base_of_a_verb_that_runs_one() -> None:
    changed = cases_of(parsed("--suite", "quick", "--steps", "3", "--seed", "7", suites=True))
    assert len(changed) == len(quick_suite())
    for after, before in zip(changed, quick_suite(), strict=True):
        assert (after.recipe.steps, after.recipe.seed) == (3, 7)
        assert (after.model, after.layout, after.workload) == (before.model, before.layout, before.workload)
    assert cases_of(parsed("--suite", "quick", suites=True)) == quick_suite()


def test_a_flag_that_does_not_fit_every_case_of_a_suite_names_the_case() -> None:
    with pytest.raises(SpecError, match=r"^case 3: model.kv_heads\(2\) % layout.tp\(4\) != 0: "):
        cases_of(parsed("--suite", "quick", "--tp", "4", suites=True))


def test_given_changes_are_told() -> None:
    assert given_changes(parsed("--model", "gpt2", "--steps", "3", "--global-batch", "8")) == [
        "--global-batch",
        "--steps",
    ]


@pytest.mark.parametrize(
    "words, count, name",
    [
        ("", 16, "default"),
        ("--suite quick", 4, "quick"),
        ("--suite quick --steps 3 --data x", 4, "quick with --steps, --data"),
        ("--model gpt2 --steps 3", 1, "one case"),
        ("--case mine/cases.json", 2, "cases.json"),
        ("--case -", 2, "standard input"),
    ],
)
def test_what_reports_call_the_cases(words: str, count: int, name: str) -> None:
    assert suite_name(parsed(*words.split(), suites=True), count) == name


@pytest.mark.parametrize(
    "layout, micro_batches",
    [([], 24), (["--dp", "2"], 12), (["--fsdp", "4", "--micro-batch", "3"], 2)],
)
def test_the_global_batch_sets_the_micro_batches(layout: list[str], micro_batches: int) -> None:
    made = case("--model", "gpt-1m", "--global-batch", "24", *layout)
    assert (made.workload.micro_batches, made.global_batch) == (micro_batches, 24)


@pytest.mark.parametrize(
    "words, message",
    [
        ("", "--model: missing; name a preset (`models` lists them), or give --case or --hf-config"),
        ("--model", "--model: expected one argument (see `shardscope estimate --help`)"),
        ("--model gpt-1mm", "model: 'gpt-1mm' is not a preset; did you mean gpt-1m, gpt-10m, gpt-50m?"),
        ("--modle gpt2", "--modle: unknown argument; did you mean --model, --nodes?"),
        ("--micro-bach=2 --model gpt2", "--micro-bach: unknown argument; did you mean --micro-batch, "),
        ("--mod gpt2", "--mod: unknown argument; did you mean --model"),  # no flag is guessed from its start
        ("--model gpt2 gpt3", "gpt3: unknown argument; flags begin with --, as --latent-form"),
        ("--model gpt2 --dp two", "--dp: expected a whole number, got 'two'"),
        ("--model gpt2 --dp 2.0", "--dp: expected a whole number, got '2.0'"),
        ("--model gpt2 --dp 0", "layout.dp: must be at least 1, got 0"),
        (f"--model gpt2 --dp {10**16}", f"layout.dp: {10**16} is beyond 9007199254740991, the largest whole number"),
        (f"--model gpt2 --seed {'9' * 5000}", f"--seed: expected a whole number, got '{'9' * 76}... "),
        ("--model gpt2 --learning-rate nan", "recipe.learning_rate: must be finite and not negative, got nan"),
        ("--model gpt2 --weight-decay inf", "recipe.weight_decay: must be finite and not negative, got inf"),
        (
            "--model gpt2 --precision int4",
            "--precision: 'int4' is not known; known: fp32, bf16-mixed, bf16, fp8, fp8-rowwise, fp16-mixed",
        ),
        (
            "--model gpt2 --reshard-after-forward yes",
            "--reshard-after-forward: expected true or false or a whole number, got 'yes'",
        ),
        (
            "--model gpt2 --recompute every-0",
            "--recompute: 'every-0' is not known; accepted: none, selective, selective-op, ",
        ),
        ("--model gpt2 --global-batch 0", "--global-batch: '0' is not a whole number above zero"),
        ("--model gpt2 --global-batch 1.5", "--global-batch: '1.5' is not a whole number above zero"),
        (
            "--model gpt2 --dp 3 --micro-batch 2 --global-batch 16",
            "--global-batch: 16 is not a multiple of micro_batch(2) * dp(3) * fsdp(1) = 6",
        ),
        (
            "--model gpt2 --global-batch 8 --micro-batches 2",
            "--global-batch: sets micro_batches; leave out --micro-batches",
        ),
        ("--model gpt2 --hf-config config.json", "--hf-config: given beside --model; give one of them"),
        (
            "--model gpt2 --dp 3 --per-node 2",
            "layout: dp(3) = 3 ranks != nodes(1) * per_node(2) = 2; per_node 0 takes what the layout needs",
        ),
        ("--model gpt2 --seq-len 1025", "workload.seq_len: 1025 is beyond the model's max_positions(1024) of gpt2"),
    ],
)
def test_a_refusal_is_one_line_that_names_the_flag_and_the_value(words: str, message: str) -> None:
    said = refusal(*words.split())
    assert said.startswith(message.removesuffix(" "))
    assert "\n" not in said
    assert len(said) < 600


def test_words_before_the_verb_and_unknown_verbs() -> None:
    parser = OneLineParser(prog="shardscope", allow_abbrev=False)
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", parser_class=OneLineParser)
    verbs.add_parser("estimate").add_argument("--json", action="store_true")
    for words, message in {
        "estimte": "VERB: 'estimte' is not known; did you mean estimate?",
        "--jsn": "--jsn: unknown argument; name a verb first: estimate",
        "--json estimate": "--json: write it after estimate",
    }.items():
        with pytest.raises(SpecError) as refused:
            parser.parse_args(words.split())
        assert str(refused.value) == message


@pytest.mark.parametrize("text", ["0", "-1", "nan", "x", "", "1e"])
def test_a_limit_is_above_zero(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="is not a number above zero"):
        above_zero(float)(text)
    assert above_zero(float)("inf") == float("inf")
