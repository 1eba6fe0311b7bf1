"""What a reader of another tool's file gives: parts of a case, and what of the file is not modelled."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Taken:
    """A configuration read: the keys of a Case that it fixes, by part (model, layout, workload, cluster, recipe)."""

    case: Mapping[str, Any]
    """as `case_from` takes it; a part that the file says nothing of is absent"""
    unmodelled: tuple[str, ...] = ()
    """keys of the file that we do not model, a line each with its value: listed, never dropped"""
    assumed: tuple[str, ...] = ()
    """what the file leaves open and we took, a line each"""
    ignored: tuple[str, ...] = field(default=())
    """keys that change neither memory nor time (names, logging), listed too"""
    global_batch: int | None = None
    """sequences a step, where the file says them; with the flags they give what of micro_batch, micro_batches and dp
    neither says"""
