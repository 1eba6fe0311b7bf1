"""Pipeline parallel: torch.distributed.pipelining. Each rank holds some blocks; micro-batches go through the ranks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from parallelism.base import Strategy
from parallelism.data.fsdp import shard_elements
from parallelism.schedules.stages import head_is_copied, rank_of_stage, stages_of, stages_of_rank
from suite.case import Case
from suite.collectives import Collective, Message
from suite.layout import Layout, RecomputeKind
from suite.record import Component
from suite.share import own_rows
from suite.spec import LossKernel, Precision

if TYPE_CHECKING:
    from torch import nn
    from torch.distributed.device_mesh import DeviceMesh

    from suite.operators import Ledger


def split(model: nn.Module, mesh: DeviceMesh | None, case: Case) -> nn.Module:
    """This rank's stages of the model, by number. Parameters keep the names that they have in the whole model."""
    from parallelism.pipeline.parts import StageParts, part_of
    from suite.models.decoder_module import Decoder

    assert mesh is not None
    assert isinstance(model, Decoder)
    stages, mine = stages_of(case), stages_of_rank(case.layout, mesh.get_local_rank("pp"))
    parts = {index: part_of(model, stages[index]) for index in mine}
    if head_is_copied(case) and stages[-1].index in parts:
        _copy_head(parts[stages[-1].index])
    return StageParts(parts, mesh["pp"].get_group())


def _copy_head(part: nn.Module) -> None:
    """Give the last stage a head of its own."""
    from torch import nn

    head = part.get_submodule("head")
    head.weight = nn.Parameter(head.get_parameter("weight").detach().clone())


def joins_weights(case: Case, stage: int) -> bool:
    """Are a stage's weights' gradients computed with its inputs', where the schedule would have them apart?

    Torch's weight pass runs autograd anew for each group of weights, and each run reruns what is checkpointed: a whole
    block for every one of its matrices, or all chunks' logits. Then one full backward is cheaper, and their pass empty.
    """
    if not case.layout.schedule.splits_backward:
        return False
    is_rerun = case.layout.recompute.kind in (RecomputeKind.FULL, RecomputeKind.SELECTIVE_OP, RecomputeKind.EVERY)
    return is_rerun or (case.workload.loss is LossKernel.CHUNKED and stage == case.layout.stages - 1)


# --- what is sent ------------------------------------------------------------------------------------------------


def ids_shape(case: Case) -> tuple[int, int]:
    """Token ids of a micro-batch on this rank, [b, s]."""
    return case.workload.micro_batch, case.workload.seq_len // case.layout.cp


def stream_shape(case: Case) -> tuple[int, int, int]:
    """What one stage hands to the next for a micro-batch: the residual stream [b, s, h] as this rank holds it."""
    batch, tokens = ids_shape(case)
    return batch, tokens // (case.layout.tp if case.layout.sequence_parallel else 1), case.model.hidden


def stream_bytes(case: Case) -> int:
    """Bytes of the stream: fp32, or bf16 where FSDP's policy casts it (autocast leaves the residual in fp32)."""
    batch, tokens, hidden = stream_shape(case)
    is_bf16 = case.workload.precision is Precision.BF16_MIXED and case.layout.fsdp > 1
    return batch * tokens * hidden * (2 if is_bf16 else 4)


def sends(case: Case, pp_rank: int) -> int:
    """Streams and gradients of streams that a pipeline rank sends in a step, each of stream_bytes.

    Counted: every micro-batch's output to the next stage and its gradient to the previous one. Not counted: stages of
    one rank that follow each other (in V schedules), which hand over without sending.
    """
    layout = case.layout
    neighbours = [
        other
        for stage in stages_of_rank(layout, pp_rank)
        for other in (stage - 1, stage + 1)
        if 0 <= other < layout.stages and rank_of_stage(layout, other) != pp_rank
    ]
    return len(neighbours) * case.workload.micro_batches


def messages(case: Case, ledger: Ledger, rank: int) -> tuple[Message, ...]:
    """What a rank sends along the pipeline in one step.

    Counted: streams and their gradients; the gradient of a tied head that two ranks have, each to the other, as this
    rank holds it (its part under tensor parallelism, its shard under FSDP2). Not counted: clipping's norm, which is the
    trainer's; the first step's agreement on shapes; evaluation.
    """
    layout, pp_rank = case.layout, case.layout.place("pp", rank)
    kept = (Collective.SEND, "pp", layout.pp)
    rows = [
        Message(
            *kept, stream_bytes(case), sends(case, pp_rank), "the stream to the next stage, its gradient back",
            "b*s/(cp*t)*h*4 (2 under FSDP2 in bf16)", "torch.distributed.pipelining",
        )
    ]  # fmt: skip
    ends = {rank_of_stage(layout, 0), rank_of_stage(layout, layout.stages - 1)}
    if head_is_copied(case) and len(ends) == 2 and pp_rank in ends:
        place = layout.place("fsdp", rank) * layout.cp + layout.place("cp", rank) if layout.fsdp > 1 else 0
        vocab = len(own_rows(case.model.vocab, layout.tp, layout.place("tp", rank)))
        payload = shard_elements((vocab, case.model.hidden), layout.shard_ranks, place) * 4
        rows.append(
            Message(
                *kept, payload, int(payload > 0), "the tied weight's gradient, to the other end of the pipeline",
                "V*h/(t*fsdp)*4", "Shoeybi et al. 2019, arXiv:1909.08053, section 3",
            )
        )  # fmt: skip
    return tuple(rows)


def _is_used(layout: Layout) -> bool:
    return layout.pp > 1


PIPELINE = Strategy(
    name="pipeline",
    axis="pp",
    divides=frozenset({Component.PARAMETERS, Component.GRADIENTS, Component.OPTIMIZER, Component.ACTIVATIONS}),
    overheads="activations of the micro-batches in flight; buffers for every micro-batch's input and gradient; "
    "a tied head's own copy",
    sends="the residual stream to the next stage and its gradient back, for each micro-batch; a tied head's gradient; "
    "one scalar for clipping",
    is_used=_is_used,
    apply=split,
    messages=messages,
    needs="a block for every stage; micro-batches as the schedule takes them",
    example={"pp": 2},
)
