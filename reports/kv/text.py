"""What `kv` prints for a person: the answers, the choices side by side, every term."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from reports.answer import STYLE
from reports.text import plain
from suite.case import Case
from suite.models.decoder import Position
from suite.units import NOT_KNOWN, bytes_text, count_text, number_text, percent_text, seconds_text, short_count_text


def headline(answer: dict[str, Any], case: Case) -> str:
    """'llama3-70b on 8 x h100-sxm: 1 sequence of 32,768 tokens (prompt 32,512, answer 256)'."""
    ranks = answer["world_size"]
    where = f"{ranks} x {case.cluster.device}" if ranks > 1 else case.cluster.device
    replicas = " a replica" if case.layout.data_ranks > 1 else ""
    return (
        f"{case.model.name} on {where}: {sequences_text(answer['batch'])}{replicas} of"
        f" {count_text(answer['context_tokens'])} tokens (prompt {count_text(answer['prompt_tokens'])}, answer"
        f" {count_text(answer['new_tokens'])})"
    )


def sequences_text(count: int) -> str:
    """'1 sequence', '8,192 sequences'."""
    return "1 sequence" if count == 1 else f"{count_text(count)} sequences"


def answer_rows(answer: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    """(what was asked, the answer, how it comes about), a row each."""
    cache, memory, limits = answer["cache"], answer["memory"], answer["limits"]
    copies = f", on all ranks together {number_text(cache['copies'])} times" if cache["copies"] > 1 else ""
    yield (
        "cache a token, a rank",
        bytes_text(cache["bytes_per_token"]),
        f"{count_text(cache['bytes_per_token'])} bytes; of the whole model"
        f" {bytes_text(cache['bytes_per_token_of_model'])}{copies}",
    )
    yield "cache at this context and batch", bytes_text(cache["bytes"]), _held_text(cache)
    if cache["fragmentation"]:
        yield "lost to pages", *_pages_text(cache["fragmentation"])
    yield "room a rank", bytes_text(memory["room_bytes"]), _room_text(memory)
    yield "left beside weights", *_left_text(memory)
    yield "peak, fullest rank", bytes_text(memory["peak_bytes"]), _peak_text(answer)
    yield (
        f"largest batch at {count_text(answer['context_tokens'])} tokens",
        f"{_batch_text(limits['largest_batch'], limits['largest_batch_is_bounded'])} sequences",
        _rate_text(answer),
    )
    yield f"longest context at {sequences_text(answer['batch'])}", *_context_text(answer)
    yield from _speed_rows(answer)


def _held_text(cache: dict[str, Any]) -> str:
    host = f"; {bytes_text(cache['host_bytes'])} more on the host" if cache["host_bytes"] else ""
    return f"a step of decoding reads {bytes_text(cache['read_bytes'])} of it{host}"


def _pages_text(found: dict[str, Any]) -> tuple[str, str]:
    return percent_text(found["paged_wasted_share"]), (
        f"of what sequences take in pages of {count_text(found['page_tokens'])} tokens;"
        f" {percent_text(found['contiguous_wasted_share'])} in one array each"
    )


def _room_text(memory: dict[str, Any]) -> str:
    if memory["room_bytes"] is None:
        return f"{memory['device']}: {memory['source']}"
    context = f", less {bytes_text(memory['context_bytes'])} of context" if memory["context_bytes"] else ""
    return f"{percent_text(memory['share'], 0)} of {bytes_text(memory['device_bytes'])}{context}"


def _left_text(memory: dict[str, Any]) -> tuple[str, str]:
    left, weights = memory["left_bytes"], f"weights and buffers take {bytes_text(memory['weights_bytes'])}"
    if left is not None and left < 0:
        return "none", f"{weights}, {bytes_text(-left)} more than there is room for"
    return bytes_text(left), f"{percent_text(memory['left_share'], 1)} of the device; {weights}"


def _peak_text(answer: dict[str, Any]) -> str:
    memory, words = answer["memory"], {"fits": "fits", "oom": "more than there is room for", "unknown": "room unknown"}
    phases = memory["phases"]
    phase = max(phases, key=lambda name: phases[name])
    tokens = (
        "" if answer["published"] else f"; a pass over the prompts takes {count_text(answer['pass_tokens'])} tokens"
    )
    return f"{words[memory['verdict']]}, rank {memory['rank']}, at {phase}{tokens}"


def _batch_text(batch: int | None, is_bounded: bool | None) -> str:
    """'43', or '8,192+' where the search ended first."""
    return NOT_KNOWN if batch is None else count_text(batch) + ("" if is_bounded else "+")


def _rate_text(answer: dict[str, Any]) -> str:
    limits = answer["limits"]
    rate = limits["tokens_per_second_at_largest_batch"]
    if limits["largest_batch"] == 0:
        return "not even one has room"
    more = "; the search ends there" if limits["largest_batch_is_bounded"] is False else ""
    if answer["memory"]["device"] == "cpu":
        more += "; in proportion to the batches that were measured"
    return "" if rate is None else f"{count_text(rate)} tokens/s{more}"


def _context_text(answer: dict[str, Any]) -> tuple[str, str]:
    longest, positions = answer["limits"]["longest_context"], answer["case"]["model"]["max_positions"]
    if longest is None:
        return NOT_KNOWN, ""
    if longest < positions:
        return f"{count_text(longest)} tokens", ""
    is_endless = answer["case"]["cache"]["sinks"] and answer["case"]["model"]["position"] == Position.ROPE.value
    why = (
        "and more: with sinks, places are counted anew within the cache" if is_endless else "all the model's positions"
    )
    return f"{count_text(longest)} tokens", why


def _speed_rows(answer: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    decode, time = answer["decode"], answer["time"]
    if decode["flops"] is not None:
        ridge = decode["ridge_flops_per_byte"]
        bound = "" if ridge is None else (
            f"; the device does {number_text(ridge, 3)} while it reads a byte, so decoding is bound by"
            f" {'reading' if decode['flops_per_byte'] < ridge else 'computing'}"
        )  # fmt: skip
        yield (
            "arithmetic intensity of a step",
            f"{number_text(decode['flops_per_byte'], 3)} FLOP a byte",
            f"{short_count_text(decode['flops'])} FLOP over {bytes_text(decode['weight_bytes'])} of weights and"
            f" {bytes_text(decode['cache_bytes'])} of cache{bound}",
        )
    yield "time to first token", seconds_text(time["prefill_seconds"]), "of all prompts, read together"
    yield "time per token", seconds_text(time["decode_seconds"]), "with the context full"
    yield "tokens a second", count_text(time["tokens_per_second"]), "of all sequences, on all replicas"


def notes(answer: dict[str, Any]) -> Iterator[str]:
    """What has to be said beside the figures."""
    published = answer["published"]
    if published:
        count, bits = short_count_text(published["parameters"]), number_text(8 * published["weight_bytes"])
        yield (
            f"{published['name']}: {published['why']}; weights are the published {count} parameters of {bits} bits"
            f" over tp, the forward pass's own memory is not counted, and times are {NOT_KNOWN} ({published['source']})"
        )
    yield f"times: {answer['time']['basis']}"
    if answer["memory"]["verdict"] == "oom":
        yield "the batch that was asked for has no room at this context: its times are as if it had"


def choice_cells(row: dict[str, Any]) -> tuple[str, ...]:
    """A choice as the table has it, under CHOICE_HEADINGS."""
    return (
        row["name"],
        bytes_text(row["bytes_per_token"]),
        bytes_text(row["cache_bytes"]),
        _factor_text(row["cache_factor"]),
        _batch_text(row["largest_batch"], row["largest_batch_is_bounded"]),
        count_text(row["longest_context"]),
        seconds_text(row["time"]["decode_seconds"]),
        count_text(row["tokens_per_second_at_largest_batch"]),
        _factor_text(row["rate_factor"]),
    )


CHOICE_HEADINGS = (
    "choice", "a token", "cache", "cache, x", "largest batch", "longest context", "time per token",
    "tokens/s at largest batch", "tokens/s, x",
)  # fmt: skip


def _factor_text(factor: float | None) -> str:
    return NOT_KNOWN if factor is None else f"{factor:.3g}"


def print_serving(answer: dict[str, Any], case: Case, console: Console) -> None:
    """All of it."""
    console.print(Text(plain(headline(answer, case)), style="bold"))
    table = Table(**STYLE, show_header=False)
    table.add_column("question", overflow="fold")
    table.add_column("answer", justify="right", overflow="fold")
    table.add_column("how", overflow="fold")
    for question, value, how in answer_rows(answer):
        table.add_row(question, value, Text(plain(how)))
    console.print(table)
    for note in notes(answer):
        console.print(Text(plain(note)))
    if len(answer["choices"]) > 1:
        console.print(_choices(answer))
        for row in answer["choices"]:
            if row["reason"]:
                console.print(Text(plain(f"{row['name']}: {NOT_KNOWN}: {row['reason']}")))
    console.print(_terms(answer))


def _choices(answer: dict[str, Any]) -> Table:
    batch, context = sequences_text(answer["batch"]), count_text(answer["context_tokens"])
    table = Table(title=f"choices, at {batch} of {context} tokens; x: over the first row's", **STYLE)
    for place, heading in enumerate(CHOICE_HEADINGS):
        table.add_column(heading, justify="right" if place else "left", overflow="fold")
    for row in answer["choices"]:
        table.add_row(*(Text(plain(cell)) for cell in choice_cells(row)))
    return table


def term_text(term: dict[str, Any]) -> str:
    """A term's bytes, FLOPs or seconds."""
    if "bytes" in term:
        return bytes_text(term["bytes"])
    return f"{short_count_text(term['flops'])} FLOP" if "flops" in term else seconds_text(term["seconds"])


def _terms(answer: dict[str, Any]) -> Table:
    table = Table(title=f"terms of rank {answer['memory']['rank']}", **STYLE)
    for heading in ("of", "term", "value", "formula", "source"):
        table.add_column(heading, justify="right" if heading == "value" else "left", overflow="fold")
    phases = answer["memory"]["phases"]
    fullest = max(phases, key=lambda name: phases[name])
    for term in answer["terms"]:
        if term["quantity"].startswith("memory") and not term["quantity"].endswith(fullest):
            continue  # the document and the page have all phases
        cells = (term["quantity"], term["name"], term_text(term), term["formula"], term["source"])
        table.add_row(*(Text(plain(cell)) for cell in cells))
    return table
