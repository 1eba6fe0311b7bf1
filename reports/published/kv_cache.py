"""Rows about key-value caches: bytes a token by formula, and what an engine's pool has room for."""

from __future__ import annotations

import re

from memory.kv_cache import CACHE_BYTES, kv_blocks, kv_bytes_per_token, latent_bytes_per_token
from reports.published.answers import CannotModel, Prediction
from reports.published.vllm import predict_pool, predict_profile, stated_share
from suite.published import PublishedRow
from suite.units import GIB

_AT_TOKENS = re.compile(r"kv_bytes_(?:at|per_sequence)_(\d+)(?:_tokens)?", flags=re.ASCII)
_CONCURRENCY = re.compile(r"max_concurrency\(([\d.]+)x\)", flags=re.ASCII)
_PRINTED_GIB = re.compile(r"\(([\d.]+) GiB\)", flags=re.ASCII)


def predict_kv_cache(row: PublishedRow) -> Prediction:
    """A cache's figure. CannotModel where its layers differ, or the engine's own profile is the figure."""
    metric = row.text("metric")
    if row.says("attn", "sliding", "window"):
        return _windowed(row)
    if metric == "profile_kv_cache":
        return _pool(row)
    if metric.startswith("profile_"):
        return predict_profile(row)
    token, said, assumed = _token_bytes(row)
    if metric in ("kv_bytes_per_token", "kv_kib_per_token"):
        return Prediction(token, said, assumed)
    length = _AT_TOKENS.fullmatch(metric)
    if length:
        return _sequence(row, int(length[1]), token, said, assumed)
    return _capacity(row, token, said, assumed)


def _token_bytes(row: PublishedRow) -> tuple[int, str, tuple[str, ...]]:
    """(bytes a token, the formula, what was assumed)."""
    layers, tp = row.need("layers"), row.count("tp") or 1
    names = re.findall(r"[a-z]+\d+", row.text("kv_dtype").lower())
    sizes = {CACHE_BYTES[name] for name in names if name in CACHE_BYTES}
    if len(sizes) > 1:
        raise CannotModel(f"kv_dtype {row.text('kv_dtype')!r} is more than one size")
    assumed = () if sizes else ("cache in 16 bits: its format is not stated",)
    size = sizes.pop() if sizes else 2
    latent = row.count("kv_lora_rank")
    if latent:
        rope = row.count("rope_dim") or 0
        return latent_bytes_per_token(layers, latent, rope, size), f"L*(d_c+d_rope)*{size}", assumed
    heads, width = row.need("kv_heads"), row.need("head_dim")
    return kv_bytes_per_token(layers, heads, width, size, tp), f"2*L*k*d*{size}" + (" / tp" if tp > 1 else ""), assumed


def _sequence(row: PublishedRow, tokens: int, token: int, said: str, assumed: tuple[str, ...]) -> Prediction:
    if "1,024 tokens" in row.text("notes") and tokens == 1000:
        return Prediction(token * 1024, f"{said} x 1024 tokens", (*assumed, "1k is 1,024 tokens, as the notes say"))
    return Prediction(token * tokens, f"{said} x {tokens} tokens", assumed)


def _capacity(row: PublishedRow, token: int, said: str, assumed: tuple[str, ...]) -> Prediction:
    """Tokens or blocks that a stated pool has room for."""
    metric, pool = row.text("metric"), _stated_or_predicted(row)
    assumed = (*assumed, *pool.assumed)
    if metric == "gpu_blocks":
        block = row.need("block_size")
        blocks, per = kv_blocks(pool.value, block, token), f"({block} tokens x {said}), whole blocks"
        return Prediction(blocks, f"{pool.basis} / {per}", assumed, pool.fitted_on)
    if metric == "kv_capacity_tokens":
        return Prediction(pool.value // token, f"{pool.basis} / ({said})", assumed, pool.fitted_on)
    if metric == "max_concurrency":
        longest = row.need("max_model_len")
        return Prediction(
            pool.value / token / longest, f"{pool.basis} / ({said} x max_model_len)", assumed, pool.fitted_on
        )
    if metric == "max_kv_slots_tokens":  # of a whole model on all its GPUs, as its paper's table has it
        every = token * (row.count("tp") or 1)
        return Prediction(pool.value // every, "pool of all ranks / (2*L*k*d)", (*assumed, "the pool is all ranks'"))
    raise CannotModel(f"{metric}: not a figure that a formula here gives")


def _stated_or_predicted(row: PublishedRow) -> Prediction:
    """The pool in bytes: as stated, unless it was worked out from the row's own figure."""
    pool = row.number("kv_mem_gib")
    if pool is not None and not row.says("notes", "implied"):
        return Prediction(pool * GIB, "pool")
    return predict_pool(row)


def _windowed(row: PublishedRow) -> Prediction:
    """Where layers keep a window vLLM prints concurrency x max_model_len as the cache's size, no room for tokens."""
    printed = _CONCURRENCY.search(row.text("notes"))
    if printed is None or row.text("metric") != "kv_capacity_tokens":
        raise CannotModel("layers that keep a window: which, and how wide, is not stated")
    assumed = ("the concurrency is the log's own, in its digits: layers, widths and windows are not stated",)
    return Prediction(float(printed[1]) * row.need("max_model_len"), "max_concurrency x max_model_len", assumed)


def _pool(row: PublishedRow) -> Prediction:
    """What is left of a device for the cache: total x share - weights - outside torch - activations."""
    printed = _PRINTED_GIB.search(row.text("gpu_type"))
    taken = [row.number(name) for name in ("weights_gib", "non_torch_gib", "act_peak_gib")]
    if printed is None or None in taken:
        return predict_pool(row)
    rest = float(printed[1]) * stated_share(row) - sum(size for size in taken if size is not None)
    return Prediction(rest * GIB, "total*share - weights - non-torch - activation peak")
