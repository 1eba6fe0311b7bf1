"""Named suites of cases."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from suite.case import Case, case_from
from suite.parse import SpecError, nearest

_LAYOUT = ("dp", "fsdp", "recompute", "reshard_after_forward")
_RECIPE = ("steps", "warmup_steps", "learning_rate", "validation_batches", "data", "tokenizer", "seed")


def _case(model: str, **settings: Any) -> Case:
    """A case from flat settings; what is no layout or recipe setting is the workload's."""
    layout = {key: settings.pop(key) for key in _LAYOUT if key in settings}
    recipe = {key: settings.pop(key) for key in _RECIPE if key in settings}
    return case_from({"model": model, "layout": layout, "workload": settings, "recipe": recipe})


def default_suite() -> tuple[Case, ...]:
    """What `make run` shows: both decoder forms, both precisions and kernels, every layout and checkpointing mode,
    one global batch for each group, and a 10 M model that trains long enough to learn."""
    gpt: dict[str, Any] = {"seq_len": 256, "precision": "fp32", "steps": 24}
    llama: dict[str, Any] = {"seq_len": 256, "precision": "bf16-mixed", "steps": 24}
    learn: dict[str, Any] = {
        "seq_len": 256, "precision": "bf16-mixed", "warmup_steps": 20, "validation_batches": 4,
    }  # fmt: skip
    return (
        _case("gpt-1m", micro_batch=8, **gpt),
        _case("gpt-1m", micro_batch=8, recompute="full", **gpt),
        _case("gpt-1m", micro_batch=4, micro_batches=2, attention="eager", recompute="selective", **gpt),
        _case("gpt-1m", micro_batch=4, dp=2, **gpt),
        _case("gpt-1m", micro_batch=4, dp=2, attention="eager", recompute="every-2", **gpt),
        _case("gpt-1m", micro_batch=4, fsdp=2, **gpt),
        _case("gpt-1m", micro_batch=4, fsdp=2, reshard_after_forward=False, recompute="full", **gpt),
        _case("gpt-1m", micro_batch=2, fsdp=4, loss="chunked", **gpt),
        _case("llama-1m", micro_batch=8, **llama),
        _case("llama-1m", micro_batch=8, attention="eager", **llama),
        _case("llama-1m", micro_batch=4, dp=2, recompute="selective", **llama),
        _case("llama-1m", micro_batch=4, dp=2, recompute="full", **llama),
        _case("llama-1m", micro_batch=4, fsdp=2, **llama),
        _case("llama-1m", micro_batch=2, fsdp=2, micro_batches=2, recompute="every-2", attention="eager", **llama),
        _case("llama-10m", micro_batch=8, steps=150, learning_rate=2e-3, **learn),
        _case("llama-10m", micro_batch=4, fsdp=2, steps=150, learning_rate=2e-3, **learn),
    )


def quick_suite() -> tuple[Case, ...]:
    """Four short cases: a smoke test of everything, and what CI runs."""
    short: dict[str, Any] = {"seq_len": 128, "steps": 8, "warmup_steps": 2}
    return (
        _case("gpt-1m", micro_batch=4, precision="fp32", **short),
        _case("gpt-1m", micro_batch=2, dp=2, precision="fp32", **short),
        _case("llama-1m", micro_batch=2, fsdp=2, **short),
        _case("llama-1m", micro_batch=4, recompute="full", attention="eager", **short),
    )


SUITES: dict[str, Callable[[], tuple[Case, ...]]] = {"default": default_suite, "quick": quick_suite}


def suite_of(name: str) -> tuple[Case, ...]:
    """The suite of that name; SpecError names the known ones."""
    if name not in SUITES:
        raise SpecError(f"--suite: {name!r} is not known; {nearest(name, [*SUITES, 'speed'])}")
    return SUITES[name]()
