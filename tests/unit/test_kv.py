"""The verb `kv`: what it answers, in figures that were published or follow by hand, what it draws, what it refuses."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from memory.caches.model import cache_terms
from memory.caches.terms import LANES
from memory.inference import InferenceModel, Phase
from run_all import main
from suite.case import case_from
from suite.hardware import device
from suite.record import Quantity

pytestmark = pytest.mark.unit

SEVENTY = ("--model", "llama3-70b", "--device", "h100-sxm", "--tp", "8", "--context", "32768")


def answered(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    assert main(["kv", *words, "--json"]) == 0
    said: dict[str, Any] = json.loads(capsys.readouterr().out)
    return said


def refusal(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(["kv", *words]) == 2
    out, error = capsys.readouterr()
    assert out == ""
    assert error.count("\n") == 1
    return error


def test_seventy_billion_parameters_on_eight_gpus_have_their_answers(capsys: pytest.CaptureFixture[str]) -> None:
    """Llama 3 70B over 8 ranks: one key-value head each, 2 x 80 x 128 x 2 bytes a token."""
    said = answered(capsys, *SEVENTY)
    cache, memory, limits = said["cache"], said["memory"], said["limits"]
    assert (cache["bytes_per_token"], cache["bytes_per_token_of_model"], cache["copies"]) == (40_960, 327_680, 1)
    assert cache["bytes"] == 32_768 * (40_960 + 8)  # the places beside
    total = device("h100-sxm").memory_bytes.value
    assert total is not None
    assert memory["room_bytes"] == int(total * 0.9)
    case = case_from(said["case"])
    assert (case.workload.seq_len, case.serving.new_tokens, said["pass_tokens"]) == (32_512, 256, 8192)
    loaded = InferenceModel(case).total_bytes(Phase.LOADED)
    assert memory["left_bytes"] == memory["room_bytes"] - loaded
    # what is left holds so many caches at most, and a forward pass of 8,192 tokens takes less than one of them
    assert limits["largest_batch"] in (quotient := memory["left_bytes"] // (32_768 * 40_960), quotient - 1)
    assert limits["longest_context"] == 131_072
    assert said["choices"][0]["peak_bytes"] == memory["peak_bytes"] == InferenceModel(case).peak_bytes()


def test_a_step_of_decoding_is_weights_and_cache_over_what_the_device_reads(capsys: pytest.CaptureFixture[str]) -> None:
    """A rank reads nearly an eighth of 70 billion weights for 2 FLOPs each: about one FLOP a byte, and the roofline of
    the datasheet's 3.35 TB/s is a floor of the time."""
    said = answered(capsys, *SEVENTY)
    decode, time = said["decode"], said["time"]
    assert pytest.approx(decode["weight_bytes"], rel=0.001) == 2 * (70_553_706_496 - 128_256 * 8192) / 8
    assert decode["flops_per_byte"] == pytest.approx(
        decode["flops"] / (decode["weight_bytes"] + decode["cache_bytes"]), rel=1e-12
    )
    assert 1 < decode["flops_per_byte"] < 2
    assert decode["ridge_flops_per_byte"] > 100
    assert time["decode_seconds"] > (decode["weight_bytes"] + decode["cache_bytes"]) / 3.36e12
    assert time["tokens_per_second"] == pytest.approx(1 / time["decode_seconds"], rel=1e-12)
    assert {term["name"] for term in said["terms"] if "seconds" in term} == {"time to first token", "time per token"}
    assert all(term["formula"] and term["source"] for term in said["terms"])


def test_choices_stand_beside_the_model_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    """64 heads for 8, 16 for 8, one (kept whole by every rank), and DeepSeek-V2's latent: 80 x (512 + 64) x 2."""
    said = answered(capsys, *SEVENTY, "--compare", "mha,gqa=16,mqa,mla,fp8,mqa+fp8")
    rows = {row["name"]: row for row in said["choices"]}
    tokens = {name: row["bytes_per_token"] for name, row in rows.items()}
    assert tokens == {
        "as it is": 40_960, "mha": 327_680, "gqa=16": 81_920, "mqa": 40_960, "mla": 92_160, "fp8": 20_480,
        "mqa+fp8": 20_480,
    }  # fmt: skip
    assert rows["gqa=16"]["cache_factor"] == pytest.approx(2, rel=1e-3)
    batches = [rows[name]["largest_batch"] for name in ("fp8", "as it is", "gqa=16", "mla", "mha")]
    assert batches == sorted(batches, reverse=True)
    assert rows["mqa"]["largest_batch"] >= rows["as it is"]["largest_batch"]  # its weights are smaller
    assert rows["fp8"]["rate_factor"] > 1 > rows["mha"]["rate_factor"]


def test_deepseek_v3_is_answered_by_its_ledger_with_weights_as_released(capsys: pytest.CaptureFixture[str]) -> None:
    said = answered(capsys, "--model", "deepseek-v3", "--device", "h200-sxm", "--context", "32768")
    assert said["cache"]["bytes_per_token"] == said["cache"]["bytes_per_token_of_model"] == 70_272
    biases = 58 * 256  # the published count has them (params-0074); here they are buffers
    weights = [term["bytes"] for term in said["terms"] if term["name"] == "weights"]
    assert weights[0] == 671_026_419_200 - biases  # fp8: a byte each
    assert said["published"] is None
    # one token reads the 37.55 B parameters that it uses, but of the embedding one row; the last row is in 16 bits
    active, embedding, row = 37_552_297_472 - biases, 129_280 * 7168, 2 * 7168
    assert said["decode"]["weight_bytes"] == pytest.approx(active - embedding + row, rel=1e-9)


def test_pages_say_what_they_lose(capsys: pytest.CaptureFixture[str]) -> None:
    """1,000 tokens kept (the last is not) fill 62 pages of 16 and 8 entries of another: 8 of 1,008 are lost."""
    said = answered(capsys, "--model", "gpt2", "--context", "1001", "--page-tokens", "16")
    assert said["cache"]["fragmentation"]["paged_wasted_share"] == pytest.approx(8 / 1008)
    assert answered(capsys, "--model", "gpt2")["cache"]["fragmentation"] is None


@pytest.mark.parametrize(
    ("words", "prompt", "answer", "batch"),
    [
        ([], 768, 256, 1),
        (["--context", "100"], 50, 50, 1),
        (["--context", "100", "--seq-len", "90", "--batch", "3"], 90, 10, 3),
        (["--context", "100", "--new-tokens", "1"], 99, 1, 1),
        (["--seq-len", "1000"], 1000, 24, 1),
        (["--new-tokens", "4", "--micro-batch", "5"], 1020, 4, 5),
        (["--seq-len", "8", "--new-tokens", "4"], 8, 4, 1),
    ],
)
def test_prompt_answer_and_context_settle_each_other(
    capsys: pytest.CaptureFixture[str], words: list[str], prompt: int, answer: int, batch: int
) -> None:
    said = answered(capsys, "--model", "gpt2", "--memory-share", "0.02", *words)
    assert (said["prompt_tokens"], said["new_tokens"], said["batch"]) == (prompt, answer, batch)
    assert said["context_tokens"] == prompt + answer


def test_a_smaller_share_of_the_device_holds_less(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--model", "llama3-8b", "--device", "h100-sxm", "--context", "8192")
    few, many = (answered(capsys, *words, "--memory-share", share)["limits"]["largest_batch"] for share in ("0.5", "1"))
    assert 0 < few < many


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("", "--model: missing; name a preset (`models` lists them)"),
        ("--model llama3-71b", "model: 'llama3-71b' is not a preset; did you mean llama3-70b"),
        ("--model deepseek-v4", "did you mean deepseek-v3"),
        ("--model gpt2 --context 1025", "= 1025 is beyond max_positions(1024) of gpt2"),
        ("--model gpt2 --context 1", "--context: 1 is too short for a prompt and an answer"),
        ("--model gpt2 --context 0", "'0' is not a whole number above zero"),
        ("--model gpt2 --context nine", "'nine' is not a whole number above zero"),
        ("--model gpt2 --batch 0", "'0' is not a whole number above zero"),
        ("--model gpt2 --batch 8193", "--batch: 8193 sequences a replica are beyond the 8192 counted here"),
        ("--model gpt2 --batch 2 --micro-batch 3", "--batch: 2 beside a micro_batch of 3; give one of them"),
        ("--model gpt2 --context 9 --seq-len 9", "--context: 9 leaves no token for an answer"),
        ("--model gpt2 --context 9 --new-tokens 9", "--context: 9 leaves no token for a prompt"),
        ("--model gpt2 --context 9 --seq-len 3 --new-tokens 3", "--context: 9 != seq_len(3) + new_tokens(3)"),
        ("--model gpt2 --memory-share 0", "--memory-share: must be above 0 and at most 1, got '0'"),
        ("--model gpt2 --memory-share nan", "--memory-share: must be above 0 and at most 1"),
        ("--model gpt2 --memory-share all", "--memory-share"),
        ("--model gpt2 --compare int3", "no cache has elements of 3 bits"),
        ("--model gpt2 --compare window=0", "'0' is not a whole number above zero"),
        ("--model gpt2 --window 0", "cache.window: must be at least 1"),
        ("--model gpt2 --page-tokens 0", "cache.page_tokens: must be at least 1"),
        ("--model gpt2 --cache-dtype int3", "--cache-dtype"),
        ("--model gpt2 --cache-tokens 9", "cache.cache_tokens: kv asks how many tokens there is room for"),
        ("--model llama3-70b --tp 3", "% layout.tp(3) != 0"),
        ("--model llama3-70b --fsdp 8", "serving takes tp, pp and dp"),
        ("--model qwen3-235b-a22b --pp 2", "layout.pp: 2 with qwen3-235b-a22b"),
        ("--model gpt2 --device h1000", "cluster.device: 'h1000' is not known"),
        ("--model gpt2 --global-batch 4 --steps 3", "--steps, --global-batch: of training"),
        ("--model gpt2 --contxt 9", "--contxt: unknown argument; did you mean --context"),
    ],
)
def test_nonsense_is_refused_in_one_line(capsys: pytest.CaptureFixture[str], words: str, message: str) -> None:
    assert message in refusal(capsys, *words.split())


def test_a_case_file_that_says_nothing_of_serving_is_served(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "case.json"
    path.write_text(json.dumps({"model": "opt-13b", "workload": {"micro_batch": 2}}))
    said = answered(capsys, "--case", str(path), "--context", "2048")
    assert (said["batch"], said["cache"]["bytes_per_token"]) == (2, 819_200)
    path.write_text(json.dumps({"model": {"name": "<b>&", "layers": 2, "hidden": 64}, "workload": 3}))
    assert "workload: expected an object with keys" in refusal(capsys, "--case", str(path))


def test_a_person_reads_the_same_and_the_page_draws_it(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    model = {"layers": 2, "hidden": 64, "name": "<b>\x1b&", "max_positions": 2048}
    path, page = tmp_path / "case.json", tmp_path / "kv.html"
    path.write_text(json.dumps({"model": model, "cluster": {"device": "h100-sxm"}}))
    words = ["--case", str(path), "--context", "512", "--memory-share", "0.001", "--compare", "mqa,fp8,page=16"]
    assert main(["kv", *words, "--page", str(page)]) == 0
    out = capsys.readouterr().out
    assert "512 bytes" in out  # 2 x 2 x 64 x 2
    assert "\x1b" not in out
    html = page.read_text(encoding="utf-8")
    assert "<b>\x1b" not in html
    assert "&lt;b&gt;" in html
    assert html.count("<svg") == 2
    for name in ("as it is", "mqa", "fp8", "page=16"):
        assert len(re.findall(rf"<title>{name}, ", html)) >= 4
    assert "device's memory" in html


def test_without_rates_the_page_says_why_there_is_one_figure(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    page = tmp_path / "kv.html"
    assert main(["kv", "--model", "opt-125m", "--page", str(page)]) == 0
    html = page.read_text(encoding="utf-8")
    assert html.count("<svg") == 1
    assert "Tokens a second are not drawn" in html
    assert "n/a" in capsys.readouterr().out


@pytest.mark.parametrize(("layers", "hidden", "batch", "prompt", "answer"), [(40, 5120, 3, 512, 32), (2, 64, 1, 9, 1)])
def test_a_cache_of_all_heads_in_16_bits_is_the_textbook_s(
    layers: int, hidden: int, batch: int, prompt: int, answer: int
) -> None:
    """4 b l h (s + n) bytes (arXiv:2303.06865, section 3): keys and values, 2 bytes each, every head of every layer."""
    model = {"family": "decoder", "layers": layers, "hidden": hidden, "heads": hidden // 32, "max_positions": 1024}
    case = case_from({
        "model": model,
        "workload": {"seq_len": prompt, "micro_batch": batch, "precision": "bf16"}, "serving": {"new_tokens": answer},
    })  # fmt: skip
    lanes = sum(
        term.nbytes for term in cache_terms(case) if term.quantity is Quantity.CACHE and term.component in LANES
    )
    assert lanes == 4 * batch * layers * hidden * (prompt + answer)
