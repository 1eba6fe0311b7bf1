"""One self-contained page for a served case: answers, choices side by side, both figures, every term."""

from __future__ import annotations

from typing import Any

from reports.kv import text
from reports.kv.curves import cache_lines, rate_lines, roof_lines
from reports.kv.figures import cache_chart, rate_chart
from reports.kv.options import Asked
from reports.page import render
from reports.svg import Chart
from suite.units import count_text


def render_serving(answer: dict[str, Any], asked: Asked) -> str:
    """The page as HTML; `answer` is what `serving_mapping` says of what was asked."""
    return render(
        "serving.html.j2",
        answer=answer,
        case=asked.case,
        text=text,
        rows=list(text.answer_rows(answer)),
        notes=list(text.notes(answer)),
        charts=charts(answer, asked),
    )


def charts(answer: dict[str, Any], asked: Asked) -> tuple[Chart, ...]:
    """Cache over the context; tokens a second over the batch, where steps are timed."""
    memory = answer["memory"]
    at_batch = f"at {text.sequences_text(asked.batch)}"
    drawn = [
        cache_chart(
            cache_lines(asked, memory["rank"]), memory["left_bytes"], memory["device_bytes"], asked.context, at_batch
        )
    ]
    rates, largest = rate_lines(asked, answer["choices"]), answer["limits"]["largest_batch"]
    if rates:
        where = f"at {count_text(asked.context)} tokens a sequence"
        drawn.append(rate_chart(rates, roof_lines(asked, largest or 1), largest or 1, where))
    return tuple(drawn)
