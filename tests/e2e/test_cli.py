"""The command line in a process of its own: exit statuses, one line for bad input, one document for --json."""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from suite.environment import ROOT
from tests.e2e.commands import RUN_ALL, command, document, refusal, run, variables
from tests.e2e.forks import Forks

pytestmark = pytest.mark.e2e

LLAMA3 = ("estimate", "--model", "llama3-8b", "--json")
VERBS = ("bench", "estimate", "report", "models")


# --- bad input -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words, message",
    [
        ("estimte", "VERB: 'estimte' is not known; did you mean estimate, simulate?"),
        ("--json models", "--json: write it after models"),
        ("models --json --jsn", "--jsn: unknown argument; did you mean --json?"),
        ("estimate", "--model: missing; name a preset"),
        ("estimate --model llama3-9b", "model: 'llama3-9b' is not a preset; did you mean llama3-8b"),
        ("estimate --modle gpt2", "--modle: unknown argument; did you mean --model"),
        ("estimate --model gpt2 --dp two", "--dp: expected a whole number, got 'two'"),
        (
            "estimate --model gpt2 --dp 3 --per-node 2",
            "layout: dp(3) = 3 ranks != nodes(1) * per_node(2) = 2",
        ),
        (
            "estimate --model gpt2 --fsdp 4 --global-batch 6",
            "--global-batch: 6 is not a multiple of micro_batch(1) * dp(1",
        ),
        ("estimate --model gpt2 --device h1000", "cluster.device: 'h1000' is not known; did you mean h100"),
        ("estimate --model gpt2 --hf-config x.json", "--hf-config: given beside --model; give one of them"),
        ("estimate --case /nowhere.json", "--case: '/nowhere.json' cannot be read (No such file or directory)"),
        ("report", "RUN: missing; name a run's folder, or a folder of runs with --history"),
        ("report /nowhere", "/nowhere: no run is recorded there; expected a folder with records.jsonl"),
        (
            "bench --suite nightly",
            "--suite: 'nightly' is not known; known: default, quick, strategies, forms, families, peers, memory,",
        ),
        ("bench --suite quick --model gpt2", "--suite: 'quick' given beside --model; give one"),
        (
            "bench --suite quick --tp 4",
            "case 3: model.kv_heads(2) % layout.tp(4) != 0: each rank takes whole key-value heads",
        ),
        ("bench --resume /nowhere", "/nowhere: no run is recorded there; expected a folder with records.jsonl"),
        ("bench --resume x --steps 3", "--resume: given beside --steps; a run goes on with its own cases"),
        (
            "bench --suite speed --model gpt2 --dp 2",
            "--suite speed: given beside --model, --dp; it has flags of its own: python -m",
        ),
        (
            "simulate --model gpt-1m --seq-len 8 --new-tokens 8",
            "--new-tokens: simulate is about training, and the case is served; take estimate or bench",
        ),
        (
            "bench --model gpt-1m --seq-len 8 --new-tokens 8 --pp 2",
            "layout.pp(2): pipelines are not served yet; `estimate` takes them, and tp and dp can be served",
        ),
        ("bench --model gpt-1m --precision fp8", "workload.precision: fp8 is not trained yet, since it needs torchao"),
        ("bench --suite peers --emit slurm", "--emit: given beside --suite peers; the tools are asked by"),
        ("bench --timeout 0", "--timeout: '0' is not a number above zero"),
        ("bench --model gpt-1m --device h1000", "cluster.device: 'h1000' is not known; did you mean h100"),
        ("bench --model gpt-1m --runs /proc/no", "'/proc/no': No such file or directory"),
    ],
)
def test_bad_input_is_one_line_on_standard_error(words: str, message: str, tmp_path: Path, verbs: Forks) -> None:
    assert refusal(verbs.run(*words.split(), cwd=tmp_path)).startswith(message)
    assert not list(tmp_path.glob("runs/*"))


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "holds no text but white space"),
        (b" \n\t ", "holds no text but white space"),
        (b"\xff\xfeA", "is not UTF-8 text (byte 0xff at offset 0)"),
        (b"a\0b", "is not text (null byte at offset 1)"),
        (b"To be, or not to be", "(training part) holds 18 tokens, fewer than one window of seq_len + 1 = 65;"),
        (None, "does not exist"),
    ],
)
def test_a_corpus_that_cannot_be_trained_on(content: bytes | None, message: str, tmp_path: Path, verbs: Forks) -> None:
    path = tmp_path / "my <b>text[b].txt"
    if content is not None:
        path.write_bytes(content)
    words = ["--model", "gpt-1m", "--seq-len", "64", "--tokenizer", "byte", "--data", str(path)]
    said = refusal(verbs.run("bench", *words, "--runs", str(tmp_path / "runs"), "--json"))
    assert said.startswith(f"recipe.data: {str(path)!r}")
    assert message in said
    assert list((tmp_path / "runs").iterdir()) == []  # no run was begun


def test_a_case_on_standard_input_that_is_no_case(verbs: Forks) -> None:
    assert refusal(verbs.run("estimate", "--case", "-", stdin="{")).startswith("--case: '-' is not JSON (")
    hostile = json.dumps({"model": "gpt2", "lay\x1b[31mout\n<b>": 1}, ensure_ascii=False).replace("\n", "\\n")
    said = refusal(verbs.run("estimate", "--case", "-", stdin=hostile.replace("\x1b", "\\u001b")))
    assert said.startswith("case.lay\N{REPLACEMENT CHARACTER}[31mout <b>: unknown key; ")  # one line, and no escape


# --- answers -------------------------------------------------------------------------------------------------


def test_no_verb_is_helped_on_standard_error() -> None:
    done = run()
    assert (done.returncode, done.stdout) == (2, "")
    assert all(verb in done.stderr for verb in VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_help_is_an_answer(verb: str, verbs: Forks) -> None:
    done = verbs.run(verb, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert "Exit status: 0 done" in done.stdout
    assert done.stdout.startswith(f"usage: python {RUN_ALL} {verb}")


@pytest.mark.parametrize("words", ["models", "models --devices", "estimate --model gpt2"])
def test_json_is_one_document(words: str) -> None:
    done = run(*words.split(), "--json")
    assert (done.returncode, done.stderr) == (0, "")
    assert document(done)


def test_the_case_of_an_answer_is_a_case_for_the_next_question(verbs: Forks) -> None:
    first = document(verbs.run("estimate", "--model", "llama-7b", "--fsdp", "4", "--device", "h100-sxm", "--json"))
    again = document(verbs.run("estimate", "--case", "-", "--json", stdin=json.dumps(first["case"])))
    assert again == first
    more = document(
        verbs.run("estimate", "--case", "-", "--micro-batches", "8", "--json", stdin=json.dumps(first["case"]))
    )
    assert more["global_batch"] == 8 * first["global_batch"]
    assert more["memory"]["peak_bytes"] >= first["memory"]["peak_bytes"]


def test_an_answer_does_not_depend_on_the_hash_seed_or_the_place(tmp_path: Path) -> None:
    answers = {run(*LLAMA3, cwd=place, PYTHONHASHSEED=seed).stdout for place, seed in ((ROOT, "0"), (tmp_path, "12"))}
    assert len(answers) == 1


def test_an_estimate_answers_at_once_and_leaves_torch_unloaded() -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", str(RUN_ALL), *LLAMA3], env=variables(), capture_output=True, text=True
    )
    assert done.returncode == 0
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()}
    assert {"suite", "memory", "reports"} <= imported
    assert not imported & {"torch", "numpy", "pandas", "tokenizers", "matplotlib", "rich", "transformers"}
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        assert run(*LLAMA3).returncode == 0
        seconds.append(time.perf_counter() - start)
    print(
        f"\n`{' '.join(LLAMA3)}`: median {statistics.median(seconds):.3f} s of {len(seconds)}, process start included"
    )
    assert min(seconds) < 5  # the promise is 0.5 s; this bound only catches a library that must not be there


# --- where output goes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", ["models", "models --devices --json", "estimate --model llama3-8b --explain"])
def test_a_reader_that_goes_away_is_no_reason_for_a_traceback(words: str) -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)  # gone before the first byte: whatever the pipe could hold
    done = subprocess.run(command(*words.split()), stdout=write_end, stderr=subprocess.PIPE, env=variables())
    os.close(write_end)
    assert (done.returncode, done.stderr) == (1, b"")


@pytest.mark.parametrize("words", ["models", "models --json"])
def test_a_full_disk_under_standard_output_is_told(words: str) -> None:
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(command(*words.split()), stdout=full, stderr=subprocess.PIPE, env=variables())
    assert (done.returncode, done.stderr) == (2, b"shardscope: No space left on device\n")


def test_closed_streams() -> None:
    shell = f"{sys.executable} {RUN_ALL} estimate --case - <&- ; echo $?; {sys.executable} {RUN_ALL} models --json >&-"
    done = subprocess.run(["sh", "-c", shell], capture_output=True, text=True, env=variables())
    assert (done.returncode, done.stdout) == (0, "2\n")
    assert done.stderr.startswith("shardscope: --case: '-' cannot be read (standard input is closed)")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"NO_COLOR": "1", "TERM": "dumb"},
        {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
        {"PYTHONIOENCODING": "latin-1"},
        {"COLUMNS": "40"},
        {"COLUMNS": "200"},
    ],
)
def test_tables_are_plain_text_of_a_fitting_width_anywhere(
    settings: dict[str, str], tmp_path: Path, verbs: Forks
) -> None:
    width = int(settings.get("COLUMNS", "160"))
    run_verb = run if {"LC_ALL", "PYTHONIOENCODING"} & set(settings) else verbs.run  # Python reads these as it starts
    for words in (["models"], ["models", "--devices"], ["estimate", "--model", "gpt2", "--explain"]):
        done = run_verb(*words, cwd=tmp_path, **settings)
        assert (done.returncode, done.stderr) == (0, "")
        assert "\x1b" not in done.stdout
        assert max(map(len, done.stdout.splitlines())) <= width
        if words == ["models"]:
            assert done.stdout.count("megatron-145b") == 1  # a name is whole at any width


def test_a_name_from_a_file_is_never_an_escape_or_markup(verbs: Forks) -> None:
    model = {"name": "\x1b[31mred [bold]x[/bold] [link=http://x]y\nz <script>"}
    done = verbs.run("estimate", "--case", "-", "--explain", stdin=json.dumps({"model": model}), FORCE_COLOR="1")
    assert done.returncode == 0
    assert "\x1b[31mred" not in done.stdout
    assert "\N{REPLACEMENT CHARACTER}[31mred [bold]x[/bold] [link=http://x]y z <script>" in done.stdout


def test_ctrl_c_while_waiting_for_standard_input() -> None:
    waiting = subprocess.Popen(
        command("estimate", "--case", "-"), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    process, busy, idle = psutil.Process(waiting.pid), -1.0, 0
    while idle < 4:  # until it reads: it has begun, and computes no more
        time.sleep(0.25)
        now = sum(process.cpu_times()[:2])
        idle, busy = (idle + 1 if now == busy and now > 0.05 else 0), now
    waiting.send_signal(signal.SIGINT)
    stdout, stderr = waiting.communicate(timeout=10)
    assert (waiting.returncode, stdout, stderr) == (130, b"", b"shardscope: interrupted\n")
