"""A Decoder whose sequences are spread over two ranks computes what it computes alone, and sends what the facts say."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from parallelism.checkpointing import CHECKPOINTING
from parallelism.context.strategy import CONTEXT, context_messages
from parallelism.mesh import build_mesh
from suite.case import Case
from suite.collectives import Call, Collective, tally
from suite.layout import ContextMethod, Layout, Recompute
from suite.models.decoder_module import Decoder
from suite.sequence_shards import shard_sequence
from suite.spec import AttentionKernel, Precision, Workload
from tests.distributed.plans import FORMS, single_process
from tests.distributed.ranks import run_jobs, run_on_ranks

pytestmark = pytest.mark.distributed

RING, ULYSSES = ContextMethod
SEQ_LEN, SEQUENCES = 16, 2


@dataclass(frozen=True)
class Plan:
    """A Decoder over two ranks, by its choices."""

    form: str
    context: ContextMethod = RING
    balanced: bool = True
    recompute: str = "none"
    dropout: float = 0.0
    attention: AttentionKernel = AttentionKernel.FLASH
    precision: Precision = Precision.FP32

    def __str__(self) -> str:
        parts = [self.form, self.context.value, self.recompute, self.attention.value, self.precision.value]
        return "-".join(parts + ["unbalanced"] * (not self.balanced) + ["dropout"] * (self.dropout > 0))

    @property
    def case(self) -> Case:
        """The case that the plan names."""
        layout = Layout(
            cp=2, context=self.context, load_balance=self.balanced, recompute=Recompute.parse(self.recompute)
        )
        workload = Workload(seq_len=SEQ_LEN, micro_batch=SEQUENCES, attention=self.attention, precision=self.precision)
        return Case(replace(FORMS[self.form], dropout=self.dropout), layout=layout, workload=workload)


PLANS = [
    Plan("gpt"),
    Plan("gpt", ULYSSES, attention=AttentionKernel.EAGER, dropout=0.2),
    Plan("gpt", balanced=False, recompute="selective", dropout=0.2),
    Plan("llama-gqa", recompute="full", dropout=0.2),
    Plan("llama-gqa", balanced=False, attention=AttentionKernel.EAGER),
    Plan("gpt", recompute="selective-op", dropout=0.2),
    Plan("llama-gqa", ULYSSES, recompute="selective"),
    Plan("llama-tied", recompute="every-2"),
]
SENDING = [
    Plan("gpt", recompute="selective", precision=Precision.BF16_MIXED),
    Plan("llama-gqa", ULYSSES, recompute="selective-op", precision=Precision.BF16_MIXED),
    Plan("llama-gqa", ULYSSES, recompute="selective"),
    Plan("gpt", ULYSSES, recompute="full"),
    Plan("llama-tied", balanced=False, recompute="every-2"),
    Plan("llama-gqa"),
]

Step = tuple[float, dict[str, Tensor]]  # loss, gradients


def build(case: Case) -> Decoder:
    """The model with weights that every rank draws alike."""
    torch.manual_seed(1)
    model = Decoder(case.model, case.workload.attention, case.workload.loss)
    model.reset_parameters()
    return model


def batch(case: Case) -> list[Tensor]:
    """ids, labels [b, s] and keys [b], whole."""
    draw = torch.Generator().manual_seed(2)
    ids, labels = (torch.randint(case.model.vocab, (SEQUENCES, SEQ_LEN), generator=draw) for _ in range(2))
    return [ids, labels, torch.arange(7, 7 + SEQUENCES)]


def step(case: Case, rank: int, kind: torch.dtype = torch.float64) -> Step:
    """A rank's loss and gradients; with cp 1, the single process's."""
    model: nn.Module = build(case).to(kind)
    ids, labels, keys = batch(case)
    mesh = build_mesh(case.layout, "cpu")
    if case.layout.cp > 1:
        ids, labels = (shard_sequence(x, case.layout.cp, rank, case.layout.is_balanced) for x in (ids, labels))
        model = CONTEXT.apply(model, mesh, case)
    if CHECKPOINTING.is_used(case.layout):
        model = CHECKPOINTING.apply(model, mesh, case)
    is_mixed = case.workload.precision is Precision.BF16_MIXED
    # the loss kernels take logits to fp32; in fp64, nothing may
    with patch.object(Tensor, "float", Tensor.double) if kind is torch.float64 else nullcontext():
        with torch.autocast("cpu", torch.bfloat16, enabled=is_mixed):
            loss = model(ids, labels, keys)
        loss.backward()
    names = ((name.replace("_checkpoint_wrapped_module.", ""), item.grad) for name, item in model.named_parameters())
    return loss.item(), {name: grad for name, grad in names if grad is not None}


@pytest.fixture(scope="module")
def ran() -> dict[Plan, tuple[Step, Step]]:
    done = run_jobs(2, [partial(step, plan.case) for plan in PLANS])
    return {plan: (steps.result()[0], steps.result()[1]) for plan, steps in zip(PLANS, done, strict=True)}


@pytest.mark.parametrize("plan", PLANS, ids=str)
def test_two_ranks_average_to_one_process(ran: dict[Plan, tuple[Step, Step]], plan: Plan) -> None:
    alone = step(single_process(plan.case), 0)
    (first_loss, first), (second_loss, second) = ran[plan]
    assert (first_loss + second_loss) / 2 == pytest.approx(alone[0], rel=1e-13)
    assert first_loss != second_loss
    assert first.keys() == second.keys() == alone[1].keys()
    mean = {name: (first[name] + second[name]) / 2 for name in first}
    # without rotation a key's bias shifts a query's scores alike: its true gradient is 0, what is left is rounding
    scale = {name: alone[1][name.replace("wk.bias", "wk.weight")].abs().max() for name in mean}
    far = {name: ((mean[name] - alone[1][name]).abs().max() / scale[name]).item() for name in mean}
    assert max(far.values()) < 1e-12, far


# --- traffic -------------------------------------------------------------------------------------------------


def calls_of(case: Case, rank: int) -> list[Call]:
    """What a rank sends in a step, as it is asked for."""
    calls: list[Call] = []
    send, exchange = dist.batch_isend_irecv, dist.all_to_all_single

    def counted_send(messages: list[dist.P2POp]) -> Any:
        calls.extend(Call(Collective.SEND, 2, one.tensor.nbytes) for one in messages if one.op is dist.isend)
        return send(messages)

    def counted_exchange(received: Tensor, parts: Tensor, group: dist.ProcessGroup) -> Any:
        calls.append(Call(Collective.ALL_TO_ALL, 2, parts.nbytes))
        return exchange(received, parts, group=group)

    with patch.multiple(dist, batch_isend_irecv=counted_send, all_to_all_single=counted_exchange):
        step(case, rank, torch.float32)
    return calls


def test_ranks_send_what_the_facts_say() -> None:
    def count(rank: int) -> list[list[Call]]:
        return [calls_of(plan.case, rank) for plan in SENDING]

    for rows in run_on_ranks(2, count):
        for plan, calls in zip(SENDING, rows, strict=True):
            case = plan.case
            assert tally(calls) == tally(context_messages(case, range(case.model.layers))), plan
