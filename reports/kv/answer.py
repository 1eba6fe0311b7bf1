"""What `kv` answers, as one document: the cache, what fits, how fast, every term; and the same of each choice."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from memory.caches.model import cache_terms
from memory.caches.paged import fragmentation
from memory.inference import InferenceModel, Phase
from memory.published_inference import fullest_rank, inference_of, resized
from memory.serving_limits import MOST_SEQUENCES, Limits
from parallelism.simulator.serving_time import roofline_of, serving_time, tokens_per_second
from parallelism.simulator.serving_work import arithmetic_intensity, decode_work
from reports.kv.options import Asked
from suite.case import Case
from suite.hardware import DeviceKind, device
from suite.layout import Layout
from suite.models.served import served_model_of
from suite.parse import SpecError
from suite.record import CacheTerm, Component, Quantity
from suite.spec import Cluster

#: what the rows of `--compare` call the case itself
AS_IT_IS = "as it is"


def serving_mapping(asked: Asked) -> dict[str, Any]:
    """`kv --json`. SpecError for a choice that the model or the layout does not take."""
    case, model = asked.case, inference_of(asked.case)
    rank, peak = fullest_rank(model)
    room, cache = room_of(case, asked.memory_share), cache_terms(case, rank)
    published = served_model_of(case.decoder)
    rows = [_row(asked, AS_IT_IS, case)]
    rows += [_row(asked, choice.name, choice.of(case)) for choice in asked.choices]
    answer = {
        "case_id": case.case_id,
        "case": case.to_mapping(),
        "world_size": case.layout.world_size,
        "context_tokens": asked.context,
        "prompt_tokens": case.workload.seq_len,
        "new_tokens": case.serving.new_tokens,
        "batch": asked.batch,
        "pass_tokens": model.pass_tokens * asked.batch,
        "published": None if published is None else _published(published),
        "cache": _cache_mapping(case, model, rank, cache),
        "memory": _memory_mapping(model, rank, peak, room),
        "limits": {name: rows[0][name] for name in LIMITS},
        "decode": _decode_mapping(case, cache, asked),
        "time": rows[0]["time"],
        "choices": [_against(row, rows[0]) for row in rows],
    }
    return answer | {"terms": _terms(model, rank, cache, answer)}


LIMITS = ("largest_batch", "longest_context", "tokens_per_second_at_largest_batch", "largest_batch_is_bounded")


def room_of(case: Case, share: float) -> dict[str, Any]:
    """Bytes a rank may use, and what they are made of; None where the device's memory is not known."""
    found = device(case.cluster.device)
    total, context = found.memory_bytes.value, found.context_bytes.value
    if total is not None and found.kind is DeviceKind.CPU:
        total, context = total / case.cluster.per_node, None
    return {
        "device": found.name,
        "device_bytes": None if total is None else int(total),
        "share": share,
        "context_bytes": context,
        "room_bytes": None if total is None else int(total * share - (context or 0)),
        "source": found.memory_bytes.source,
    }


def times_of(case: Case, asked: Asked) -> dict[str, Any]:
    """Prefill, one step of decoding with the context full, and tokens/s; None each, and why, where a rate is not
    known or the model's operators are not."""
    published = served_model_of(case.decoder)
    try:
        if published is not None:
            raise SpecError(f"model: {published.name}: {published.why}, so its steps are not timed")
        time = serving_time(case, cache_terms(case), asked.calibration)
    except SpecError as error:
        return {**dict.fromkeys(("prefill_seconds", "decode_seconds", "tokens_per_second")), "basis": str(error)}
    return {
        "prefill_seconds": time.prefill_seconds,
        "decode_seconds": time.decode_seconds,
        "tokens_per_second": tokens_per_second(case, time),
        "basis": time.basis,
    }


def _row(asked: Asked, name: str, case: Case) -> dict[str, Any]:
    """One choice: what its cache takes, what fits, how fast. `reason` says why there is no figure."""
    row: dict[str, Any] = {"name": name, "case_id": case.case_id, "cache": str(case.cache), "reason": ""}
    case = resized(case, asked.batch, asked.context, asked.step_tokens)
    try:
        model = inference_of(case)
        rank, peak = fullest_rank(model)
        stored = cache_terms(case, rank)
    except SpecError as error:
        none = ("bytes_per_token", "cache_bytes", "read_bytes", "host_bytes", "peak_bytes", *LIMITS)
        return row | dict.fromkeys(none) | {"time": {**times_of_nothing(str(error))}, "reason": str(error)}
    row |= {
        "bytes_per_token": model.cache_bytes_per_token(rank),
        "cache_bytes": stored_bytes(stored),
        "read_bytes": stored_bytes(stored, Quantity.CACHE_READ),
        "host_bytes": sum(term.nbytes for term in stored if term.component is Component.HOST),
        "peak_bytes": peak,
        "time": times_of(case, asked),
    }
    return row | _limits(asked, case)


def times_of_nothing(reason: str) -> dict[str, Any]:
    """The times of what cannot be answered."""
    return {**dict.fromkeys(("prefill_seconds", "decode_seconds", "tokens_per_second")), "basis": reason}


def _limits(asked: Asked, case: Case) -> dict[str, Any]:
    """The largest batch and the longest context, and tokens/s at the former; None where the memory is not known."""
    room = room_of(case, asked.memory_share)["room_bytes"]
    if room is None:
        return dict.fromkeys(LIMITS)
    limits = Limits(case, room, asked.step_tokens)
    batch = limits.largest_batch(asked.context)
    rate = None
    if batch:
        rate = times_of(resized(case, batch, asked.context, asked.step_tokens), asked)["tokens_per_second"]
    return dict(zip(LIMITS, (batch, limits.longest_context(asked.batch), rate, batch < MOST_SEQUENCES), strict=True))


def _against(row: dict[str, Any], first: dict[str, Any]) -> dict[str, Any]:
    """A row with its factors against the first: how much smaller its cache is, and how much faster it answers."""

    def factor(name: str, of: Mapping[str, Any], to: Mapping[str, Any]) -> float | None:
        return of[name] / to[name] if of[name] and to[name] else None

    rate = "tokens_per_second_at_largest_batch"
    return row | {"cache_factor": factor("cache_bytes", row, first), "rate_factor": factor(rate, row, first)}


def _cache_mapping(case: Case, model: InferenceModel, rank: int, cache: tuple[CacheTerm, ...]) -> dict[str, Any]:
    alone = replace(case, layout=Layout(), cluster=Cluster(case.cluster.device))
    layout = case.layout
    places = range(0, layout.world_size, layout.world_size // layout.pp)
    of_ranks = sum(model.cache_bytes_per_token(place) for place in places) * layout.tp
    whole = inference_of(alone).cache_bytes_per_token()
    found: dict[str, Any] = {
        "rank": rank,
        "bytes_per_token": model.cache_bytes_per_token(rank),
        "bytes_per_token_of_model": whole,
        "copies": of_ranks / whole,
        "bytes": stored_bytes(cache),
        "read_bytes": stored_bytes(cache, Quantity.CACHE_READ),
        "host_bytes": sum(term.nbytes for term in cache if term.component is Component.HOST),
        "fragmentation": None,
    }
    if case.cache.page_tokens is not None:
        waste = fragmentation(case)
        found["fragmentation"] = {
            "page_tokens": case.cache.page_tokens,
            "paged_wasted_share": waste.paged.wasted_share,
            "contiguous_wasted_share": waste.contiguous.wasted_share,
        }
    return found


def stored_bytes(cache: tuple[CacheTerm, ...], quantity: Quantity = Quantity.CACHE) -> int:
    """What the device keeps of a cache, or what a step reads of it; what the host keeps is apart."""
    return sum(term.nbytes for term in cache if term.quantity is quantity and term.component is not Component.HOST)


def _memory_mapping(model: InferenceModel, rank: int, peak: int, room: dict[str, Any]) -> dict[str, Any]:
    loaded = model.total_bytes(Phase.LOADED, rank)
    left = None if room["room_bytes"] is None else room["room_bytes"] - loaded
    return {
        **room,
        "rank": rank,
        "phases": {phase.value: model.total_bytes(phase, rank) for phase in Phase},
        "weights_bytes": loaded,
        "left_bytes": left,
        "left_share": None if left is None or not room["device_bytes"] else left / room["device_bytes"],
        "peak_bytes": peak,
        "verdict": "unknown" if left is None else "fits" if peak <= room["room_bytes"] else "oom",
    }


def _decode_mapping(case: Case, cache: tuple[CacheTerm, ...], asked: Asked) -> dict[str, Any]:
    """What one more token of every sequence computes and reads on a rank, and the device's own ratio of the two."""
    names = ("flops", "weight_bytes", "cache_bytes", "flops_per_byte")
    if served_model_of(case.decoder) is not None:
        return {**dict.fromkeys(names), "ridge_flops_per_byte": None}
    work = decode_work(case, cache)
    try:
        ridge = roofline_of(case).ridge
    except SpecError:
        ridge = None
    values = (work.flops, work.weight_bytes, work.cache_bytes, arithmetic_intensity(work))
    return {**dict(zip(names, values, strict=True)), "ridge_flops_per_byte": ridge}


def _published(model: Any) -> dict[str, Any]:
    return {
        "name": model.name,
        "parameters": model.parameters,
        "active_parameters": model.active_parameters,
        "weight_bytes": model.weight_bytes,
        "source": model.source,
        "why": model.why,
    }


def _terms(
    model: InferenceModel, rank: int, cache: tuple[CacheTerm, ...], answer: dict[str, Any]
) -> list[dict[str, Any]]:
    """Every term: memory of each phase, the cache stored and read, what a step computes, both times."""
    words = {Quantity.CACHE: "cache, stored", Quantity.CACHE_READ: "cache, read by a step"}
    found = [
        _term(f"memory, {term.phase}", term.name, "bytes", term.nbytes, term.formula, term.source)
        for term in model.terms(rank)
    ]
    found += [
        _term(words[term.quantity], term.component.value, "bytes", term.nbytes, term.formula, term.source)
        for term in cache
    ]
    decode, time = answer["decode"], answer["time"]
    if decode["flops"] is not None:
        read = (
            "every weight once, of an embedding its tokens' rows, of experts those that rows may be expected to reach"
        )
        found.append(_term("decode step", "weights read", "bytes", decode["weight_bytes"], read, _DECODE))
        counted = "2*b*weights of products + 4*a*d*entries read (of a latent 2*a*(2*d_c + d_rope))"
        found.append(_term("decode step", "arithmetic", "flops", decode["flops"], counted, _DECODE))
    if time["decode_seconds"] is not None:
        is_cpu = answer["memory"]["device"] == "cpu"
        of_parts = "sum of operators, attention through the cache and messages, each timed alone"
        of_kernels = of_parts if is_cpu else "sum over kernels of max(FLOP/rate, bytes/bandwidth), and messages"
        for name, phase in (("prefill_seconds", "time to first token"), ("decode_seconds", "time per token")):
            found.append(_term("time", phase, "seconds", time[name], of_kernels, time["basis"]))
    return found


_DECODE = "arXiv:2211.05102, section 2; arXiv:2405.04434, section 2.1.2"


def _term(quantity: str, name: str, unit: str, value: float, formula: str, source: str) -> dict[str, Any]:
    return {"quantity": quantity, "name": name, unit: value, "formula": formula, "source": source}
