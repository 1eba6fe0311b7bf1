"""What a rank sends once a step, with its update: norms, what tensor parallelism and ties add up, new parameters."""

from __future__ import annotations

from parallelism.data import replicate
from parallelism.pipeline.strategy import PIPELINE
from parallelism.simulator.plan import Part
from parallelism.simulator.unit_messages import once_a_step
from parallelism.traffic import clipping_messages, scaling_messages
from parallelism.zero.redundancy import ZERO_REDUNDANCY
from parallelism.zero.strategy import ZERO
from suite.case import Case
from suite.collectives import Collective, Message
from suite.layout import Layout
from suite.operators import Ledger


def update_messages(case: Case, whole: Ledger, rank: int) -> dict[Part, list[Message]]:
    """By what they are for; the ledger is all that the rank holds. Not counted: the norm's sum over the pipeline, which
    all of its ranks wait for (StepPlan.agree)."""
    layout = case.layout
    rows: dict[Part, list[Message]] = {Part.TENSOR: once_a_step(case, whole, rank)}
    rows[Part.NORM] = [row for row in (*clipping_messages(layout), *scaling_messages(case)) if row.axis != "pp"]
    if PIPELINE.is_used(layout):
        rows[Part.PIPELINE] = list(PIPELINE.messages(case, whole, rank)[1:])
    if replicate.REPLICATE.is_used(layout):
        rows[Part.REDUCTION] = list(replicate.REPLICATE.messages(case, whole, rank))
    if ZERO_REDUNDANCY.is_used(layout):
        rows[Part.GATHER] = list(ZERO_REDUNDANCY.messages(case, whole, rank))
    if ZERO.is_used(layout):
        sent = [row for row in ZERO.messages(case, whole, rank) if _ends_step(layout, row.purpose)]
        rows[Part.GATHER] = [row for row in sent if row.collective is Collective.ALL_GATHER]
        rows[Part.NORM] += [row for row in sent if row.collective is not Collective.ALL_GATHER]
    return rows


def _ends_step(layout: Layout, purpose: str) -> bool:
    """Is it DeepSpeed's for the update: norms, the overflow's flag, the new parameters?"""
    return not purpose.startswith(("average the gradients", "gather a module"))
