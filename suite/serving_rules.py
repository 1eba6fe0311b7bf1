"""What cannot be served, and why: the rules of a Case whose `serving.new_tokens` is given, and of one without."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from suite.cache import Allocation, CacheKind, CacheSpec, LatentForm
from suite.layout import Layout
from suite.layout_rules import Rule
from suite.models.decoder import Position
from suite.parse import SpecError, require
from suite.serving import Serving
from suite.serving_lengths import pages_for, prompt_lengths

if TYPE_CHECKING:
    from suite.case import Case


def context_tokens(case: Case) -> int:
    """Tokens of a sequence when its answer is whole."""
    return case.workload.seq_len + (case.serving.new_tokens or 0)


def kept_window(case: Case) -> int | None:
    """Newest tokens that a query may see of a served case's cache: the smaller of the cache's window and the model's
    own; None: all."""
    windows = [window for window in (case.cache.window, case.model.window) if window is not None]
    return min(windows, default=None)


def kept_tokens(case: Case) -> int | None:
    """Most tokens that a cache which forgets keeps of a sequence, its sinks included; None where it keeps all: pages,
    and blocks, which the host has."""
    window = kept_window(case)
    if window is None or case.cache.page_tokens is not None or case.cache.kind is CacheKind.BLOCKS:
        return None
    return window + (case.cache.sinks or 0)


def _sinks_and_window(case: Case) -> str:
    return f"cache.sinks({case.cache.sinks}) + cache.window({case.cache.window})"


def _has_sinks(case: Case) -> bool:
    return case.cache.kind is CacheKind.SINKS


def _has_blocks(case: Case) -> bool:
    return case.cache.kind is CacheKind.BLOCKS


def _has_training_settings(case: Case) -> bool:
    layout = case.layout
    plain = Layout(
        tp=layout.tp, pp=layout.pp, dp=layout.dp, schedule=layout.schedule, virtual_stages=layout.virtual_stages,
        stage_split=layout.stage_split, sequence_parallel=layout.sequence_parallel,
    )  # fmt: skip
    return layout != plain


def _stored_widths(case: Case) -> dict[str, int]:
    """Elements of each vector that a token leaves in a layer, by the field that says so."""
    latent = case.model.latent
    if latent is None:
        return {"model.head_dim": case.model.head_dim}
    return {"model.latent.kv_rank": latent.kv_rank, "model.latent.rope_dim": latent.rope_dim}


def _widths(case: Case) -> str:
    return ", ".join(f"{name}({width})" for name, width in _stored_widths(case).items())


def _counts_places_anew(case: Case) -> bool:
    """Are positions those within the cache, so that no text is too long? (arXiv:2309.17453, section 3.2)"""
    return case.cache.kind in (CacheKind.SINKS, CacheKind.BLOCKS) and case.decoder.position is Position.ROPE


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
        lambda case: case.cache.page_tokens is None
        and (case.cache.cache_tokens or case.workload.seq_len)
        < min(case.workload.seq_len, kept_tokens(case) or case.workload.seq_len),
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
        lambda case: bool(case.cache.quant_group)
        and any(width % case.cache.quant_group for width in _stored_widths(case).values()),
        lambda case: f"cache.quant_group({case.cache.quant_group}) with {_widths(case)}",
    ),
    Rule(
        "int4 with an odd head",
        "two codes share a byte",
        lambda case: case.cache.cache_dtype == "int4" and any(width % 2 for width in _stored_widths(case).values()),
        lambda case: f"cache.cache_dtype(int4) with {_widths(case)}",
    ),
    Rule(
        "latent attention with a cache that forgets",
        "a window, sinks and blocks are held to models whose keys are kept as they are; leave them out",
        lambda case: case.model.latent is not None and case.cache.kind is not CacheKind.FULL,
        lambda case: f"model.latent with cache.window({case.cache.window})",
    ),
    Rule(
        "a latent form without latent attention",
        "keys and values of their own are read as they are; use absorbed, its default",
        lambda case: case.model.latent is None and case.cache.latent_form is not LatentForm.ABSORBED,
        lambda case: f"cache.latent_form({case.cache.latent_form}) with {case.model.name}",
    ),
    Rule(
        "pages of a cache that forgets",
        "pages are freed with their sequence; a window, sinks and blocks have their own arrays",
        lambda case: case.cache.page_tokens is not None and case.cache.kind is not CacheKind.FULL,
        lambda case: f"cache.page_tokens({case.cache.page_tokens}) with cache.window({case.cache.window})",
    ),
    Rule(
        "blocks of a cache that grows",
        "the host's blocks have their room from the start; take allocation static",
        lambda case: _has_blocks(case) and case.cache.allocation is Allocation.GROWING,
        lambda case: f"cache.memory_block({case.cache.memory_block}) with cache.allocation({case.cache.allocation})",
    ),
    Rule(
        "a block memory's window beyond the model's positions",
        "what is far stands one place behind the window; take a smaller window",
        lambda case: _has_blocks(case) and case.decoder.position is Position.ROPE
        and min(context_tokens(case), (case.cache.window or 0) + 1) > case.model.max_positions,
        lambda case: f"cache.window({case.cache.window}) + 1 > model.max_positions({case.model.max_positions})",
    ),
    Rule(
        "a block memory's window beyond the model's own",
        "the model reads no distances beyond its own; take a smaller window",
        lambda case: _has_blocks(case) and (case.cache.window or 0) > (case.model.window or math.inf),
        lambda case: f"cache.window({case.cache.window}) > model.window({case.model.window})",
    ),
    Rule(
        "a rolling buffer that grows",
        "a window's buffer is taken whole, and is no longer than the text; take allocation static",
        lambda case: kept_tokens(case) is not None and case.cache.allocation is Allocation.GROWING,
        lambda case: f"cache.allocation(growing) with cache.window({case.cache.window}),"
        f" model.window({case.model.window})",
    ),
    Rule(
        "sinks and a window beyond the model's positions",
        "places are counted within the cache, and the model knows no more of them; take a smaller window",
        lambda case: _has_sinks(case) and _counts_places_anew(case)
        and min(kept_tokens(case) or 0, context_tokens(case)) > case.model.max_positions,
        lambda case: f"{_sinks_and_window(case)} > model.max_positions({case.model.max_positions})",
    ),
    Rule(
        "sinks and a window beyond the model's own window",
        "the model reads that many tokens and no more; take a smaller window",
        lambda case: _has_sinks(case)
        and (case.cache.sinks or 0) + (case.cache.window or 0) > (case.model.window or math.inf),
        lambda case: f"{_sinks_and_window(case)} > model.window({case.model.window})",
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
        require(
            case.model.is_causal_decoder,
            f"serving: model.family({case.model.family}) does not answer prompts through a cache; serve a decoder",
        )
        for rule in SERVING_RULES:
            if rule.is_broken(case):
                raise SpecError(f"{rule.values(case)}: {rule.why}")
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
