"""What torch's pipeline stages hold between steps, from the first step on: a buffer for every micro-batch's input and
for the gradient of its output."""

from __future__ import annotations

from memory.events import Label
from memory.holding import Holding
from parallelism.pipeline.strategy import stream_bytes
from parallelism.schedules.stages import stages_of_rank
from suite.case import Case
from suite.record import Component

SOURCE = "torch/distributed/pipelining/stage.py"
#: stage.py makes args_recv_info and grad_recv_info for every micro-batch in the first step
BUFFER = Label(Component.COMMUNICATION, "stage buffers", "", 0, SOURCE)


def pipeline_holdings(case: Case, pp_rank: int) -> tuple[Holding, ...]:
    """Stage buffers of a pipeline rank."""
    layout = case.layout
    stages, count = stages_of_rank(layout, pp_rank), case.workload.micro_batches
    buffers = sum((stage > 0) + (stage < layout.stages - 1) for stage in stages) * count
    return (
        Holding(
            BUFFER.component, buffers * stream_bytes(case), BUFFER.name, "m*(inputs + output gradients)*b*s*h*4",
            SOURCE, is_lazy=True,
        ),
    )  # fmt: skip
