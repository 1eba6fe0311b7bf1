"""What `kv --compare` names: the grammar, its refusals, and what each word changes."""

from __future__ import annotations

import pytest

from suite.cache import CacheDtype, CacheSpec
from suite.cache_choices import FORMS, parse_choices
from suite.case import Case, case_from
from suite.parse import SpecError

pytestmark = pytest.mark.unit

MODEL = {"layers": 2, "hidden": 64, "heads": 8, "kv_heads": 4, "ffn": 96, "vocab": 512, "max_positions": 256}


def case_of(tp: int = 1, **cache: object) -> Case:
    return case_from({
        "model": MODEL, "layout": {"tp": tp}, "workload": {"seq_len": 24}, "serving": {"new_tokens": 8}, "cache": cache,
    })  # fmt: skip


def chosen(text: str, case: Case | None = None) -> Case:
    (choice,) = parse_choices(text)
    return choice.of(case or case_of())


def test_choices_stand_in_their_order_and_words_are_joined() -> None:
    names = ["gqa=2", "mqa+int8/4", "sinks=4+16+int4", "page=16"]
    assert [choice.name for choice in parse_choices(",".join(names))] == names


@pytest.mark.parametrize(
    ("text", "kv_heads", "cache"),
    [
        ("mha", 8, CacheSpec()),
        ("gqa", 8, CacheSpec()),
        ("gqa=2", 2, CacheSpec()),
        ("mqa", 1, CacheSpec()),
        ("window=16", 4, CacheSpec(window=16)),
        ("sinks=4+16", 4, CacheSpec(window=16, sinks=4)),
        ("int8", 4, CacheSpec(cache_dtype=CacheDtype.INT8)),
        ("int4/2", 4, CacheSpec(cache_dtype=CacheDtype.INT4, quant_group=2)),
        ("page=16", 4, CacheSpec(page_tokens=16)),
        ("mqa+fp8", 1, CacheSpec(cache_dtype=CacheDtype.FP8)),
        ("sinks=4+16+fp8", 4, CacheSpec(window=16, sinks=4, cache_dtype=CacheDtype.FP8)),
    ],
)
def test_a_word_changes_attention_or_the_cache_and_nothing_else(text: str, kv_heads: int, cache: CacheSpec) -> None:
    case, found = case_of(), chosen(text)
    assert (found.model.kv_heads, found.model.head_dim, found.cache) == (kv_heads, 8, cache)
    assert (found.workload, found.layout, found.serving) == (case.workload, case.layout, case.serving)


def test_a_latent_has_deepseek_v2s_proportions_and_is_given_up_again() -> None:
    """d_c = 4 d_h and d_rope = d_h / 2 (arXiv:2405.04434, table 1); heads here are 8 wide."""
    latent = chosen("mla")
    assert latent.model.latent is not None
    assert (latent.model.latent.kv_rank, latent.model.latent.rope_dim) == (32, 4)
    back = chosen("mqa", latent).model
    assert (back.latent, back.kv_heads, back.head_dim) == (None, 1, 8)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("gqq", "'gqq' is not known; did you mean gqa?"),
        ("int3", "'int3': no cache has elements of 3 bits in that form; take fp32, bf16, fp16, fp8, int8, int4"),
        ("window=0", "'window=0': '0' is not a whole number above zero"),
        ("page=0", "'page=0': '0' is not a whole number above zero"),
        ("window", "'window': write window=N"),
        ("sinks=4", "'sinks=4': write sinks=N+M, the first N and the newest M"),
        ("mha=3", "'mha=3': mha takes no number"),
        ("mqa+gqa", "mqa+gqa: mqa and gqa both say attention; leave one out"),
        ("page=16+window=16", "page=16+window=16: pages are freed with their sequence, and window=16 forgets tokens"),
        ("mqa,mqa", "'mqa' is named twice"),
        ("mqa,", "'mqa,' has an empty choice; known: "),
        ("int8/\N{SUPERSCRIPT TWO}", "is not a whole number above zero"),
    ],
)
def test_what_is_no_choice_is_refused_in_one_line(text: str, words: str) -> None:
    with pytest.raises(SpecError) as refused:
        parse_choices(text)
    assert str(refused.value).startswith("--compare: ")
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("gqa=3", r"gqa=3: model.kv_heads: heads\(8\) % kv_heads\(3\) != 0"),
        ("int4/3", r"int4/3: cache.quant_group\(3\)"),
    ],
)
def test_a_choice_that_the_case_does_not_take_is_refused_by_name(text: str, words: str) -> None:
    with pytest.raises(SpecError, match=words):
        chosen(text)


def test_tp_that_divides_no_heads_is_refused_and_one_that_they_divide_copies_them() -> None:
    assert chosen("mqa", case_of(tp=4)).model.kv_heads == 1
    wide = case_from({
        "model": MODEL | {"heads": 12, "head_dim": 8, "kv_heads": 12}, "layout": {"tp": 4},
        "workload": {"seq_len": 24}, "serving": {"new_tokens": 8},
    })  # fmt: skip
    with pytest.raises(SpecError, match=r"--compare: gqa=6: model.kv_heads\(6\) % layout.tp\(4\) != 0"):
        chosen("gqa=6", wide)


def test_the_help_names_every_word() -> None:
    assert set(FORMS) == {
        "mha", "gqa", "mqa", "mla", "window", "sinks", "page", "int8", "int4", "fp8", "bf16", "fp16", "fp32",
    }  # fmt: skip
