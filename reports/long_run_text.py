"""What `long_run_mapping` found, in lines for a person."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from reports.text import plural
from suite.units import (
    NOT_KNOWN,
    bytes_text,
    count_text,
    days_text,
    energy_text,
    mass_text,
    number_text,
    percent_text,
    seconds_text,
    short_count_text,
)

_NAMES = {"best": "best", "young": "Young 1974", "daly": "Daly 2006", "given": "given"}


def long_run_lines(answer: Mapping[str, Any] | None) -> list[str]:
    """One fact a line; none where nothing was said of a long run."""
    lines = []
    for part, said in (("stragglers", _straggler_lines), ("failures", _failure_lines), ("run", _run_lines)):
        if answer and part in answer:
            lines += said(answer[part])
    return lines


def _straggler_lines(found: Mapping[str, Any]) -> list[str]:
    who = ", ".join(found["slow"])
    why = [f"ranks {who}"] if who else []
    if found["jitter"]:
        why.append(f"{found['jitter']['kind']} jitter of {percent_text(found['jitter']['sigma'], 1)}")
    line = (
        f"slow ranks: {seconds_text(found['step_seconds'])} a step, {number_text(found['slowdown'])} times"
        f" {seconds_text(found['step_seconds_alike'])} ({' and '.join(why)})"
    )
    spread = found["step_seconds_spread"]
    if spread:
        line += f"; 5 to 95 % of steps {seconds_text(spread['p5'])} to {seconds_text(spread['p95'])}"
    return [line]


def _failure_lines(found: Mapping[str, Any]) -> list[str]:
    run, parts = found["reliability"], found["shares"]
    saved, recovery = run["checkpoint"], run["recovery"]
    size = f" ({bytes_text(found['checkpoint_bytes'])})" if found["checkpoint_bytes"] else ""
    writing = f", written {seconds_text(saved['writing_s'])} later" if saved["writing_s"] else ""
    restart = sum(recovery[name] for name in ("detect_s", "reschedule_s", "load_s"))
    lines = [
        f"failures: one in {seconds_text(found['mtbf_seconds'])} among {plural(run['failures']['devices'], 'device')};"
        f" a checkpoint takes {seconds_text(saved['blocking_s'])}{size}{writing}, a restart {seconds_text(restart)}",
        f"goodput: {percent_text(parts['useful'])}, saving every {seconds_text(found['interval_seconds'])}"
        f" ({plural(found['interval_steps'], 'step')}); saving"
        f" {percent_text(parts['saving'])}, lost work {percent_text(parts['lost'])}, restarting"
        f" {percent_text(parts['restarting'])}, waiting for repairs {percent_text(parts['waiting'])}",
    ]
    spread = found["goodput_over_seeds"]
    if spread:
        lines.append(
            f"over {plural(spread['seeds'], 'seed')}: {percent_text(spread['mean'])}, 5 to 95 %:"
            f" {percent_text(spread['p5'])} to {percent_text(spread['p95'])}"
        )
    each = "; ".join(_interval_text(name, item) for name, item in found["intervals"].items())
    return [*lines, f"checkpoint intervals and their goodput: {each}"]


def _interval_text(name: str, item: Mapping[str, Any]) -> str:
    useful = percent_text(item["goodput"], 3) if item["goodput"] is not None else f"{NOT_KNOWN}, too short to write one"
    return f"{_NAMES[name]} {seconds_text(item['interval_seconds'])} ({useful})"


def _run_lines(found: Mapping[str, Any]) -> list[str]:
    failed = f", {count_text(found['failures'])} failures" if found["failures"] is not None else ""
    rates = found["rates"]
    price = NOT_KNOWN if found["price"] is None else f"{found['price']:,.2f}"
    energy = energy_text(found["energy_joules"])
    if rates["watts"] is None:
        energy += f", no power being known: {rates['watts_source']}"
    else:
        pue = "the devices alone" if rates["pue"] is None else f"PUE {number_text(rates['pue'])}"
        share = percent_text(rates["utilisation"], 0)
        energy += f", {pue}, at {share} of {number_text(rates['watts'])} W a device: {rates['watts_source']}"
    return [
        f"the run: {days_text(found['wall_seconds'])}, {count_text(found['steps'])} steps,"
        f" {short_count_text(found['tokens'])} tokens{failed}; {count_text(found['device_hours'])} device-hours of"
        f" {plural(found['devices'], 'device')}",
        f"price {price}; carbon dioxide {mass_text(found['carbon_kg'])}; energy {energy}",
    ]
