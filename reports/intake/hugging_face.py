"""A Hugging Face config.json as a case's model: every family that suite.models.hf_config reads."""

from __future__ import annotations

from typing import Any

from reports.intake.base import Taken
from suite.models.hf_config import load_hf_config
from suite.models.hf_fields import Unfollowed
from suite.parse import to_mapping
from suite.spec import Workload


def recognises_hugging_face(head: str) -> bool:
    """Does a file's beginning show a config.json? All of them say their model_type."""
    return '"model_type"' in head


def read_hugging_face(path: str) -> Taken:
    """The model that a config.json describes, and what of the file it does not follow: unknown fields, fields that
    change numbers alone, dropout. SpecError, in one line, for a family that is not modelled and for a field that
    changes memory or time and is not.
    """
    left = Unfollowed()
    found = load_hf_config(path, left)
    unknown = (f"{line}: not known, so what it changes is not modelled" for line in left.unknown)
    unmodelled = (*found.notices, *left.maths, *unknown)
    case: dict[str, Any] = {"model": to_mapping(found.spec)}
    assumed, usual = list(left.assumed.values()), Workload().seq_len
    if found.spec.max_positions < usual:
        case["workload"] = {"seq_len": found.spec.max_positions}
        assumed.append(f"workload.seq_len {found.spec.max_positions}: the model's longest, below the usual {usual}")
    return Taken(case, unmodelled, tuple(assumed), tuple(left.harmless.values()))
