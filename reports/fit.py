"""What `fit` says: for a program, and for a person."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.text import Text

from memory.allocator_settings import AllocatorSettings
from memory.device_terms import Place
from memory.fit import Answer, Candidate, Search, Target
from memory.verdict import Verdict
from reports.contract import fate_mapping
from reports.text import plain
from suite.case import Case
from suite.flags import member
from suite.hardware import device
from suite.parse import SpecError
from suite.units import bytes_text, count_text

WORDS = {
    Target.MICRO_BATCH: "largest micro-batch",
    Target.SEQ_LEN: "longest sequence",
    Target.GPUS: "fewest GPUs",
    Target.RECOMPUTE: "least recomputation",
}


def said_fit(case: Case, target: str | None, accept: str, alloc_conf: str | None) -> dict[str, Any]:
    """What the verb says, from its flags' texts."""
    settings = AllocatorSettings.given(alloc_conf, case.cluster.device)
    targets = tuple(Target) if target is None else (member(Target, target, "--for"),)
    worst = member(Verdict, accept, "--accept", (Verdict.FITS, Verdict.TIGHT))
    return fit_mapping(Search(case, device(case.cluster.device), worst, settings), targets)


def fit_mapping(search: Search, targets: Sequence[Target]) -> dict[str, Any]:
    """`fit --json`. What cannot be asked of a case has its reason in its answer, unless it alone was asked for: then
    SpecError."""
    return {
        "case_id": search.case.case_id,
        "case": search.case.to_mapping(),
        "device": search.device.name,
        "accept": search.accept.value,
        "answers": [_answer(search, target, is_alone=len(targets) == 1) for target in targets],
    }


def _answer(search: Search, target: Target, is_alone: bool) -> dict[str, Any]:
    try:
        return _answer_mapping(search.answer(target))
    except SpecError as error:
        if is_alone:
            raise
        return {"for": target.value, "varied": None, "best": None, "next": None, "note": str(error)}


def _answer_mapping(answer: Answer) -> dict[str, Any]:
    return {
        "for": answer.target.value,
        "varied": answer.varied,
        "best": _candidate(answer.best),
        "next": _candidate(answer.next),
        "note": answer.note,
    }


def _candidate(candidate: Candidate | None) -> dict[str, Any] | None:
    if candidate is None:
        return None
    assessment = candidate.assessment
    memory = {"peak_bytes": assessment.peak_bytes, "rank": assessment.rank, **fate_mapping(assessment)}
    return {"value": candidate.value, "case_id": candidate.case.case_id, "case": candidate.case.to_mapping(),
            "memory": memory}  # fmt: skip


def print_fit(said: dict[str, Any], label: str, console: Console) -> None:
    """An answer a line, and below it what was found of it and of the next step."""
    words = "verdict fits" if said["accept"] == "fits" else "verdict fits or tight"
    console.print(Text(plain(f"{label} on {said['device']}: what fits ({words})"), style="bold"))
    for answer in said["answers"]:
        best, following = answer["best"], answer["next"]
        note = f" ({answer['note']})" if answer["note"] and best else ""
        value = f"{_value(best)}{note}" if best else answer["note"]
        console.print(Text(plain(f"{WORDS[Target(answer['for'])]}: {value}")))
        for candidate in (best, following):
            if candidate is not None:
                console.print(
                    Text(plain(f"  {answer['varied']} {_varied(answer, candidate)}: {_memory_text(candidate)}"))
                )


def _varied(answer: dict[str, Any], candidate: dict[str, Any]) -> str:
    """The value of the key that was varied, as the case has it."""
    part, key = answer["varied"].split(".")
    value = candidate["case"][part][key]
    return count_text(value) if isinstance(value, int) else str(value)


def _value(candidate: dict[str, Any]) -> str:
    value = candidate["value"]
    return count_text(value) if isinstance(value, int) else str(value)


def _memory_text(candidate: dict[str, Any]) -> str:
    memory = candidate["memory"]
    outside = [term for term in memory["device_terms"] if term["place"] == Place.DEVICE.value]
    beside = sum(term["upper_bytes"] for term in outside)
    reserved = memory["reserved_bytes"]
    point = "" if reserved is None else f", reserved {bytes_text(reserved)}"
    also = f" and {bytes_text(beside)} beside it" if beside else ""
    return (
        f"{memory['verdict']}, peak {bytes_text(memory['peak_bytes'])}{point},"
        f" at most {bytes_text(memory['reserved_upper_bytes'])}{also}, of {bytes_text(memory['device_bytes'])}"
    )
