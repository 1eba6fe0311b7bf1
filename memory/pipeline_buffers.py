"""What torch's pipeline stages hold between steps, from the first step on: a buffer for every micro-batch's input and
for the gradient of its output, and input gradients that are let go only when the next step begins."""

from __future__ import annotations

from memory.events import Label
from memory.state import Holding
from parallelism.pipeline import joins_weights, stream_bytes
from parallelism.pipeline_orders import Pass, schedule_order
from parallelism.stages import stages_of_rank
from suite.case import Case
from suite.record import Component

SOURCE = "torch/distributed/pipelining/stage.py"
#: stage.py makes args_recv_info and grad_recv_info for every micro-batch in the first step
BUFFER = Label(Component.COMMUNICATION, "stage buffers", "", 0, SOURCE)
#: _backward.py, stage_backward_input sets a buffer's .grad; clear_runtime_states drops it
LEFT = Label(Component.COMMUNICATION, "input gradients of the last step", "", 0, SOURCE)


def pipeline_holdings(case: Case, pp_rank: int) -> tuple[Holding, ...]:
    """Stage buffers of a pipeline rank, and its input gradients that wait for the next step."""
    layout = case.layout
    stages, count = stages_of_rank(layout, pp_rank), case.workload.micro_batches
    buffers = sum((stage > 0) + (stage < layout.stages - 1) for stage in stages) * count
    left = sum(left_gradients(case, pp_rank).values())
    stream = stream_bytes(case)
    rows = (
        Holding(
            BUFFER.component, buffers * stream, BUFFER.name, "m*(inputs + output gradients)*b*s*h*4", SOURCE,
            is_lazy=True,
        ),
        Holding(LEFT.component, left * stream, LEFT.name, "m*inputs*b*s*h*4", SOURCE, is_lazy=True),
    )  # fmt: skip
    return tuple(row for row in rows if row.nbytes)


def left_gradients(case: Case, pp_rank: int) -> dict[int, int]:
    """Stage -> micro-batches whose input gradient its buffer keeps as .grad: those with a backward of inputs alone.

    Not counted: what is handed to a stage on the same rank, for that one's buffer holds it anyway.
    """
    mine = stages_of_rank(case.layout, pp_rank)
    found: dict[int, int] = {}
    for action in schedule_order(case, pp_rank):
        stage = action.stage
        if action.kind is Pass.INPUT and stage and stage - 1 not in mine and not joins_weights(case, stage):
            found[stage] = found.get(stage, 0) + 1
    return found
