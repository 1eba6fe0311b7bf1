"""Named suites of cases."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import fields
from typing import Any

from suite.cache import CacheSpec
from suite.cache_matrix import pairs_cache_matrix, whole_cache_matrix
from suite.case import Case, case_from
from suite.family_cases import families_suite
from suite.layout import Layout
from suite.matrix import pairs_matrix, whole_matrix
from suite.models import preset
from suite.parse import SpecError, nearest, to_mapping
from suite.passes import Pass
from suite.serving import Serving
from suite.spec import Recipe

_LAYOUT = frozenset(field.name for field in fields(Layout))
_RECIPE = frozenset(field.name for field in fields(Recipe))
_SERVING = frozenset(field.name for field in fields(Serving))
_CACHE = frozenset(field.name for field in fields(CacheSpec))


def _case(model: str | dict[str, Any], **settings: Any) -> Case:
    """A case from flat settings; what is no other part's setting is the workload's."""
    names = {"layout": _LAYOUT, "recipe": _RECIPE, "serving": _SERVING, "cache": _CACHE}
    parts = {part: {key: settings.pop(key) for key in known if key in settings} for part, known in names.items()}
    return case_from({"model": model, "workload": settings, **parts})


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
        _case("llama-1m", micro_batch=2, fsdp=2, micro_batches=2, recompute="selective-op", **llama),
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


#: axes whose ranks take their own sequences
DATA_AXES = ("dp", "fsdp", "ep")
#: a decoder that every layout of up to 8 ranks divides
DIVISIBLE: dict[str, Any] = {
    "family": "decoder", "name": "divisible", "layers": 8, "hidden": 64, "heads": 8, "kv_heads": 4, "ffn": 176,
    "vocab": 1024, "max_positions": 256,
}  # fmt: skip
#: the same with GPT-2's form: learned positions, biases, a head tied to the embedding
DIVISIBLE_TIED: dict[str, Any] = DIVISIBLE | {
    "name": "divisible-tied", "kv_heads": 8, "norm": "layernorm", "activation": "gelu", "position": "learned",
    "bias": True, "tied": True,
}  # fmt: skip

#: layouts of the strategies suite: 2 to 8 ranks, every strategy, schedule and product
_STRATEGIES: tuple[dict[str, Any], ...] = (
    {},
    {"dp": 2},
    {"dp": 4, "bucket_mib": 1},
    {"fsdp": 2},
    {"fsdp": 4, "reshard_after_forward": False},
    {"fsdp": 4, "reshard_after_forward": 2, "forward_prefetch": 1},
    {"fsdp": 2, "reduction": "micro-batch", "recompute": "full"},
    {"dp": 2, "fsdp": 2},
    {"dp": 2, "zero": 0, "engine": "deepspeed"},
    {"dp": 2, "zero": 1, "bucket_mib": 4},
    {"dp": 2, "zero": 1, "engine": "torch"},
    {"dp": 4, "zero": 2, "bucket_mib": 4, "recompute": "selective"},
    {"dp": 4, "zero": 3, "bucket_mib": 4},
    {"dp": 2, "zero": 3, "bucket_mib": 4, "recompute": "full"},
    {"tp": 2},
    {"tp": 4, "recompute": "full"},
    {"tp": 2, "sequence_parallel": False},
    {"tp": 2, "dp": 2},
    {"tp": 2, "fsdp": 2, "recompute": "selective-op"},
    {"tp": 2, "fsdp": 2, "dp": 2},
    {"cp": 2},
    {"cp": 4, "load_balance": False, "recompute": "selective"},
    {"cp": 2, "context": "ulysses"},
    {"cp": 2, "fsdp": 2},
    {"cp": 2, "tp": 2},
    {"pp": 2, "schedule": "gpipe"},
    {"pp": 4, "schedule": "1f1b"},
    {"pp": 2, "schedule": "1f1b", "stage_split": "5-3", "recompute": "full"},
    {"pp": 2, "schedule": "interleaved-1f1b", "virtual_stages": 2},
    {"pp": 2, "schedule": "interleaved-zero-bubble", "virtual_stages": 2},
    {"pp": 2, "schedule": "zbv", "virtual_stages": 2},
    {"pp": 2, "schedule": "dualpipev", "virtual_stages": 2},
    {"pp": 2, "fsdp": 2},
    {"pp": 2, "dp": 2, "zero": 1},
    {"pp": 2, "tp": 2, "recompute": "every-2"},
    {"pp": 2, "tp": 2, "fsdp": 2},
)


#: layouts of the tied decoder: where the shared weight is divided, or far from itself
_TIED: tuple[dict[str, Any], ...] = (
    {},
    {"tp": 2},
    {"dp": 2, "zero": 3, "bucket_mib": 4},
    {"pp": 2, "schedule": "1f1b"},
    {"pp": 2, "schedule": "zbv", "virtual_stages": 2},
)


#: the first with experts in place of its MLPs
DIVISIBLE_EXPERTS: dict[str, Any] = DIVISIBLE | {
    "name": "divisible-experts", "experts": {"count": 4, "top_k": 2, "ffn": 96},
}  # fmt: skip
#: its layouts: experts divided over ranks, alone and with what divides the rest
_EXPERTS: tuple[dict[str, Any], ...] = (
    {},
    {"ep": 2},
    {"ep": 4, "recompute": "full"},
    {"ep": 2, "dp": 2},
    {"ep": 2, "fsdp": 2},
    {"ep": 2, "tp": 2},
    {"ep": 2, "pp": 2},
)


def strategies_suite() -> tuple[Case, ...]:
    """Every strategy and product, for each decoder one global batch and one seed: their losses must coincide."""
    layouts = (DIVISIBLE, _STRATEGIES), (DIVISIBLE_TIED, _TIED), (DIVISIBLE_EXPERTS, _EXPERTS)
    pairs = [(model, layout) for model, all_of_it in layouts for layout in all_of_it]
    settings: dict[str, Any] = {
        "micro_batches": 4, "seq_len": 64, "precision": "fp32", "steps": 8, "warmup_steps": 2,
    }  # fmt: skip
    return tuple(
        _case(model, micro_batch=4 // math.prod(layout.get(axis, 1) for axis in DATA_AXES), **settings, **layout)
        for model, layout in pairs
    )


def forms_suite() -> tuple[Case, ...]:
    """The decoder's forms, one model and one seed but for the form, trained long enough to learn: positions, linear
    attention, norms. Batch normalisation's training loss is below its loss on held-out text, and is no loss of a model
    of text: it has seen what it predicts. Of few tokens a step the statistics are so unlike the running ones that
    held-out text is guessed worse than by frequency."""
    few: dict[str, Any] = {"micro_batch": 1, "seq_len": 32, "steps": 200, "learning_rate": 1e-3}
    learn: dict[str, Any] = {
        "micro_batch": 8, "seq_len": 128, "precision": "fp32", "steps": 120, "warmup_steps": 20, "learning_rate": 2e-3,
        "validation_batches": 4,
    }  # fmt: skip
    return (
        *(_case(name, **learn) for name in ("gpt-1m", "alibi-1m", "sinusoidal-1m", "linear-1m", "batchnorm-1m")),
        *(_case(name, attention="eager", **learn) for name in ("alibi-1m", "linear-1m")),
        *(
            _case({**to_mapping(preset(name)), "name": f"{name}-of-32-tokens"}, **(learn | few))
            for name in ("gpt-1m", "batchnorm-1m")
        ),
    )


def peers_suite() -> tuple[Case, ...]:
    """Layouts that other tools have an estimate of: both forms and precisions, replicas, shards, recomputation."""
    short: dict[str, Any] = {"seq_len": 256, "steps": 4, "warmup_steps": 1}
    gpt = short | {"precision": "fp32"}
    return (
        _case("gpt-1m", micro_batch=4, **gpt),
        _case("gpt-1m", micro_batch=4, recompute="full", **gpt),
        _case("gpt-10m", micro_batch=1, **gpt),
        _case("gpt-1m", micro_batch=2, fsdp=2, **gpt),
        _case("llama-1m", micro_batch=4, **short),
        _case("llama-1m", micro_batch=4, recompute="full", **short),
        _case("llama-10m", micro_batch=1, **short),
        _case("llama-1m", micro_batch=2, dp=2, **short),
        _case("llama-1m", micro_batch=2, fsdp=2, **short),
        _case("llama-1m", micro_batch=1, fsdp=4, **short),
        # DeepSpeed's own buckets would be forty times these models, and every error theirs
        _case("llama-1m", micro_batch=2, dp=2, zero=2, bucket_mib=1, **short),
        _case("llama-1m", micro_batch=2, dp=2, zero=3, bucket_mib=1, **short),
        _case("llama-10m", micro_batch=1, dp=2, zero=3, bucket_mib=1, **short),
    )


#: caches of the kv suite, each served by one rank: of every kind, number format and size
_CACHES: tuple[dict[str, Any], ...] = (
    {},
    {"allocation": "growing"},
    {"cache_tokens": 100},
    {"page_tokens": 16},
    {"cache_dtype": "bf16"},
    {"cache_dtype": "fp8"},
    {"cache_dtype": "int8"},
    {"cache_dtype": "int8", "quant_group": 8, "allocation": "growing"},
    {"cache_dtype": "int4", "quant_group": 16},
    {"cache_dtype": "int8", "page_tokens": 8},
    {"window": 24},
    {"window": 20, "sinks": 4},
    {"window": 16, "sinks": 4, "memory_block": 8, "representatives": 2, "fetched_blocks": 2},
)
#: what the same model with one, two and four key-value heads is served with, and how tokens are chosen
_ANSWERS: tuple[dict[str, Any], ...] = (
    {"micro_batch": 1, "seq_len": 128},
    {"micro_batch": 8, "seq_len": 24, "prefill_tokens": 10},
    {"precision": "bf16-mixed", "cache_dtype": "int8"},
    {"sampling": "top-k", "top_k": 20},
    {"sampling": "top-p", "top_p": 0.8, "cache_dtype": "bf16"},
    {"sampling": "beam", "beams": 3, "allocation": "growing"},
)
#: of a larger model, for times: batches and contexts
_TIMED: tuple[dict[str, Any], ...] = (
    {"micro_batch": 1, "seq_len": 128},
    {"micro_batch": 1, "seq_len": 512},
    {"micro_batch": 4, "seq_len": 128},
    {"micro_batch": 4, "seq_len": 256, "cache_dtype": "int8"},
    {"micro_batch": 8, "seq_len": 64},
)


def _with_heads(kv_heads: int) -> dict[str, Any]:
    """llama-1m with so many key-value heads: multi-query at 1, multi-head at 4."""
    return {**to_mapping(preset("llama-1m")), "name": f"llama-1m-kv{kv_heads}", "kv_heads": kv_heads}


def kv_suite() -> tuple[Case, ...]:
    """Caches of every kind, number format and size under tensor parallelism and without it: bytes and answers of tiny
    models, their loss where entries are rounded, and times of a larger one."""
    usual: dict[str, Any] = {
        "micro_batch": 3, "seq_len": 48, "shortest_prompt": 12, "new_tokens": 8, "precision": "fp32",
    }  # fmt: skip
    learned = usual | {
        "micro_batch": 8, "seq_len": 88, "validation_batches": 2, "steps": 150, "warmup_steps": 20,
        "learning_rate": 2e-3,
    }  # fmt: skip
    timed: dict[str, Any] = {"new_tokens": 16, "precision": "fp32"}
    return (
        *(_case("llama-1m", **(learned | cache)) for cache in _CACHES),
        *(_case(_with_heads(1), **(usual | changes)) for changes in _ANSWERS),
        *(_case(_with_heads(4), **(usual | cache)) for cache in ({}, {"page_tokens": 16}, {"cache_dtype": "int4"})),
        *(_case("gpt-1m", **(usual | cache)) for cache in ({}, {"precision": "bf16-mixed", "allocation": "growing"})),
        *(_case("mla-1m", **(usual | cache)) for cache in ({}, {"latent_form": "plain"}, {"cache_dtype": "int8"})),
        *(_case("llama-50m", **(timed | changes)) for changes in _TIMED),
        _case("llama-1m", tp=2, **usual),
        _case("llama-1m", tp=2, cache_dtype="int8", page_tokens=16, **usual),
        _case(_with_heads(1), tp=2, **usual),
        _case("mla-1m", tp=2, **usual),
        _case("gpt-1m", tp=2, sampling="beam", beams=2, **usual),
    )


def kv_times_suite() -> tuple[Case, ...]:
    """Times of served cases over batch, context, number format and kind of cache: what a prediction is held to."""
    sizes = [
        (model, batch, seq_len)
        for model in ("llama-10m", "gpt-50m")
        for batch in (1, 4, 16)
        for seq_len in (64, 256, 900)
        if model == "llama-10m" or batch * seq_len <= 4096  # a prompt's pass of the larger one takes seconds
    ]
    kinds: tuple[dict[str, Any], ...] = ({"cache_dtype": "int8"}, {"window": 128}, {"page_tokens": 16})
    return (
        *(
            _case(model, micro_batch=batch, seq_len=seq_len, precision=precision, new_tokens=24)
            for model, batch, seq_len in sizes
            for precision in ("fp32", "bf16")
        ),
        *(
            _case("llama-10m", micro_batch=batch, seq_len=seq_len, precision="fp32", new_tokens=24, **kind)
            for batch in (1, 8)
            for seq_len in (128, 700)
            for kind in kinds
        ),
    )


SUITES: dict[str, Callable[[], tuple[Case, ...]]] = {
    "default": default_suite,
    "quick": quick_suite,
    "strategies": strategies_suite,
    "forms": forms_suite,
    "families": families_suite,
    "peers": peers_suite,
    "memory": lambda: tuple(whole_matrix().cases),
    "memory-pairs": lambda: tuple(pairs_matrix().cases),
    "kv": kv_suite,
    "kv-times": kv_times_suite,
    "kv-pairs": lambda: tuple(pairs_cache_matrix().cases),
    "kv-matrix": lambda: tuple(whole_cache_matrix().cases),
}

#: suites of many tiny cases whose times nobody asks for: nothing is calibrated for them
UNTIMED = ("kv-pairs", "kv-matrix")

#: suites that are about some of the passes alone; where it is memory's, many small cases are run in one launch
PASSES: dict[str, tuple[Pass, ...]] = {
    "memory": (Pass.MEMORY, Pass.TRACE),
    "memory-pairs": (Pass.MEMORY, Pass.TRACE),
    "peers": (Pass.MEMORY, Pass.TRAFFIC),
}


def suite_of(name: str) -> tuple[Case, ...]:
    """The suite of that name; SpecError names the known ones."""
    if name not in SUITES:
        raise SpecError(f"--suite: {name!r} is not known; {nearest(name, [*SUITES, 'plan', 'speed'])}")
    return SUITES[name]()
