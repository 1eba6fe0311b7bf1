"""What `estimate` and `models` print for a person: the contract's figures, whole names, plain text."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from reports.answer import device_rows, model_rows, print_estimate, print_rows
from reports.contract import estimate_mapping
from reports.predict import Predictor
from suite.case import case_from
from suite.hardware import DEVICES
from suite.models.presets import PRESETS
from suite.units import bytes_text

pytestmark = pytest.mark.unit


def shown(width: int, show: Any, *arguments: Any, **options: Any) -> str:
    """What a console of that width receives."""
    file = io.StringIO()
    show(*arguments, console=Console(file=file, width=width, color_system=None), **options)
    return file.getvalue()


def estimated(data: dict[str, Any], width: int = 160, explain: bool = False) -> str:
    return shown(width, print_estimate, case_from(data), Predictor(), explain=explain)


def test_an_estimate_says_what_the_contract_says() -> None:
    data = {"model": "llama3-8b", "layout": {"fsdp": 8}, "cluster": {"device": "h100-sxm"}}
    text, memory = estimated(data), estimate_mapping(case_from(data), Predictor())["memory"]
    assert f"peak per rank {bytes_text(memory['peak_bytes'])} of {bytes_text(memory['available_bytes'])}: fits" in text
    assert "8 ranks on h100-sxm, 8,030,261,248 parameters, 8 sequences of 1,024 tokens a step" in text
    for component, nbytes in memory["components"].items():
        assert (f" {component} " in text) is (nbytes > 0)
        assert not nbytes or bytes_text(nbytes) in text


def test_what_a_gpu_reserves_is_told_and_what_a_cpu_does_not() -> None:
    data = {"model": "llama3-8b", "layout": {"fsdp": 8}, "cluster": {"device": "h100-sxm"}}
    text, memory = estimated(data), estimate_mapping(case_from(data), Predictor())["memory"]
    assert f"torch's allocator reserves {bytes_text(memory['reserved_bytes'])}" in text
    assert f"at most {bytes_text(memory['reserved_upper_bytes'])}" in text
    assert "matrix library workspaces 64.00 MiB" in text
    assert "context n/a, communicator fsdp(8) 688.00 MiB" in text
    assert "context, communicators n/a on a CPU" in estimated({"model": "gpt-1m"})


@pytest.mark.parametrize(
    "model, device, words",
    [
        ("gpt2", "a100-40gb-sxm", "fits"),
        ("llama-7b", "h100-sxm", "oom: more than there is"),
        ("gpt2", "v100-16gb-sxm", "step time n/a"),
    ],
)
def test_the_verdict_in_words(model: str, device: str, words: str) -> None:
    assert words in estimated({"model": model, "cluster": {"device": device}})


def test_every_term_of_the_largest_moment_is_explained() -> None:
    data = {"model": "gpt2", "cluster": {"device": "h100-sxm"}}
    brief, full = estimated(data), estimated(data, width=200, explain=True)
    assert full.startswith(brief.partition("step ")[0].partition("\n at ")[0][:40])
    memory = estimate_mapping(case_from(data), Predictor())["memory"]
    terms = [term for term in memory["terms"] if term["moment"] == memory["peak_moment"]]
    assert terms
    for term in terms:
        assert term["formula"] in full
        assert term["formula"] not in brief


@pytest.mark.parametrize("width", [60, 80, 100, 132, 200])
def test_names_and_figures_are_whole_at_any_width(width: int) -> None:
    for rows, title, names in ((model_rows(), "models", PRESETS), (device_rows(), "devices", DEVICES)):
        text = shown(width, print_rows, rows, title)
        assert max(map(len, text.splitlines())) <= width
        words = text.split()
        assert [name for name in names if name not in words] == []
        assert "…" not in text
        if width >= 132:
            assert "left out" not in text
        if width <= 80:
            assert "left out for width: " in text


def test_figures_of_models_and_devices() -> None:
    models, devices = {row["name"]: row for row in model_rows()}, {row["name"]: row for row in device_rows()}
    assert models["gpt2"]["parameters"] == 124_439_808
    assert models["llama3-8b"]["parameters"] == 8_030_261_248
    assert devices["v100-32gb-sxm"]["bf16_flops_per_second"] is None
    assert all(row["source"] for row in devices.values())
    text = shown(200, print_rows, device_rows(), "devices")
    assert "989.4 TFLOP/s" in text
    assert "n/a" in text


def test_a_name_from_outside_is_plain_text() -> None:
    text = estimated({"model": {"name": "[red]\x1b[31mx\ny[/red]"}})
    assert text.startswith("[red]\N{REPLACEMENT CHARACTER}[31mx y[/red] single")
