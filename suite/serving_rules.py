"""What cannot be served, and why: the rules of a Case whose `serving.new_tokens` is given, and of one without."""

from __future__ import annotations

from typing import TYPE_CHECKING

from suite.cache import Allocation, CacheKind, CacheSpec
from suite.layout import Layout
from suite.layout_rules import Rule
from suite.models.decoder import Position
from suite.parse import require
from suite.serving import Serving
from suite.serving_lengths import pages_for, prompt_lengths

if TYPE_CHECKING:
    from suite.case import Case


def context_tokens(case: Case) -> int:
    """Tokens of a sequence when its answer is whole."""
    return case.workload.seq_len + (case.serving.new_tokens or 0)


def _has_training_settings(case: Case) -> bool:
    layout = case.layout
    plain = Layout(
        tp=layout.tp, pp=layout.pp, dp=layout.dp, schedule=layout.schedule, virtual_stages=layout.virtual_stages,
        stage_split=layout.stage_split, sequence_parallel=layout.sequence_parallel,
    )  # fmt: skip
    return layout != plain


def _counts_places_anew(case: Case) -> bool:
    """Are positions those within the cache, so that no text is too long? (arXiv:2309.17453, section 3.2)"""
    return case.cache.kind in (CacheKind.SINKS, CacheKind.BLOCKS) and case.model.position is Position.ROPE


def _page_demand(case: Case) -> tuple[int, int]:
    """Pages that the prompts take and pages that there are, where a paged cache's room is given; both of one beam."""
    size, room = case.cache.page_tokens, case.cache.cache_tokens
    if size is None or room is None:
        return 0, 0
    return pages_for(prompt_lengths(case), size), case.workload.micro_batch * pages_for((room,), size)


SERVING_RULES: tuple[Rule[Case], ...] = (
    Rule(
        "a training layout that is served",
        "serving takes tp, pp and dp (replicas) alone",
        _has_training_settings,
        lambda case: f"layout: {case.layout}",
    ),
    Rule(
        "prompt and answer beyond the model's positions",
        "shorten one of them, or let a rotary model keep sinks and a window, whose positions are counted anew",
        lambda case: context_tokens(case) > case.model.max_positions and not _counts_places_anew(case),
        lambda case: f"serving.new_tokens: seq_len({case.workload.seq_len}) + {case.serving.new_tokens}"
        f" = {context_tokens(case)} is beyond max_positions({case.model.max_positions}) of {case.model.name}",
    ),
    Rule(
        "prompts longer than the cache",
        "nothing is cut off in silence; give the cache more tokens, or the prompt fewer",
        lambda case: case.cache.kind is CacheKind.FULL and case.cache.page_tokens is None
        and (case.cache.cache_tokens or case.workload.seq_len) < case.workload.seq_len,
        lambda case: f"workload.seq_len({case.workload.seq_len}) > cache.cache_tokens({case.cache.cache_tokens})",
    ),
    Rule(
        "a shortest prompt above the longest",
        "prompts' lengths are spread from one to the other",
        lambda case: case.serving.shortest_prompt > case.workload.seq_len,
        lambda case: f"serving.shortest_prompt({case.serving.shortest_prompt})"
        f" > workload.seq_len({case.workload.seq_len})",
    ),
    Rule(
        "more beams or candidates than words",
        "tokens are drawn from the vocabulary",
        lambda case: max(case.serving.top_k * (case.serving.sampling == "top-k"), case.serving.copies)
        > case.model.vocab,
        lambda case: f"serving.top_k({case.serving.top_k}), serving.beams({case.serving.beams})"
        f" with model.vocab({case.model.vocab})",
    ),
    Rule(
        "a scale's group that does not divide a head",
        "every scale serves as many elements of one head",
        lambda case: bool(case.cache.quant_group) and case.model.head_dim % case.cache.quant_group != 0,
        lambda case: f"cache.quant_group({case.cache.quant_group}) with model.head_dim({case.model.head_dim})",
    ),
    Rule(
        "int4 with an odd head",
        "two codes share a byte",
        lambda case: case.cache.cache_dtype == "int4" and case.model.head_dim % 2 != 0,
        lambda case: f"cache.cache_dtype(int4) with model.head_dim({case.model.head_dim})",
    ),
    Rule(
        "pages of a cache that forgets",
        "pages are freed with their sequence; a window, sinks and blocks have their own arrays",
        lambda case: case.cache.page_tokens is not None and case.cache.kind is not CacheKind.FULL,
        lambda case: f"cache.page_tokens({case.cache.page_tokens}) with cache.window({case.cache.window})",
    ),
    Rule(
        "pages of a cache that grows",
        "pages are taken of a pool that is there from the start; take allocation static",
        lambda case: case.cache.page_tokens is not None and case.cache.allocation is Allocation.GROWING,
        lambda case: f"cache.page_tokens({case.cache.page_tokens}) with cache.allocation({case.cache.allocation})",
    ),
    Rule(
        "prompts of more pages than there are",
        "the pool has micro_batch * ceil(cache_tokens / page_tokens) pages; give it more tokens, or the prompts fewer",
        lambda case: _page_demand(case)[0] > _page_demand(case)[1],
        lambda case: f"cache.cache_tokens({case.cache.cache_tokens}): prompts of {_page_demand(case)[0]} pages in a"
        f" pool of {_page_demand(case)[1]}",
    ),
)  # fmt: skip


def check_serving(case: Case) -> None:
    """Refuse what cannot be served; of a case that is trained, settings that only serving has."""
    if case.serves:
        for rule in SERVING_RULES:
            require(not rule.is_broken(case), f"{rule.values(case)}: {rule.why}")
        return
    require(case.serving == Serving(), "serving: has settings, but the case is trained; give new_tokens to serve it")
    require(
        case.cache == CacheSpec(), f"cache: {case.cache}, but the case is trained; give serving.new_tokens to serve it"
    )
    window = case.model.window
    require(
        window is None or case.workload.seq_len <= window,
        f"model.window({window}) < workload.seq_len({case.workload.seq_len}): training within a window is not modelled"
        f" yet; take sequences of at most {window} tokens, or serve the model",
    )
