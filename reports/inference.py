"""What `estimate --new-tokens` answers: a model served instead of trained."""

from __future__ import annotations

from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from memory.estimate import representative_ranks
from memory.inference import InferenceModel, Phase
from memory.verdict import available_bytes, verdict_of
from reports.text import plain
from suite.case import Case
from suite.hardware import device
from suite.units import NOT_KNOWN, bytes_text, count_text


def inference_mapping(case: Case) -> dict[str, Any]:
    """`estimate --new-tokens --json`: memory of the rank that needs most. SpecError for what cannot be served."""
    model = InferenceModel(case)
    rank = max(representative_ranks(case.layout), key=model.peak_bytes)
    peak, available = model.peak_bytes(rank), available_bytes(case, device(case.cluster.device))
    terms = model.terms(rank)
    return {
        "case_id": case.case_id,
        "case": case.to_mapping(),
        "world_size": case.layout.world_size,
        "new_tokens": case.serving.new_tokens,
        "inference": {
            "peak_bytes": peak,
            "rank": rank,
            "phases": {phase.value: model.total_bytes(phase, rank) for phase in Phase},
            "cache_bytes_per_token": model.cache_bytes_per_token(rank),
            "available_bytes": available,
            "verdict": verdict_of(peak, available).value,
            "terms": [
                {
                    "phase": term.phase.value,
                    "name": term.name,
                    "bytes": term.nbytes,
                    "formula": term.formula,
                    "source": term.source,
                }
                for term in terms
            ],
        },
    }


def print_inference(case: Case, console: Console) -> None:
    """The same for a person: a row a term, a column a phase."""
    answer = inference_mapping(case)
    found, workload = answer["inference"], case.workload
    batch = f"{workload.micro_batch} x ({count_text(workload.seq_len)} + {count_text(case.serving.new_tokens)}) tokens"
    console.print(Text(plain(f"{case.model.name} served on {case.cluster.device}: {batch} a rank"), style="bold"))
    table = Table(box=box.SIMPLE_HEAD, title_justify="left", pad_edge=False)
    for heading in ("term", *Phase):
        table.add_column(str(heading), justify="left" if heading == "term" else "right")
    table.add_column("formula", overflow="fold")
    rows: dict[str, dict[str, Any]] = {}
    for term in found["terms"]:
        rows.setdefault(term["name"], {"formula": term["formula"]})[term["phase"]] = bytes_text(term["bytes"])
    for name, row in rows.items():
        table.add_row(Text(plain(name)), *(row.get(phase, "") for phase in Phase), Text(row["formula"]))
    table.add_row("sum", *(bytes_text(found["phases"][phase]) for phase in Phase), "", style="bold")
    console.print(table)
    room = NOT_KNOWN if found["available_bytes"] is None else bytes_text(found["available_bytes"])
    said = (
        f"{found['verdict']}: rank {found['rank']} needs {bytes_text(found['peak_bytes'])} of {room};"
        f" a token of a sequence adds {bytes_text(found['cache_bytes_per_token'])} of cache"
    )
    console.print(Text(plain(said)))
