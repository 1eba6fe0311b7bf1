"""Any legal layout of any decoder computes what one process computes: drawn, not chosen.

In fp64, where a right layout is a thousand times closer than the tolerance whatever the shapes.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
from hypothesis import HealthCheck, Phase, given, note, settings
from hypothesis import strategies as st

from suite.case import Case
from suite.case_rules import sequence_parts
from suite.layout import ContextMethod, Layout, Recompute, Reduction, Schedule
from suite.models.decoder import Activation, DecoderSpec, Norm, Position
from suite.spec import AttentionKernel, LossKernel, OptimizerKind, Precision, Workload
from tests.distributed.differences import are_same_bits
from tests.distributed.judgement import differences
from tests.distributed.plans import case_of, single_process
from tests.distributed.ranks import run_jobs, run_on_ranks
from tests.distributed.traces import merged, record

pytestmark = pytest.mark.distributed

EXAMPLES = 6
#: checkpointing, by: can tensor parallelism's sums be kept for a rerun?
RECOMPUTE = {
    False: ("none", "selective", "full", "every-2", "every-3"),
    True: ("none", "selective", "selective-op", "full", "every-2", "every-3"),
}


@st.composite
def models(draw: st.DrawFn) -> DecoderSpec:
    """Small decoders of every trait: heads need not fill the hidden width, widths need not divide by anything."""
    kv_heads = draw(st.integers(1, 2))
    return DecoderSpec(
        layers=draw(st.integers(1, 3)),
        hidden=draw(st.integers(8, 40)),
        heads=kv_heads * draw(st.integers(1, 3)),
        kv_heads=kv_heads,
        head_dim=2 * draw(st.integers(1, 5)),
        ffn=draw(st.integers(3, 40)),
        vocab=draw(st.integers(5, 120)),
        max_positions=draw(st.integers(12, 20)),
        norm=draw(st.sampled_from((Norm.LAYERNORM, Norm.RMSNORM))),
        activation=draw(st.sampled_from(Activation)),
        position=draw(st.sampled_from((Position.LEARNED, Position.ROPE))),
        bias=draw(st.booleans()),
        qkv_bias=draw(st.booleans()),
        tied=draw(st.booleans()),
        dropout=draw(st.sampled_from((0.0, 0.1))),
        name="drawn",
    )


@st.composite
def sharded_layouts(draw: st.DrawFn) -> Layout:
    """FSDP2 and HSDP with any of its settings."""
    dp, fsdp = draw(st.sampled_from([(1, 2), (1, 3), (1, 4), (2, 2)]))
    ways: list[bool | int] = [True, False, *([2] if fsdp == 4 else [])]
    return Layout(
        dp=dp,
        fsdp=fsdp,
        reshard_after_forward=draw(st.sampled_from(ways)),
        forward_prefetch=draw(st.integers(0, 2)),
        backward_prefetch=draw(st.integers(0, 3)),
    )


@st.composite
def divided_layouts(draw: st.DrawFn) -> Layout:
    """Tensor parallelism alone, and beside replicas, FSDP2 and context parallelism."""
    beside = draw(st.sampled_from([{}, {"tp": 4}, {"dp": 2}, {"fsdp": 2}, {"cp": 2}]))
    return Layout(
        **({"tp": 2} | beside),
        sequence_parallel=draw(st.booleans()),
        context=draw(st.sampled_from(ContextMethod)),
        load_balance=draw(st.booleans()),
    )


@st.composite
def piped_layouts(draw: st.DrawFn) -> Layout:
    """Two pipeline ranks under any schedule, alone and beside replicas, FSDP2, tensor and context parallelism."""
    schedule = draw(st.sampled_from(Schedule))
    beside = draw(st.sampled_from([{}, {"dp": 2}, {"fsdp": 2, "reshard_after_forward": False}, {"tp": 2}, {"cp": 2}]))
    return Layout(pp=2, schedule=schedule, virtual_stages=schedule.stages_a_rank[0], **beside)


def made_to_fit(model: DecoderSpec, seq_len: int, layout: Layout) -> tuple[DecoderSpec, int]:
    """The model and the sequence made wide and long enough for the layout's rules."""
    ranks, parts = layout.tp * layout.cp, sequence_parts(layout)
    wider = replace(
        model,
        layers=max(model.layers, layout.stages),
        heads=model.heads * ranks,
        kv_heads=model.kv_heads * ranks,
        ffn=model.ffn * layout.tp,
        vocab=model.vocab + 2 * ranks,
        max_positions=model.max_positions + parts,
    )
    return wider, -(-seq_len // parts) * parts


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Models under data-parallel, sharded or divided layouts of up to 4 ranks, with every workload's choices."""
    layout = draw(
        st.builds(Layout, dp=st.integers(1, 4)) | sharded_layouts() | divided_layouts() | piped_layouts(),
    )
    layout = replace(
        layout,
        reduction=Reduction.STEP if layout.pp > 1 else draw(st.sampled_from(Reduction)),
        recompute=Recompute.parse(draw(st.sampled_from(RECOMPUTE[layout.tp == 1 or layout.sequence_parallel]))),
    )
    # of one token alone, attention has no gradient
    model, seq_len = made_to_fit(draw(models()), draw(st.integers(4, 12)), layout)
    workload = Workload(
        seq_len=seq_len,
        micro_batch=draw(st.integers(1, 2)),
        micro_batches=draw(st.sampled_from((4, 6))) if layout.pp > 1 else draw(st.integers(1, 3)),
        precision=Precision.FP32,
        optimizer=draw(st.sampled_from((OptimizerKind.ADAMW, OptimizerKind.SGD))),
        attention=draw(st.sampled_from(AttentionKernel)),
        loss=draw(st.sampled_from(LossKernel)),
    )
    return case_of(model, layout, workload, learning_rate=1e-2)


@settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    phases=(Phase.explicit, Phase.reuse, Phase.generate),  # shrinking would outlast the time-out
)
@given(cases())
def test_a_drawn_layout_computes_what_one_process_computes(case: Case) -> None:
    note(f"{case.label} {case.to_mapping()}")
    stored = replace(case, layout=replace(case.layout, recompute=Recompute()))
    jobs = [partial(record, each, double=True) for each in (case, stored)]
    trace, of_stored = (merged(ran.result()) for ran in run_jobs(case.layout.world_size, jobs))
    reference = merged(run_on_ranks(1, partial(record, single_process(case), double=True)))
    assert not differences(trace, reference, case, is_double=True)
    if layout_keeps_order(case.layout):
        assert are_same_bits(trace, of_stored)


def layout_keeps_order(layout: Layout) -> bool:
    """Are sums taken in the same order with checkpointing? A split backward pass is joined under it."""
    return layout.pp == 1 or not layout.schedule.splits_backward
