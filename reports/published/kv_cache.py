"""Rows about key-value caches: bytes a token by formula, and what an engine's pool has room for."""

from __future__ import annotations

import re

from memory.kv_cache import CACHE_BYTES, kv_blocks, kv_bytes_per_token, latent_bytes_per_token
from reports.published.answers import CannotModel, Prediction
from suite.published import PublishedRow
from suite.units import GIB

_AT_TOKENS = re.compile(r"kv_bytes_(?:at|per_sequence)_(\d+)(?:_tokens)?", flags=re.ASCII)
_PRINTED_GIB = re.compile(r"\(([\d.]+) GiB\)", flags=re.ASCII)


def predict_kv_cache(row: PublishedRow) -> Prediction:
    """A cache's figure. CannotModel where its layers differ, or the engine's own profile is the figure."""
    metric = row.text("metric")
    if row.says("attn", "sliding", "window"):
        raise CannotModel("layers that keep a window: not modelled yet")
    if metric == "profile_kv_cache":
        return _pool(row)
    if metric.startswith("profile_"):
        raise CannotModel(
            f"{metric}: what an engine's profiling run found; the row has no architecture to predict from"
        )
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
    metric, pool = row.text("metric"), row.number("kv_mem_gib")
    if pool is None:
        raise CannotModel(f"{metric}: the pool's size is not stated")
    if row.says("notes", "implied"):
        raise CannotModel(f"{metric}: the pool was worked out from this very figure, so it would predict itself")
    if metric == "gpu_blocks":
        block = row.need("block_size")
        return Prediction(
            kv_blocks(pool * GIB, block, token), f"pool / ({block} tokens x {said}), whole blocks", assumed
        )
    if metric == "kv_capacity_tokens":
        return Prediction(pool * GIB // token, f"pool / ({said})", assumed)
    if metric == "max_kv_slots_tokens":  # of a whole model on all its GPUs, as its paper's table has it
        every = token * (row.count("tp") or 1)
        return Prediction(pool * GIB // every, "pool of all ranks / (2*L*k*d)", (*assumed, "the pool is all ranks'"))
    raise CannotModel(f"{metric}: not a figure that a formula here gives")


def _pool(row: PublishedRow) -> Prediction:
    """What is left of a device for the cache: total x share - weights - outside torch - activations."""
    printed = _PRINTED_GIB.search(row.text("gpu_type"))
    share = row.number("gpu_mem_util")
    taken = [row.number(name) for name in ("weights_gib", "non_torch_gib", "act_peak_gib")]
    if printed is None or share is None or None in taken:
        raise CannotModel("profile_kv_cache: the device's total, its share or what else lives there is not stated")
    rest = float(printed[1]) * share - sum(size for size in taken if size is not None)
    return Prediction(rest * GIB, "total*share - weights - non-torch - activation peak")
