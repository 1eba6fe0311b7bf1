"""`kv` of models that keep no decoder's cache: bytes by hand from the papers' sizes, the same through the verb."""

from __future__ import annotations

import json
from typing import Any

import pytest

from run_all import main


def answered(capsys: pytest.CaptureFixture[str], words: str) -> dict[str, Any]:
    assert main(["kv", *words.split(), "--json"]) == 0
    said: dict[str, Any] = json.loads(capsys.readouterr().out)
    return said


def test_an_encoder_decoder_keeps_a_token_of_the_answer_and_one_of_the_source(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """T5-11b: 24 decoder blocks x (key, value) x 128 heads x 128 x 2 bytes; the encoder's 24 blocks keep none."""
    said = answered(capsys, "--model t5-11b --seq-len 512 --new-tokens 114 --batch 3")
    token = 24 * 2 * 128 * 128 * 2
    cache = said["cache"]
    assert (cache["bytes_per_token"], cache["bytes_per_token_of_source"], cache["state_bytes"]) == (token, token, 0)
    assert (cache["target_bytes"], cache["source_bytes"]) == (3 * 114 * token, 3 * 512 * token)
    assert cache["bytes"] == 3 * cache["bytes_per_sequence"] == 3 * (512 + 114) * token
    assert (said["context_tokens"], said["prompt_tokens"], said["new_tokens"]) == (626, 512, 114)
    wide = answered(capsys, "--model t5-11b --cache-dtype fp32")["cache"]
    assert wide["bytes_per_token"] == 2 * token


@pytest.mark.parametrize(
    ("words", "state"),
    [
        ("--model lstm-ptb-large", 2 * 2 * 1500 * 2),  # layers x (output, cell) x width x bytes
        ("--model lstm-ptb-large --precision fp32", 2 * 2 * 1500 * 4),
        ("--model gru-1m", 2 * 1 * 224 * 2),
        ("--model linear-1m", 4 * 4 * (32 * 32 + 32) * 2),  # layers x heads x (features x values, features)
    ],
)
def test_a_state_is_as_large_at_any_context(capsys: pytest.CaptureFixture[str], words: str, state: int) -> None:
    for context in (20, 1000):
        cache = answered(capsys, f"{words} --context {context}")["cache"]
        assert cache["state_bytes"] == cache["bytes"] == state
        assert cache["bytes_per_token"] == cache["bytes_per_token_of_source"] == 0


def test_a_person_reads_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["kv", "--model", "transformer-big", "--device", "h100-sxm", "--context", "100"]) == 0
    assert "24,576 bytes" in capsys.readouterr().out  # 6 x 2 x 16 x 64 x 2
    assert main(["kv", "--model", "lstm-ptb-large"]) == 0
    assert "12,000 bytes, however long" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--model bert-large", "model: bert-large is an encoder: it generates nothing and has no cache"),
        ("--model t5-11", "model: 't5-11' is not a preset; did you mean t5-11b"),
        ("--model t5-11b --dp 2", "layout: kv says the bytes that a sequence of this model keeps"),
        ("--model t5-11b --compare fp8", "--compare: not for a model without a decoder's cache"),
        ("--model t5-11b --window 8", "cache.window: not for t5-11b"),
        ("--model t5-11b --cache-dtype int8", "cache.cache_dtype: int8 stores codes beside scales"),
        ("--model t5-11b --beams 2", "serving.beams: not for t5-11b"),
        ("--model lstm-ptb-large --steps 3", "--steps: of training"),
        ("--model linear-1m --context 1025", "--context: 1025 tokens are beyond max_positions(1024)"),
    ],
)
def test_what_it_cannot_say_is_one_line(capsys: pytest.CaptureFixture[str], words: str, message: str) -> None:
    assert main(["kv", *words.split()]) == 2
    out, error = capsys.readouterr()
    assert (out, error.count("\n")) == ("", 1)
    assert message in error
