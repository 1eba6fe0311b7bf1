"""What `kv` says of models that keep something else than one stack's keys and values: an encoder-decoder's two caches,
and states that no context makes larger."""

from __future__ import annotations

import argparse
import dataclasses
import json
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from memory.kv_cache import cross_cache_bytes
from reports.answer import STYLE
from reports.kv.answer import room_of
from reports.kv.flags import MEMORY_SHARE
from reports.kv.options import lengths, memory_share, refuse_training
from reports.kv.text import headline
from reports.text import plain
from suite.cache import CacheDtype, CacheSpec
from suite.cache_shape import STORED, compute_dtype
from suite.case import Case
from suite.flags import case_of, given_base
from suite.layout import Layout
from suite.models import PRESETS, model_from
from suite.models.base import ModelSpec
from suite.models.decoder import DecoderSpec, Mixing
from suite.models.encoder_decoder import EncoderDecoderSpec
from suite.models.linear_shape import state_elements
from suite.models.recurrent import RecurrentSpec
from suite.parse import from_text, require
from suite.spec import Workload
from suite.units import bytes_text, count_text, number_text, percent_text

#: the verb's flags that speak of passes, choices and pages, of which there are none here
_OF_CACHES = ("compare", "page", "measure", "calibration")


@dataclass(frozen=True)
class Kept:
    """Bytes that one sequence keeps: what each token of the answer adds, what each token of the source adds once, and
    what is there however long they are; every term as (name, bytes, formula, source)."""

    token: int
    source_token: int
    state: int
    terms: tuple[tuple[str, int, str, str], ...]


def is_state(options: argparse.Namespace) -> bool:
    """Is the model one that this answers for? SpecError for an encoder, which keeps nothing."""
    if options.case == "-":  # can be read once
        return isinstance(options.model, str) and options.model in PRESETS and _is_state(PRESETS[options.model])
    model = given_base(options).get("model")
    if model is None or (isinstance(model, str) and model not in PRESETS):
        return False
    return _is_state(model_from(model))


def _is_state(model: ModelSpec) -> bool:
    require(
        model.is_causal_decoder or model.is_encoder_decoder or not model.has_attention,
        f"model: {model.name} is an encoder: it generates nothing and has no cache; give a decoder, an encoder-decoder"
        " or a recurrent model",
    )
    return not isinstance(model, DecoderSpec) or model.mixing is Mixing.LINEAR


def run_states(options: argparse.Namespace, console: Console) -> int:
    """Answer, as a table or a document."""
    answer, case = states_mapping(options)
    if options.json:
        print(json.dumps(answer, allow_nan=False))
    else:
        print_states(answer, case, console)
    return 0


def states_mapping(options: argparse.Namespace) -> tuple[dict[str, Any], Case]:
    """`kv --json` of such a model, with the keys that `kv` has for a decoder where they mean the same; and the case.
    SpecError for flags that change nothing of it."""
    given = [f"--{name}" for name in _OF_CACHES if getattr(options, name)]
    require(not given, f"{', '.join(given)}: not for a model without a decoder's cache; leave it out")
    refuse_training(options)
    share = MEMORY_SHARE if options.memory_share is None else memory_share(options.memory_share)
    asked: dict[str, Any] = {}
    case = case_of(options, lambda data: asked.update(_settled(data, options)))
    require(
        case.layout == Layout(),
        "layout: kv says the bytes that a sequence of this model keeps on one rank; leave it out",
    )
    prompt, new, batch = asked["prompt"], asked["answer"], case.workload.micro_batch
    stored = compute_dtype(case) if asked["dtype"] is CacheDtype.AUTO else STORED[asked["dtype"]]
    kept = kept_of(case.model, stored.nbytes)
    sequence = new * kept.token + prompt * kept.source_token + kept.state
    room = room_of(case, share)
    times = {"cache, a token of the answer": new, "cache, a token of the source": prompt}
    answer = {
        "case_id": case.case_id,
        "case": case.to_mapping(),
        "world_size": 1,
        "context_tokens": prompt + new,
        "prompt_tokens": prompt,
        "new_tokens": new,
        "batch": batch,
        "cache": {
            "element_bytes": stored.nbytes,
            "bytes_per_token": kept.token,
            "bytes_per_token_of_source": kept.source_token,
            "state_bytes": kept.state,
            "target_bytes": batch * new * kept.token,
            "source_bytes": batch * prompt * kept.source_token,
            "bytes_per_sequence": sequence,
            "bytes": batch * sequence,
        },
        "memory": room,
        "terms": [
            {
                "quantity": "cache, stored",
                "name": name,
                "bytes": nbytes,
                "tokens": times.get(name),
                "formula": formula,
                "source": source,
            }
            for name, nbytes, formula, source in kept.terms
        ],
    }
    return answer, case


def kept_of(model: ModelSpec, nbytes: int) -> Kept:
    """What a sequence keeps of it between two tokens, `nbytes` an element. Not counted: weights, a pass's own memory,
    the encoder's output."""
    if isinstance(model, EncoderDecoderSpec):
        each = cross_cache_bytes(model, 1, 1, 1, nbytes)
        formula = f"2 g a d e = 2*{model.decoder_layers}*{model.heads}*{model.head_dim}*{nbytes}"
        return Kept(
            each.target,
            each.source,
            0,
            (
                ("cache, a token of the answer", each.target, f"{formula}: self-attention", "arXiv:1706.03762"),
                ("cache, a token of the source", each.source, f"{formula}: cross-attention", "arXiv:1706.03762"),
            ),
        )
    if isinstance(model, RecurrentSpec):
        state = model.state_bytes(nbytes)
        sizes = f"{model.layers}*{model.cell.states}*{model.hidden}*{nbytes}"
        term = f"L states h e = {sizes}: output, and an LSTM's cell", "arXiv:1409.2329"
        return Kept(0, 0, state, (("state of a sequence", state, *term),))
    assert isinstance(model, DecoderSpec)
    state = state_elements(model) * nbytes
    sizes = f"{model.layers}*{model.heads}*{model.head_dim}*{model.head_dim + 1}*{nbytes}"
    term = f"L a d (d + 1) e = {sizes}", "arXiv:2006.16236, equations 18 and 19"
    return Kept(0, 0, state, (("state of a sequence", state, *term),))


def _settled(data: dict[str, Any], options: argparse.Namespace) -> dict[str, Any]:
    """Prompt (of an encoder-decoder its source), answer and number format; what only a served decoder has is taken out
    of `data`."""
    model = model_from(data["model"])
    work, serving, cache = (dict(data.pop(name, {})) for name in ("workload", "serving", "cache"))
    usual = min(model.max_positions, Workload().seq_len)
    prompt, answer = lengths(work.get("seq_len"), serving.pop("new_tokens", None), options.context_tokens, usual)
    dtype = from_text(str(cache.pop("cache_dtype", "auto")), CacheDtype, "cache.cache_dtype")
    for part, settings in (("serving", serving), ("cache", cache)):
        defaults = {field.name: field.default for field in dataclasses.fields(CacheSpec)}
        beside = [name for name, value in settings.items() if part == "serving" or value != defaults.get(name)]
        require(
            not beside,
            f"{part}.{', '.join(beside)}: not for {model.name}, which has no decoder's cache; leave it out",
        )
    require(
        dtype is CacheDtype.AUTO or dtype in STORED,
        f"cache.cache_dtype: {dtype} stores codes beside scales, which are not counted for {model.name}; use auto",
    )
    if options.batch is not None:
        work["micro_batch"] = options.batch
    positions = max(prompt, answer) if model.is_encoder_decoder else prompt + answer
    require(
        positions <= model.max_positions,
        f"--context: {positions} tokens are beyond max_positions({model.max_positions}) of {model.name}",
    )
    data["workload"] = work | {"seq_len": prompt}
    return {"prompt": prompt, "answer": answer, "dtype": dtype}


def print_states(answer: dict[str, Any], case: Case, console: Console) -> None:
    """The same for a person."""
    cache, room = answer["cache"], answer["memory"]
    console.print(Text(plain(headline(answer, case)), style="bold"))
    table = Table(**STYLE, show_header=False)
    table.add_column("question", overflow="fold")
    table.add_column("answer", justify="right", overflow="fold")
    table.add_column("how", overflow="fold")
    for term in answer["terms"]:
        how = f"{count_text(term['bytes'])} bytes: {term['formula']} ({term['source']})"
        table.add_row(term["name"], bytes_text(term["bytes"]), Text(plain(how)))
    whole = f"{count_text(cache['bytes_per_sequence'])} bytes" + (
        ", however long the context is"
        if cache["state_bytes"]
        else f": {count_text(answer['new_tokens'])} tokens of the answer, {count_text(answer['prompt_tokens'])} of the"
        " source, whose part is made once"
    )
    table.add_row("a sequence at this context", bytes_text(cache["bytes_per_sequence"]), Text(plain(whole)))
    of_device = f"{room['device']}: {room['source']}"
    if room["room_bytes"]:
        share = number_text(100 * cache["bytes"] / room["room_bytes"], 3)
        of_device = (
            f"{share} % of {bytes_text(room['room_bytes'])}, {percent_text(room['share'], 0)} of {room['device']}'s"
        )
    table.add_row("at this batch", bytes_text(cache["bytes"]), Text(plain(of_device)))
    console.print(table)
    beyond = "what fits, and times: n/a, for serving is modelled for decoders whose tokens keep keys and values alone"
    console.print(Text(beyond))
