"""Cases of every model family: short ones over the layouts that each takes, and one a family that learns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from suite.case import Case, case_from
from suite.models import preset
from suite.parse import SpecError

#: layouts of two ranks and one, with recomputation
_COMMON: tuple[dict[str, Any], ...] = (
    {},
    {"recompute": "full"},
    {"dp": 2},
    {"fsdp": 2},
    {"dp": 2, "zero": 1, "bucket_mib": 4},
    {"dp": 2, "zero": 3, "bucket_mib": 4},
)
_DIVIDED: tuple[dict[str, Any], ...] = ({"tp": 2}, {"pp": 2}, {"ep": 2}, {"ep": 2, "fsdp": 2})
#: tiny models -> what a held-out loss below the trivial predictor's takes
FAMILIES: Mapping[str, Mapping[str, Any]] = {
    "transformer-1m": {"steps": 300, "learning_rate": 2e-3},
    "t5-1m": {"steps": 300, "learning_rate": 2e-3},
    "bert-1m": {"steps": 300, "learning_rate": 2e-3},
    "mixtral-1m": {"steps": 150, "learning_rate": 2e-3},
    "deepseek-v2-1m": {"steps": 150, "learning_rate": 2e-3},
    "deepseek-v3-1m": {"steps": 150, "learning_rate": 2e-3},
    "gru-1m": {"steps": 300, "learning_rate": 4e-3},
    "lstm-1m": {"steps": 300, "learning_rate": 4e-3},
    "alibi-1m": {"steps": 150, "learning_rate": 2e-3},
    "linear-1m": {"steps": 150, "learning_rate": 2e-3},
}


def families_suite() -> tuple[Case, ...]:
    """Every family under every layout of one to four ranks that it takes, one global batch a family, in fp32: losses
    coincide; mixed precision on one rank; and one run of each that learns."""
    return (*_short(_COMMON + _DIVIDED), *_mixed(), *_learning())


def _short(layouts: Sequence[dict[str, Any]]) -> Iterator[Case]:
    for name in FAMILIES:
        for layout in layouts:
            ranks = layout.get("dp", 1) * layout.get("fsdp", 1) * layout.get("ep", 1)
            workload = {"seq_len": 64, "micro_batch": 4 // ranks, "micro_batches": 2, "precision": "fp32"}
            found = _case(name, layout, workload, {"steps": 6, "warmup_steps": 2})
            if found is not None:
                yield found


def _mixed() -> Iterator[Case]:
    for name in FAMILIES:
        found = _case(name, {}, {"seq_len": 64, "micro_batch": 4, "precision": "bf16-mixed"}, {"steps": 6})
        if found is not None:
            yield found


def _learning() -> Iterator[Case]:
    for name, recipe in FAMILIES.items():
        workload = {"seq_len": 128, "micro_batch": 16, "precision": "fp32"}
        found = _case(name, {}, workload, {"warmup_steps": 20, "validation_batches": 4, **recipe})
        if found is not None:
            yield found


def _case(name: str, layout: Mapping[str, Any], workload: Mapping[str, Any], recipe: Mapping[str, Any]) -> Case | None:
    """The case; None where the family does not take the layout."""
    try:
        return case_from({"model": preset(name).name, "layout": layout, "workload": workload, "recipe": recipe})
    except SpecError:
        return None
