"""What cannot be served: each rule by a case that breaks it and none before it, refused in one line with its reason."""

from __future__ import annotations

from typing import Any

import pytest

from suite.case import case_from
from suite.parse import SpecError
from suite.serving_rules import SERVING_RULES

pytestmark = pytest.mark.unit

SMALL = {"family": "decoder", "layers": 2, "hidden": 64, "heads": 4, "vocab": 64, "max_positions": 128}
WINDOWED = SMALL | {"window": 32}
LATENT = SMALL | {"latent": {"kv_rank": 32, "rope_dim": 8, "nope_dim": 16, "v_dim": 16}}
NARROW = {**SMALL, "head_dim": 15, "norm": "layernorm", "activation": "gelu", "position": "learned", "bias": True}
BLOCKS = {"window": 16, "sinks": 4, "memory_block": 8}

BROKEN: dict[str, dict[str, Any]] = {
    "a training layout that is served": {"layout": {"fsdp": 2}},
    "prompt and answer beyond the model's positions": {"workload": {"seq_len": 125}},
    "prompts longer than the cache": {"cache": {"cache_tokens": 31}},
    "a shortest prompt above the longest": {"serving": {"shortest_prompt": 33}},
    "more beams or candidates than words": {"serving": {"sampling": "beam", "beams": 65}},
    "a scale's group that does not divide a head": {"cache": {"cache_dtype": "int8", "quant_group": 5}},
    "int4 with an odd head": {"model": NARROW, "cache": {"cache_dtype": "int4"}},
    "latent attention with a cache that forgets": {"model": LATENT, "cache": {"window": 16}},
    "a latent form without latent attention": {"cache": {"latent_form": "plain"}},
    "pages of a cache that forgets": {"cache": {"page_tokens": 4, "window": 16}},
    "blocks of a cache that grows": {"cache": BLOCKS | {"allocation": "growing"}},
    "a block memory's window beyond the model's positions": {
        "workload": {"seq_len": 200}, "cache": BLOCKS | {"window": 128},
    },
    "a block memory's window beyond the model's own": {"model": WINDOWED, "cache": BLOCKS | {"window": 33}},
    "a rolling buffer that grows": {"cache": {"window": 16, "allocation": "growing"}},
    "sinks and a window beyond the model's positions": {
        "workload": {"seq_len": 200}, "cache": {"window": 126, "sinks": 4},
    },
    "sinks and a window beyond the model's own window": {"model": WINDOWED, "cache": {"window": 30, "sinks": 4}},
    "pages of a cache that grows": {"cache": {"page_tokens": 4, "allocation": "growing"}},
    "prompts of more pages than there are": {"cache": {"page_tokens": 4, "cache_tokens": 20}},
}  # fmt: skip


def test_every_rule_has_a_case_that_breaks_it() -> None:
    assert list(BROKEN) == [rule.what for rule in SERVING_RULES]


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_rule_is_one_line_with_its_values_and_its_reason(what: str) -> None:
    given = BROKEN[what]
    parts = {name: given.get(name, {}) for name in ("workload", "serving", "cache", "layout")}
    case = {
        "model": given.get("model", SMALL), "layout": parts["layout"], "cache": parts["cache"],
        "workload": {"seq_len": 32} | parts["workload"], "serving": {"new_tokens": 4} | parts["serving"],
    }  # fmt: skip
    with pytest.raises(SpecError) as refusal:
        case_from(case)
    why = next(rule.why for rule in SERVING_RULES if rule.what == what)
    assert str(refusal.value).endswith(f": {why}")
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("part", "words"),
    [
        ({"serving": {"sampling": "beam"}}, "serving: has settings, but the case is trained"),
        ({"cache": {"window": 8}}, "cache: window8, but the case is trained"),
    ],
)
def test_settings_of_serving_are_refused_in_training(part: dict[str, Any], words: str) -> None:
    with pytest.raises(SpecError, match=f"^{words}; give"):
        case_from({"model": SMALL, "workload": {"seq_len": 32}, **part})


def test_a_window_is_not_trained_beyond_its_length() -> None:
    case_from({"model": WINDOWED, "workload": {"seq_len": 32}})
    with pytest.raises(SpecError, match=r"^model.window\(32\) < workload.seq_len\(33\): training within a window"):
        case_from({"model": WINDOWED, "workload": {"seq_len": 33}})
