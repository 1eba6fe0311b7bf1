"""The plan of a case says every message of its traffic, and reads a layout as its strategies run it."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from parallelism.simulator.case_plan import case_plan
from parallelism.simulator.kernel_time import GpuPricing, Passes, Rates
from parallelism.simulator.plan import COMMUNICATION, Cost, Issue, Part
from parallelism.simulator.program import Label, program_of
from parallelism.simulator.unit_messages import pass_seconds
from parallelism.simulator.update_cost import update_work
from parallelism.simulator.work import Moved, Work
from parallelism.traffic import messages_of
from suite.case import Case
from suite.collectives import Message
from suite.formats import formats_of
from suite.hardware import device
from suite.layout import Layout, Offload, Recompute, Schedule
from suite.models.decoder import DecoderSpec
from suite.models.ledgers import ledger_of
from suite.operators import Ledger, Segment
from suite.parse import SpecError
from suite.share import share_of
from suite.spec import Cluster, LossKernel, OptimizerKernel, OptimizerKind, Precision, Workload
from suite.tape import Backend

pytestmark = pytest.mark.unit

SPEC = DecoderSpec(layers=4, hidden=64, heads=4, kv_heads=2, ffn=160, vocab=256, max_positions=64, tied=False)
LAYOUTS = {
    "single": Layout(),
    "ddp": Layout(dp=4),
    "ddp, small buckets": Layout(dp=4, bucket_mib=1),
    "fsdp": Layout(fsdp=4),
    "fsdp, kept": Layout(fsdp=4, reshard_after_forward=False),
    "fsdp, every other rerun": Layout(fsdp=2, recompute=Recompute.parse("every-2")),
    "hsdp": Layout(dp=2, fsdp=2),
    "tp": Layout(tp=2, recompute=Recompute.parse("full")),
    "tp, no sequence parallelism": Layout(tp=2, sequence_parallel=False),
    "tp and replicas": Layout(dp=2, tp=2),
    "ring": Layout(fsdp=2, cp=2, recompute=Recompute.parse("selective-op")),
    "ring, unbalanced": Layout(cp=2, load_balance=False),
    "tp, ring and fsdp": Layout(fsdp=2, tp=2, cp=2, recompute=Recompute.parse("full")),
    "zero 0": Layout(dp=2, engine="deepspeed"),  # type: ignore[arg-type]
    "zero 1": Layout(dp=2, zero=1),
    "zero 2": Layout(dp=2, zero=2),
    "zero 3": Layout(dp=2, zero=3, recompute=Recompute.parse("full")),
    "pipeline": Layout(pp=2, dp=2),
    "pipeline of shards": Layout(pp=2, fsdp=2),
    "pipeline, zero bubble": Layout(pp=2, dp=2, schedule=Schedule.ZBV, virtual_stages=2),
    "pipeline and tp": Layout(pp=2, tp=2, recompute=Recompute.parse("full")),
}


def case(layout: Layout, **workload: object) -> Case:
    settings = {"seq_len": 64, "micro_batches": 4, "precision": Precision.BF16_MIXED, **workload}
    return Case(SPEC, layout, Workload(**settings), Cluster("h100-sxm"))  # type: ignore[arg-type]


def ledger(asked: Case, rank: int = 0) -> Ledger:
    share = share_of(asked.layout, rank)
    numerics = formats_of(asked).numerics
    return ledger_of(asked.model, asked.workload, asked.layout.recompute, numerics, Backend.CUDA, share=share)


class Idle:
    """A machine whose kernels take no time: what is left is communication."""

    def passes(self, segment: Segment) -> Passes:
        return Passes(Cost(), Cost(), Cost())

    def cost(self, works: Iterable[Work]) -> Cost:
        return Cost()


def sent(message: Message) -> float:
    """A message's bytes as its seconds; the collective counts, so that none passes for another."""
    return message.payload * (1 + len(message.collective) / 100) * message.ranks


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_plan_sends_what_the_traffic_says(name: str) -> None:
    asked = case(LAYOUTS[name])
    program = program_of(case_plan(asked, Idle(), sent))
    for place in range(asked.layout.pp):
        labels = [
            (label, seconds)
            for label, seconds in zip(program.graph.label, program.graph.seconds, strict=True)
            if isinstance(label, Label) and label.place == place
        ]
        spent = sum(seconds for label, seconds in labels if label.part in COMMUNICATION)
        late = 0 if asked.layout.is_balanced else (asked.layout.cp - 1) * asked.layout.tp
        rank = place * (asked.layout.world_size // asked.layout.pp) + late
        expected = sum(row.count * sent(row) for row in messages_of(asked, ledger(asked, rank), rank))
        assert spent == pytest.approx(expected, rel=1e-9)


def test_a_chunked_loss_and_fp16_send_what_the_traffic_says() -> None:
    chunked = case(Layout(fsdp=2, tp=2), loss=LossKernel.CHUNKED)
    for asked in (chunked, case(Layout(fsdp=4), precision=Precision.FP16_MIXED)):
        program = program_of(case_plan(asked, Idle(), sent))
        labels = zip(program.graph.label, program.graph.seconds, strict=True)
        spent = sum(seconds for label, seconds in labels if isinstance(label, Label) and label.part in COMMUNICATION)
        assert spent == pytest.approx(sum(row.count * sent(row) for row in messages_of(asked, ledger(asked))))


def test_a_block_waits_for_its_sequence_parallel_sums() -> None:
    asked = case(Layout(tp=2, recompute=Recompute.parse("full")), micro_batches=1)
    whole = ledger(asked)
    block = next(placed for placed in whole.segments if placed.prefix)
    found = pass_seconds(asked, whole, block, 0, Part.TENSOR, lambda message: 1.0)
    # gathers before attention and MLP, scatters after; backward as many; a rerun ends before the last scatter
    assert (found.forward, found.backward, found.rerun) == (4, 4, 3)


def test_a_ring_hides_behind_its_attention() -> None:
    asked = case(Layout(cp=4, load_balance=True), micro_batches=1)
    rates = Rates(device("h100-sxm"))

    def exposed(seconds: float) -> float:
        plan = case_plan(asked, GpuPricing(rates), lambda message: seconds * (message.axis == "cp"))
        return sum(spent for part, spent in plan.stages[0].units[1].forward.blocking if part is Part.CONTEXT)

    attention = GpuPricing(rates).passes(next(placed.segment for placed in ledger(asked).segments if placed.prefix))
    hidden = attention.attention[0] * 3 / 4  # all steps but the first
    assert exposed(0.0) == exposed(hidden / 7) == 0
    assert exposed(1.0) == pytest.approx(2 * 3 * 1.0 - hidden)  # keys and values, three times each


def test_shards_are_gathered_ahead_on_a_gpu_and_kept_as_the_layout_says() -> None:
    plan = case_plan(case(Layout(fsdp=4, reshard_after_forward=False)), Idle(), sent)
    units = plan.stages[0].units
    assert (plan.gathers, plan.reductions, plan.gathers_ahead, plan.keeps_after_forward) == (
        Issue.STREAMS, Issue.STREAMS, (1, 1), True,
    )  # fmt: skip
    assert [unit.is_kept for unit in units] == [True, False, False, False, False, False, False]
    assert units[0].gather > 0  # the root, with the first of it
    assert units[-1].gather == 0
    assert len({unit.gather for unit in units[1:5]}) == 1


def test_ddp_reduces_a_bucket_with_the_segment_that_fills_it() -> None:
    spec = DecoderSpec(layers=2, hidden=512, heads=4, ffn=1024, vocab=512, max_positions=64, tied=False)
    asked = Case(spec, Layout(dp=2, bucket_mib=10), Workload(seq_len=64), Cluster("h100-sxm"))
    plan = case_plan(asked, Idle(), lambda message: float(message.axis == "dp"))
    # fp32, in backward order: the head 1 MiB, then of each block its MLP's 6 and attention's 4: 11 and 10 fill a bucket
    assert [unit.reduce for unit in plan.stages[0].units] == [1, 1, 1, 0, 0]


def test_an_update_touches_each_number_as_often_as_its_rule() -> None:
    elements = ledger(case(Layout())).parameters

    def touched(layout: Layout, **workload: object) -> float:
        asked = case(layout, **workload)
        return sum(item.nbytes for item in update_work(asked, ledger(asked)) if isinstance(item, Moved))

    clip = 3 * 4  # a read for the norm, a read and a write to scale
    assert touched(Layout()) == (7 * 4 + clip) * elements  # fused AdamW: p, g, m, v in; p, m, v out
    assert touched(Layout(fsdp=4)) == (7 * 4 + clip) * elements / 4
    assert touched(Layout(), optimizer=OptimizerKind.SGD) == (5 * 4 + clip) * elements
    assert touched(Layout(), precision=Precision.BF16) == (7 * 2 + clip / 2) * elements
    assert touched(Layout(), optimizer_kernel=OptimizerKernel.FOREACH) > touched(Layout())


@pytest.mark.parametrize(("recompute", "is_joined"), [("none", False), ("full", True)])
def test_a_stage_that_reruns_makes_all_gradients_at_once(recompute: str, is_joined: bool) -> None:
    layout = Layout(pp=2, schedule=Schedule.ZBV, virtual_stages=2, recompute=Recompute.parse(recompute))
    plan = case_plan(case(layout), GpuPricing(Rates(device("h100-sxm"))), sent)
    assert all((unit.weights.seconds == 0) is is_joined for unit in plan.stages[1].units)


def test_what_waits_in_the_host_has_no_time_yet() -> None:
    with pytest.raises(SpecError, match=r"layout\.offload: parameters has no time yet"):
        case_plan(case(Layout(fsdp=2, offload=Offload.PARAMETERS)), Idle(), sent)
