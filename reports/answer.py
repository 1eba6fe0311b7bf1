"""What `estimate` and `models` print for a person."""

from __future__ import annotations

from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from memory.device_terms import Place
from memory.estimate import MemoryModel
from memory.verdict import Verdict
from reports.contract import estimate_mapping, worst_estimate
from reports.counts import active_of, parameters_of
from reports.links import links_of
from reports.predict import Predictor
from reports.tables import term_table
from reports.text import plain, plural
from suite.case import Case
from suite.hardware import DEVICES, Device, MatmulDtype
from suite.models import PRESETS, ModelSpec
from suite.units import (
    NOT_KNOWN,
    bytes_text,
    count_text,
    number_text,
    percent_text,
    rate_text,
    seconds_text,
    short_count_text,
)

STYLE: dict[str, Any] = {"box": box.SIMPLE_HEAD, "title_justify": "left", "pad_edge": False}
#: columns from which a table of rows has air between its columns
_ROOMY = 140
#: fewest columns of a sentence's cell
_PROSE = 16


def print_estimate(
    case: Case,
    predictor: Predictor,
    console: Console,
    explain: bool = False,
    alloc_conf: str | None = None,
) -> None:
    """A case's memory and time; with `explain` every term of the largest moment."""
    answer = estimate_mapping(case, predictor, alloc_conf)
    memory = answer["memory"]
    _say(console, f"{case.label}  (case {case.case_id})", "bold")
    _say(
        console,
        f"{plural(answer['world_size'], 'rank')} on {case.cluster.device}, {_parameters_text(answer)},"
        f" {plural(case.global_batch, 'sequence')} of {count_text(case.workload.seq_len)} tokens a step",
    )
    _say(console, _verdict_text(memory))
    for line in _reserved_lines(memory):
        _say(console, line)
    _say(console, f"at {memory['peak_moment']}, the fullest moment of the step, rank {memory['rank']} holds")
    table = Table(**STYLE)
    table.add_column("component")
    table.add_column("bytes", justify="right")
    table.add_column("share", justify="right")
    for name, nbytes in memory["components"].items():
        if nbytes:
            table.add_row(name, bytes_text(nbytes), percent_text(nbytes / memory["peak_bytes"], 1))
    console.print(table)
    if answer["traffic"]["total_sent_bytes"]:
        _say(console, _traffic_text(answer["traffic"]))
    _say(console, _time_text(answer["time"]))
    _say(console, _flops_text(answer))
    if explain:
        console.print(term_table(worst_estimate(case, MemoryModel(case))))


def _parameters_text(answer: dict[str, Any]) -> str:
    """'46,702,792,704 parameters, of which a token uses 12,879,925,248'; the second where it differs."""
    said, active = f"{count_text(answer['parameters'])} parameters", answer["active_parameters"]
    return said if active == answer["parameters"] else f"{said}, of which a token uses {count_text(active)}"


def _say(console: Console, line: str, style: str = "") -> None:
    console.print(Text(plain(line), style=style))


def _traffic_text(traffic: dict[str, Any]) -> str:
    """'sends 1.50 GiB a step: all gather 1.00 GiB in 33 calls, reduce scatter 512.00 MiB in 17 calls'."""
    parts = (
        f"{name.replace('_', ' ')} {bytes_text(sums['sent_bytes'])} in {plural(sums['count'], 'call')}"
        for name, sums in traffic["collectives"].items()
    )
    return f"rank {traffic['rank']} sends {bytes_text(traffic['total_sent_bytes'])} a step: {', '.join(parts)}"


def _verdict_text(memory: dict[str, Any]) -> str:
    available, verdict = memory["available_bytes"], memory["verdict"]
    of = f" of {bytes_text(available)}" if available is not None else ""
    words = {
        Verdict.FITS: "fits",
        Verdict.TIGHT: "tight: it may or may not fit",
        Verdict.OOM: "oom: more than there is",
        Verdict.UNKNOWN: "the device's memory is not known",
    }
    return f"peak per rank {bytes_text(memory['peak_bytes'])}{of}: {words[Verdict(verdict)]}"


def _reserved_lines(memory: dict[str, Any]) -> list[str]:
    """What torch's allocator reserves, and what else of the device is taken."""
    if memory["reserved_bytes"] is None:
        upper = bytes_text(memory["reserved_upper_bytes"])
        return [f"reserved memory, context, communicators {NOT_KNOWN} on a CPU; an allocator may take up to {upper}"]
    taken = {place: _sum_text(memory["device_terms"], place) for place in Place}
    return [
        f"torch's allocator reserves {bytes_text(memory['reserved_bytes'])},"
        f" at most {bytes_text(memory['reserved_upper_bytes'])}, in it {taken[Place.ALLOCATOR]}",
        f"beside it {taken[Place.DEVICE]} (published figures: estimates)",
    ]


def _sum_text(terms: list[dict[str, Any]], place: Place) -> str:
    """'context n/a, communicator fsdp(8) 688.00 MiB'."""
    return ", ".join(f"{term['name']} {bytes_text(term['bytes'])}" for term in terms if term["place"] == place.value)


def _time_text(time: dict[str, Any]) -> str:
    if time["step_seconds"] is None:
        return f"step time {NOT_KNOWN}: {time['basis']}"
    return (
        f"step {seconds_text(time['step_seconds'])}, {count_text(time['tokens_per_second'])} tokens/s over all ranks,"
        f" {number_text(time['tflops_per_gpu'])} model TFLOP/s a rank, MFU {percent_text(time['mfu'], 1)}"
        f" ({percent_text(time['mfu_full_attention'], 1)} with attention counted in full),"
        f" HFU {percent_text(time['hfu'], 1)}; basis: {time['basis']}"
    )


def _flops_text(answer: dict[str, Any]) -> str:
    """'a token costs 80.20 GFLOP in training, of the experts that it goes to; 290.10 were all computed'."""
    flops = answer["flops_per_token"]
    said = f"a token costs {short_count_text(flops['active'])} FLOP in training"
    if flops["all_experts"] == flops["active"]:
        return said
    return f"{said} (of its experts: what MFU counts), {short_count_text(flops['all_experts'])} FLOP were all computed"


def model_rows() -> list[dict[str, Any]]:
    """The presets with their families, shapes and parameter counts: all, and those that a token uses."""
    return [_model_row(spec) for spec in PRESETS.values()]


def _model_row(spec: ModelSpec) -> dict[str, Any]:
    parameters = parameters_of(spec)
    return {
        "name": spec.name,
        "family": spec.family,
        "parameters": parameters,
        "active_parameters": active_of(spec, parameters),
        "experts": 0 if spec.experts is None else spec.experts.count,
        "layers": spec.layers,
        "hidden": spec.hidden,
        "heads": spec.heads,
        "kv_heads": spec.kv_heads,
        "ffn": spec.ffn,
        "vocab": spec.vocab,
        "max_positions": spec.max_positions,
        "tied": spec.tied,
    }


def device_rows() -> list[dict[str, Any]]:
    """The devices with their figures and where those come from; None where one is not known."""
    return [_device_row(item) for item in DEVICES.values()]


def _device_row(item: Device) -> dict[str, Any]:
    peak = item.peak(MatmulDtype.BF16)
    return {
        "name": item.name,
        "product": item.product,
        "memory_bytes": item.memory_bytes.value,
        "memory_bandwidth_bytes_per_second": item.memory_bandwidth_bytes_per_second.value,
        "bf16_flops_per_second": peak.value,
        "source": peak.source,
        "links": links_of(item.name),
    }


def print_rows(rows: list[dict[str, Any]], title: str, console: Console) -> None:
    """Rows as a table: bytes, rates and counts in readable units. Columns that do not fit are left out, and named;
    lists are for a table of their own."""
    air = 1 if console.width >= _ROOMY else 0
    widths = {name: _least_width(name, rows) for name, first in rows[0].items() if not isinstance(first, list)}
    table, room, left_out = Table(title=title, **STYLE, padding=(0, air)), console.width - 2, []
    for name, width in widths.items():
        room -= width + 1 + 2 * air
        if room < 0:
            left_out.append(name)
            continue
        is_number = isinstance(rows[0][name], int | float) and not isinstance(rows[0][name], bool)
        heading = _heading(name).replace(" ", "\n")
        table.add_column(heading, justify="right" if is_number else "left", min_width=width, overflow="fold")
    shown = [name for name in widths if name not in left_out]
    for row in rows:
        table.add_row(*(Text(_cell(name, row[name])) for name in shown))
    console.print(table)
    if left_out:
        _say(console, f"left out for width: {', '.join(map(_heading, left_out))}; --json holds everything")


def _least_width(name: str, rows: list[dict[str, Any]]) -> int:
    """Names and figures stay whole, since names are to be typed; prose may wrap."""
    longest = max(len(_cell(name, row[name])) for row in rows)
    word = max(map(len, _heading(name).split()))
    return min(longest, _PROSE) if name in ("product", "source", "devices") else max(longest, word)


def _heading(name: str) -> str:
    bare = name.removesuffix("_flops_per_second").removesuffix("_bytes_per_second").removesuffix("_bytes")
    return bare.replace("_", " ")


def _cell(name: str, value: Any) -> str:
    if value is None:
        return NOT_KNOWN
    if isinstance(value, bool):
        return "yes" if value else "no"
    if name.endswith("bytes_per_second"):
        return f"{bytes_text(value)}/s"
    if name.endswith("flops_per_second"):
        return rate_text(value)
    if name.endswith("_bytes"):
        return bytes_text(value)
    return short_count_text(value) if name.endswith("parameters") else str(value)
