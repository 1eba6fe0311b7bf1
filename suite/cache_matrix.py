"""The suites of caches: forms of attention, kinds of cache, number formats, prompts and ranks; all, or in pairs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

from suite.case import Case, case_from
from suite.matrix import Choice, Matrix
from suite.pairwise import pairwise
from suite.parse import SpecError

_SIZES: dict[str, Any] = {
    "family": "decoder", "layers": 2, "hidden": 64, "heads": 4, "ffn": 96, "vocab": 512, "max_positions": 64,
}  # fmt: skip
_GPT = {"norm": "layernorm", "activation": "gelu", "position": "learned", "bias": True, "tied": True}
FORMS: Mapping[str, dict[str, Any]] = {
    "mha": _SIZES | _GPT,
    "gqa": _SIZES | {"kv_heads": 2},
    "mqa": _SIZES | {"kv_heads": 1, "rope_fraction": 0.5},
    "own window": _SIZES | {"kv_heads": 2, "window": 20},
    "latent": _SIZES | {"latent": {"kv_rank": 32, "rope_dim": 8, "nope_dim": 16, "v_dim": 16}},
    "latent queries": _SIZES | {"latent": {"kv_rank": 32, "rope_dim": 8, "nope_dim": 16, "v_dim": 16, "q_rank": 24}},
}
KINDS: Mapping[str, dict[str, Any]] = {
    "static": {},
    "growing": {"allocation": "growing"},
    "plain": {"latent_form": "plain"},
    "pages": {"page_tokens": 5},
    "window": {"window": 16},
    "sinks": {"window": 12, "sinks": 4},
    "blocks": {"window": 8, "sinks": 2, "memory_block": 4, "representatives": 2, "fetched_blocks": 2},
}
FORMATS: Mapping[str, dict[str, Any]] = {
    "auto": {},
    "fp32": {"cache_dtype": "fp32"},
    "bf16": {"cache_dtype": "bf16"},
    "fp16": {"cache_dtype": "fp16"},
    "fp8": {"cache_dtype": "fp8"},
    "int8": {"cache_dtype": "int8"},
    "int8 by 8": {"cache_dtype": "int8", "quant_group": 8},
    "int4": {"cache_dtype": "int4"},
    "int4 by 4": {"cache_dtype": "int4", "quant_group": 4},
}
#: batch, length, shortest, and how the prompts are read
PROMPTS: Mapping[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "one": ({"micro_batch": 1, "seq_len": 24}, {}),
    "three of lengths": ({"micro_batch": 3, "seq_len": 40}, {"shortest_prompt": 3}),
    "two in parts": ({"micro_batch": 2, "seq_len": 33}, {"prefill_tokens": 7}),
    "a token": ({"micro_batch": 2, "seq_len": 1}, {}),
}
CHOOSING: Mapping[str, dict[str, Any]] = {
    "greedy": {},
    "top-k": {"sampling": "top-k", "top_k": 9},
    "top-p": {"sampling": "top-p"},
    "beam": {"sampling": "beam", "beams": 3},
}
RANKS: Mapping[str, dict[str, Any]] = {"single": {}, "tp": {"tp": 2}, "tp 4": {"tp": 4}, "dp": {"dp": 2}}

#: what the whole matrix multiplies; the other settings are at their first value there
WHOLE: Mapping[str, Sequence[str]] = {
    "ranks": ("single", "tp", "tp 4"),
    "form": ("mha", "gqa", "mqa", "own window", "latent"),
    "kind": tuple(KINDS),
    "format": ("auto", "bf16", "fp8", "int8", "int4 by 4"),
    "prompts": ("one", "three of lengths"),
}
FACTORS: Mapping[str, Sequence[str]] = {
    "ranks": tuple(RANKS),
    "form": tuple(FORMS),
    "kind": tuple(KINDS),
    "format": tuple(FORMATS),
    "prompts": tuple(PROMPTS),
    "choosing": tuple(CHOOSING),
    "precision": ("fp32", "bf16", "fp16-mixed"),
}
NEW_TOKENS = 7


def whole_cache_matrix() -> Matrix:
    """Every kind of cache in every number format, of every form of attention, by prompts and ranks."""
    choices = (dict(zip(WHOLE, values, strict=True)) for values in product(*WHOLE.values()))
    return Matrix(tuple(choices), _served)


def pairs_cache_matrix() -> Matrix:
    """A covering sample of more settings: every two values of every two factors meet in some combination. Cases of as
    many ranks stand together."""
    order = {name: place for place, name in enumerate(RANKS)}
    return Matrix(tuple(sorted(pairwise(FACTORS), key=lambda choice: order[choice["ranks"]])), _served)


def _served(choice: Choice) -> Case | str:
    """The case of a combination, or the reason why there is none."""
    workload, prompts = PROMPTS[choice["prompts"]]
    try:
        return case_from({
            "model": FORMS[choice["form"]] | {"name": choice["form"].replace(" ", "-")},
            "layout": RANKS[choice["ranks"]],
            "workload": workload | {"precision": choice.get("precision", "fp32")},
            "serving": {"new_tokens": NEW_TOKENS} | prompts | CHOOSING[choice.get("choosing", "greedy")],
            "cache": KINDS[choice["kind"]] | FORMATS[choice["format"]],
        })  # fmt: skip
    except SpecError as error:
        return str(error)
