"""What must hold of any estimate: sharding divides, more work never needs less, more recomputation never keeps more."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memory.estimate import MemoryModel
from suite.case import Case, case_from
from suite.layout import RecomputeKind
from suite.models.presets import PRESETS
from suite.record import Component, MemoryEstimate, Moment

pytestmark = pytest.mark.unit

MODELS = st.sampled_from(["gpt-1m", "llama-1m"])
PRECISIONS = st.sampled_from(["fp32", "bf16-mixed"])
ATTENTION = st.sampled_from(["flash", "eager"])
LOSSES = st.sampled_from(["plain", "chunked"])
RECOMPUTE = st.sampled_from(["none", "selective", "selective-op", "full", "every-2"])


def model_of(model: Any, layout: dict[str, Any] | None = None, **workload: Any) -> MemoryModel:
    """An estimate for a GPU: the CPU's workspace depends on how many ranks share its cores."""
    work = {"seq_len": 64} | workload
    cluster = {"device": "h100-sxm"}
    return MemoryModel(case_from({"model": model, "layout": layout or {}, "workload": work, "cluster": cluster}))


def states(memory: MemoryEstimate) -> int:
    """Bytes of parameters, gradients and optimizer state once all exist."""
    row = memory.by_moment[Moment.AFTER_BACKWARD]
    return row[Component.PARAMETERS] + row[Component.GRADIENTS] + row[Component.OPTIMIZER]


@pytest.mark.parametrize("rank", [0, 63])
def test_zeros_figure_one(rank: int) -> None:
    """arXiv:1910.02054, figure 1: psi = 7.5 B parameters take 120 GB unsharded, (2 + 2 + 12) psi, and 1.9 GB sharded
    over 64 ranks. Ours are 4 + 4 + 8 bytes, which is 16 as well; every row count here divides by 64."""
    whole, sharded = (model_of("llama-7b", {"fsdp": ranks}) for ranks in (1, 64))
    steps = 4 * (3 + 9 * 32)  # AdamW counts its steps, 4 bytes a tensor, on every rank
    psi = whole.ledger.parameters
    assert states(whole.estimate()) - steps == 16 * psi
    assert states(sharded.estimate(rank)) - steps == 16 * psi // 64
    assert [round(7.5 * (states(model.estimate(rank)) - steps) / psi, 1) for model in (whole, sharded)] == [120.0, 1.9]


def test_ddp_divides_nothing_and_adds_its_buckets() -> None:
    single, replicated = model_of("gpt-1m"), model_of("gpt-1m", {"dp": 8})
    assert states(single.estimate()) == states(replicated.estimate(7))
    assert replicated.peak_bytes() - single.peak_bytes() == 4 * single.ledger.parameters


@settings(max_examples=25, deadline=None)
@given(
    model=MODELS, ranks=st.integers(1, 9), seq=st.integers(1, 300), batch=st.integers(1, 5), precision=PRECISIONS,
    attention=ATTENTION, loss=LOSSES, recompute=RECOMPUTE, micro_batches=st.integers(1, 3),
)  # fmt: skip
def test_more_tokens_never_need_less(
    model: str, ranks: int, seq: int, batch: int, precision: str, attention: str, loss: str, recompute: str,
    micro_batches: int,
) -> None:  # fmt: skip
    def peak(**sizes: int) -> int:
        work = {"seq_len": seq, "micro_batch": batch, "micro_batches": micro_batches} | sizes
        kinds = {"precision": precision, "attention": attention, "loss": loss}
        return model_of(model, {"fsdp": ranks, "recompute": recompute}, **work, **kinds).peak_bytes()

    if not (seq == 1 and loss == "chunked"):  # one slice of the loss sums its gradients otherwise than two
        assert peak() <= peak(seq_len=seq + 1)
    assert peak() <= peak(micro_batch=batch + 1)
    assert peak() <= peak(micro_batches=micro_batches + 1)


@settings(max_examples=25, deadline=None)
@given(
    model=MODELS, layers=st.integers(1, 6), ranks=st.integers(1, 9), precision=PRECISIONS, recompute=RECOMPUTE,
    kv_heads=st.sampled_from([1, 2]),
)  # fmt: skip
def test_larger_models_never_need_less(
    model: str, layers: int, ranks: int, precision: str, recompute: str, kv_heads: int
) -> None:
    preset = PRESETS[model]
    shape = {name: getattr(preset, name) for name in ("hidden", "heads", "ffn", "vocab", "max_positions", "norm",
             "activation", "position", "bias", "tied")} | {"layers": layers, "kv_heads": kv_heads}  # fmt: skip

    def peak(**changes: int) -> int:
        return model_of(shape | changes, {"fsdp": ranks, "recompute": recompute}, precision=precision).peak_bytes()

    assert peak() <= peak(layers=layers + 1)
    assert peak() <= peak(kv_heads=2 * kv_heads)
    assert peak() <= peak(ffn=shape["ffn"] + 1)
    assert peak() <= peak(vocab=shape["vocab"] + 1)


@settings(max_examples=25, deadline=None)
@given(
    model=MODELS, grid=st.sampled_from([(1, 2), (1, 4), (2, 3), (4, 2)]), precision=PRECISIONS, recompute=RECOMPUTE,
    micro_batches=st.integers(1, 4), forward=st.integers(0, 3), backward=st.integers(0, 3),
)  # fmt: skip
def test_what_fsdp2_is_told_to_hold_it_pays_for(
    model: str, grid: tuple[int, int], precision: str, recompute: str, micro_batches: int, forward: int, backward: int
) -> None:
    """Deeper prefetch and whole gradients never need less; with one micro-batch there is nothing to keep; replicas of
    shards change no state."""
    usual = {"dp": grid[0], "fsdp": grid[1], "recompute": recompute}

    def of(**layout: Any) -> MemoryModel:
        return model_of(model, usual | layout, precision=precision, micro_batches=micro_batches)

    depths = {"forward_prefetch": forward, "backward_prefetch": backward}
    assert of(**depths).peak_bytes() <= of(**depths | {"forward_prefetch": forward + 1}).peak_bytes()
    assert of(**depths).peak_bytes() <= of(**depths | {"backward_prefetch": backward + 1}).peak_bytes()
    each, once = (of(reduction=reduction).peak_bytes() for reduction in ("micro-batch", "step"))
    assert each <= once
    assert micro_batches > 1 or each == once
    assert states(of().estimate()) == states(of(dp=1).estimate())


@settings(max_examples=25, deadline=None)
@given(model=MODELS, precision=PRECISIONS, attention=ATTENTION, every=st.integers(1, 4), ranks=st.integers(1, 3))
def test_more_recomputation_never_keeps_more(
    model: str, precision: str, attention: str, every: int, ranks: int
) -> None:
    def kept(recompute: str) -> int:
        layout = {"fsdp": ranks, "recompute": recompute}
        memory = model_of(model, layout, precision=precision, attention=attention).estimate()
        return memory.by_moment[Moment.AFTER_FORWARD][Component.ACTIVATIONS]

    full, none = kept(RecomputeKind.FULL), kept(RecomputeKind.NONE)
    assert full == kept("every-1")
    assert full <= kept(f"every-{every}") <= kept(f"every-{every + 1}") <= none
    assert full <= kept(RecomputeKind.SELECTIVE) <= none
    assert full <= kept(RecomputeKind.SELECTIVE_OP) <= none


@settings(max_examples=25, deadline=None)
@given(
    model=MODELS, ranks=st.integers(2, 9), precision=PRECISIONS, recompute=RECOMPUTE, micro_batches=st.integers(1, 3)
)
def test_the_peak_is_the_estimates_largest_moment(
    model: str, ranks: int, precision: str, recompute: str, micro_batches: int
) -> None:
    """On every rank, by both ways of asking; and no rank of uneven shards holds more than the first."""
    layout = {"fsdp": ranks, "recompute": recompute}
    of = model_of(model, layout, precision=precision, micro_batches=micro_batches)
    peaks = [of.peak_bytes(rank) for rank in range(ranks)]
    assert peaks == [of.estimate(rank).peak_bytes for rank in range(ranks)]
    assert peaks == sorted(peaks, reverse=True)


def test_keeping_the_gathered_parameters_costs_what_they_weigh() -> None:
    """reshard_after_forward off: every block's parameters, gathered in bf16, are still there when the loss runs."""
    keep, free = (
        model_of("gpt-1m", {"fsdp": 4, "reshard_after_forward": not kept}, precision="bf16-mixed").estimate()
        for kept in (True, False)
    )
    gathered = [memory.by_moment[Moment.AFTER_FORWARD][Component.GATHERED] for memory in (keep, free)]
    of_a_block = 2 * (12 * 128**2 + 13 * 128)  # BERT's 12 h^2 + 13 h, arXiv:1810.04805
    assert gathered[0] - gathered[1] == 4 * of_a_block


def test_an_estimate_never_holds_less_than_nothing() -> None:
    case: Case = model_of("llama-1m", {"fsdp": 3, "recompute": "every-2"}, micro_batches=2).case
    for moment, row in MemoryModel(case).estimate(2).by_moment.items():
        assert all(nbytes >= 0 for nbytes in row.values()), moment
