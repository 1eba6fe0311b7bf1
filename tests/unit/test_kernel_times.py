"""Seconds of kernels by hand, theorems about a step of flat rates, and what compiling and reruns leave out."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parallelism.simulator.case_plan import case_plan
from parallelism.simulator.engine import run
from parallelism.simulator.fused_work import compiled_work
from parallelism.simulator.kernel_time import GpuPricing, Rates
from parallelism.simulator.program import program_of
from parallelism.simulator.stack import Execution, Flash, Norms, Reruns, Rotary, Stack
from parallelism.simulator.work import Attention, Moved, Product, SegmentWork, eager_work
from suite.case import Case
from suite.cpu_workspace import CpuWorkspace
from suite.hardware import device
from suite.hardware.curve import Curve
from suite.hardware.device import MatmulDtype
from suite.hardware.speeds import Speeds
from suite.layout import ContextMethod, Layout, Recompute
from suite.models.decoder import DecoderSpec
from suite.models.ledgers import ledger_of
from suite.operators import Array, DType, Segment, Size, Split
from suite.share import Share
from suite.spec import Cluster, Precision, Workload
from suite.tape import BF16_POLICY, Backend, Tape

pytestmark = pytest.mark.unit

SPEC = DecoderSpec(layers=3, hidden=256, heads=2, kv_heads=1, ffn=640, vocab=1000, max_positions=512, tied=False)
#: nobody waits for memory, launches or the host
FREE = 1e30


def speeds(matmul: float = 1e12, attention: float = 1e12, memory: float = FREE, launch: float = 0.0) -> Speeds:
    """The same rates at every size, in bf16."""
    return Speeds(
        "h100-sxm",
        {MatmulDtype.BF16: Curve.flat(matmul, ""), MatmulDtype.FP8: Curve.flat(2 * matmul, "")},
        {MatmulDtype.BF16: Curve.flat(attention, "")},
        Curve.flat(memory, ""),
        launch,
    )


def rates(**figures: float) -> Rates:
    return Rates(device("h100-sxm"), speeds(**figures))


def case(recompute: str = "none", **workload: object) -> Case:
    settings = {"seq_len": 512, "micro_batch": 2, "precision": Precision.BF16, **workload}
    layout = Layout(recompute=Recompute.parse(recompute))
    return Case(SPEC, layout, Workload(**settings), Cluster("h100-sxm"))  # type: ignore[arg-type]


def seconds(asked: Case, found: Rates, stack: Stack = Stack()) -> float:  # noqa: B008  # frozen
    program = program_of(case_plan(asked, GpuPricing(found, stack), lambda message: 0.0))
    return run(program.graph, program.sharing).total


def tape() -> Tape:
    return Tape(BF16_POLICY, Backend.CUDA, CpuWorkspace(1, False))


def stream(width: int) -> Array:
    return Array("x", (Size("b", 2), Size("s", 8), Size("h", width)), DType.BF16)


def block(recompute: str = "none") -> Segment:
    asked = case(recompute)
    ledger = ledger_of(SPEC, asked.workload, asked.layout.recompute, BF16_POLICY, Backend.CUDA)
    return next(placed.segment for placed in ledger.segments if placed.prefix)


def moved(work: tuple[object, ...]) -> float:
    return sum(item.nbytes for item in work if isinstance(item, Moved))


def flops(work: tuple[object, ...]) -> float:
    return sum(item.flops for item in work if isinstance(item, Product | Attention))


def test_a_linear_takes_its_products_over_their_rate() -> None:
    paper = tape()
    paper.linear("up", stream(32), Size("f", 64), False, Split.NONE)
    work = eager_work(paper.body)
    # 16 tokens, 32 in, 64 out: 2 * 16 * 32 * 64 FLOPs forward, as many for each gradient
    assert [list(map(rates(matmul=65536.0).seconds, part)) for part in (work.forward, work.inputs, work.weights)] == [
        [1.0],
        [1.0],
        [1.0],
    ]


def test_a_product_of_half_the_side_takes_its_bytes_too() -> None:
    # no curve: FLOPs / top + bytes / bandwidth, a cube of 64 in bf16 moves 3 * 64^2 numbers of 2 bytes
    found = Rates(device("h100-sxm"), replace(speeds(memory=1e9), matmul={}))
    top = 0.9 * 794.5e12  # hw_micro.csv hw-0004
    assert found.seconds(Product(64, 64, 64, DType.BF16)) == pytest.approx(2 * 64**3 / top + 3 * 64**2 * 2 / 1e9)


def test_a_norm_reads_its_row_twice_and_writes_it_once() -> None:
    paper = tape()
    paper.layer_norm("norm", stream(32), True)
    work = eager_work(paper.body)
    x, weights, moments = 16 * 32 * 2, 2 * 32 * 2, 2 * 16 * 2
    assert moved(work.forward) == 2 * (x + weights) + x + moments
    # gradient, input and moments for the sums, once more to write, and by the kernel of the weights' gradients
    assert moved(work.inputs) == 3 * (x + x + moments) + x + weights


def test_a_launch_is_paid_for_every_kernel() -> None:
    work = eager_work(block().body)
    kernels = sum(map(len, (work.forward, work.inputs, work.weights)))
    priced = GpuPricing(rates(matmul=FREE, attention=FREE, launch=1.0)).passes(block())
    assert priced.forward.compute + priced.inputs.compute + priced.weights.compute == pytest.approx(kernels)


@pytest.mark.parametrize("execution", Execution)
def test_with_flat_rates_alone_a_step_is_its_flops(execution: Execution) -> None:
    tokens, kv = 2 * 512, 128
    matrices = 3 * (2 * 256 * 256 + 2 * 256 * kv + 3 * 256 * 640) + 256 * 1000  # 6 N D: blocks and head
    square = 2 * 2 * 512 * 512 * 256 / 2  # a sequence's two products, half of them masked away
    expected = (6 * matrices * tokens + 3 * 2 * square * 3.5) / 1e12  # layers * sequences * (1 + 2.5)
    assert seconds(case(), rates(), Stack(execution)) == pytest.approx(expected, rel=1e-9)


def test_attention_has_its_own_rate_and_narrow_heads_a_lower_one() -> None:
    work = Attention(1e12, 512, DType.BF16, 64)
    assert rates(attention=2e12).seconds(replace(work, width=128)) == 0.5
    assert rates(attention=2e12).seconds(work) == pytest.approx(0.5 * 189 / 171)
    old = GpuPricing(rates(), Stack(flash=Flash.ONE)).passes(block()).attention[0]
    assert old == pytest.approx(2 * GpuPricing(rates()).passes(block()).attention[0])


@given(st.floats(0.1, 10), st.sampled_from(["matmul", "attention", "memory"]))
def test_a_faster_device_is_never_slower(factor: float, which: str) -> None:
    figures = {"matmul": 1e12, "attention": 1e12, "memory": 1e10}
    slow, fast = sorted([figures[which], figures[which] * factor])
    asked = case("selective-op")
    assert seconds(asked, rates(**{**figures, which: fast})) <= seconds(asked, rates(**{**figures, which: slow}))


@pytest.mark.parametrize("recompute", ["none", "full", "selective", "selective-op", "every-2"])
@pytest.mark.parametrize("precision", [Precision.BF16, Precision.BF16_MIXED, Precision.FP8, Precision.FP8_ROWWISE])
def test_compiling_moves_fewer_bytes_and_multiplies_the_same(recompute: str, precision: Precision) -> None:
    asked = case(recompute, precision=precision)
    found = rates(memory=1e10, launch=1e-6)
    assert seconds(asked, found, Stack(Execution.COMPILED)) < seconds(asked, found)
    segment = block(recompute)
    eager, compiled = eager_work(segment.body), compiled_work(segment)
    for part in ("forward", "inputs", "weights", "rerun"):
        assert flops(getattr(compiled, part)) == flops(getattr(eager, part))


def test_a_compiled_block_reads_and_writes_what_runs_of_kernels_leave() -> None:
    # in units of the stream [b, s, h]: keys and values are h/2 wide, the MLP 2.5 h
    norm, rope, add_and_norm, gate, add = 2, 2 * 1.5, 4, 3 * 2.5, 3
    unit = 2 * 512 * 256 * 2
    small = 2 * 256 * 2 + 2 * 2 * 512 * 4  # two norms' weights; their rms, which nobody else reads
    assert moved(compiled_work(block()).forward) == pytest.approx(
        (norm + rope + add_and_norm + gate + add) * unit, abs=small
    )


def test_a_rerun_stops_before_the_last_product_and_skips_what_is_held() -> None:
    tokens, qkv, out, up = 1024, 2 * 256 * (256 + 2 * 128), 2 * 256 * 256, 2 * 256 * 640
    square = 2 * (2 * 2 * 512 * 512 * 256) / 2
    body = block("full").body
    assert flops(eager_work(body).rerun) == tokens * (qkv + out + 2 * up) + square
    assert flops(eager_work(body, stops_early=False).rerun) == tokens * (qkv + out + 3 * up) + square
    # held: queries, values, gate, down (every other product from the first), attention
    assert flops(eager_work(block("selective-op").body).rerun) == tokens * (2 * 256 * 128 + out + up)


@pytest.mark.parametrize("execution", Execution)
@pytest.mark.parametrize("context", ContextMethod)
def test_context_ranks_share_the_attention(context: ContextMethod, execution: Execution) -> None:
    """Balanced, each of two ranks makes half of a sequence's products, backward five for two."""
    share = Share(cp=2, context=context, is_balanced=context is ContextMethod.RING)
    ledger = ledger_of(SPEC, case().workload, Recompute(), BF16_POLICY, Backend.CUDA, share=share)
    segment = next(placed.segment for placed in ledger.segments if placed.prefix)
    work = GpuPricing(rates(), Stack(execution))._work(segment)
    forward, backward = (
        sum(item.flops for item in part if isinstance(item, Attention)) for part in (work.forward, work.inputs)
    )
    square = 2 * (2 * 2 * 512 * 512 * 256) / 2
    assert (forward, backward) == (square / 2, 2.5 * square / 2)


def test_older_stacks_move_more() -> None:
    def of(stack: Stack) -> SegmentWork:
        return eager_work(stack.applied(block()).body)

    plain, composite, complex_ = (
        of(Stack(**each)) for each in ({}, {"norms": Norms.COMPOSITE}, {"rotary": Rotary.COMPLEX})
    )
    unit = 1024 * 256 * 2
    # two norms: 40 bytes an element (cast 6, square 8, mean 4, products 16, cast 6) and not 6
    assert moved(composite.forward) - moved(plain.forward) == pytest.approx(2 * (20 - 3) * unit, rel=0.01)
    # one and a half projections: 20 bytes an element (6, 8, 6) and not 14
    assert moved(complex_.forward) - moved(plain.forward) == pytest.approx(1.5 * (10 - 7) * unit, rel=0.01)
    assert GpuPricing(rates(), Stack(reruns=Reruns.WHOLE)).passes(block("full")).rerun.compute > (
        GpuPricing(rates()).passes(block("full")).rerun.compute
    )


def test_the_host_is_busy_only_in_eager_torch() -> None:
    found = replace(rates(), speeds=replace(speeds(), host_s=1.0))
    assert GpuPricing(found).passes(block()).forward.host == len(eager_work(block().body).forward)
    assert GpuPricing(found, Stack(Execution.COMPILED)).passes(block()).forward.host == 0
    assert math.isfinite(seconds(case(), found))
