"""What `estimate` and `models` print for a person."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from memory.estimate import MemoryModel
from reports.contract import estimate_mapping, worst_estimate
from reports.predict import Predictor
from reports.tables import term_table
from suite.case import Case
from suite.hardware import DEVICES, Device, MatmulDtype
from suite.models.presets import PRESETS
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


def print_estimate(case: Case, predictor: Predictor, console: Console, explain: bool = False) -> None:
    """A case's memory and time; with `explain` every term of the largest moment."""
    answer = estimate_mapping(case, predictor)
    memory, time = answer["memory"], answer["time"]
    console.print(Text(f"{case.label}  (case {case.case_id})", style="bold"))
    ranks = answer["world_size"]
    console.print(
        Text(
            f"{ranks} x {case.cluster.device}, {count_text(answer['parameters'])} parameters,"
            f" {count_text(case.tokens_per_step)} tokens a step"
        )
    )
    available = f"of {bytes_text(memory['available_bytes'])}" if memory["available_bytes"] else "(capacity not known)"
    console.print(
        Text(
            f"peak per rank {bytes_text(memory['peak_bytes'])} at {memory['peak_moment']} {available}:"
            f" {memory['verdict']}; reserved up to {bytes_text(memory['reserved_upper_bytes'])}"
        )
    )
    table = Table(title="bytes per rank at the peak", title_justify="left")
    table.add_column("component")
    table.add_column("bytes", justify="right")
    table.add_column("share", justify="right")
    for name, nbytes in memory["components"].items():
        if nbytes:
            table.add_row(name, bytes_text(nbytes), percent_text(nbytes / memory["peak_bytes"], 1))
    console.print(table)
    console.print(_time_text(time))
    if explain:
        console.print(term_table(worst_estimate(case, MemoryModel(case))))


def _time_text(time: dict[str, Any]) -> Text:
    if time["step_seconds"] is None:
        return Text(f"step time {NOT_KNOWN}: {time['basis']}")
    return Text(
        f"step {seconds_text(time['step_seconds'])}, {count_text(time['tokens_per_second'])} tokens/s over all ranks,"
        f" {number_text(time['tflops_per_gpu'])} model TFLOP/s a rank, MFU {percent_text(time['mfu'], 1)}"
        f" ({percent_text(time['mfu_full_attention'], 1)} with attention counted in full)\n{time['basis']}"
    )


def model_rows() -> list[dict[str, Any]]:
    """The presets with their shapes and parameter counts."""
    from suite.case import Case as _Case

    return [
        {
            "name": spec.name,
            "parameters": MemoryModel(_Case(spec)).ledger.parameters,
            "layers": spec.layers,
            "hidden": spec.hidden,
            "heads": spec.heads,
            "kv_heads": spec.kv_heads,
            "ffn": spec.ffn,
            "vocab": spec.vocab,
            "max_positions": spec.max_positions,
            "tied": spec.tied,
        }
        for spec in PRESETS.values()
    ]


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
    }


def print_rows(rows: list[dict[str, Any]], title: str, console: Console) -> None:
    """Rows as a table: bytes, rates and counts in readable units."""
    table = Table(title=title, title_justify="left")
    for name in rows[0]:
        table.add_column(name.removesuffix("_bytes").removesuffix("_flops_per_second").replace("_", " "))
    for row in rows:
        table.add_row(*(Text(_cell(name, value)) for name, value in row.items()))
    console.print(table)


def _cell(name: str, value: Any) -> str:
    if value is None:
        return NOT_KNOWN
    if name.endswith("bytes_per_second"):
        return f"{bytes_text(value)}/s"
    if name.endswith("flops_per_second"):
        return rate_text(value)
    if name.endswith("_bytes"):
        return bytes_text(value)
    return short_count_text(value) if name == "parameters" else str(value)
