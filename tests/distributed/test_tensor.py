"""Tensor and sequence parallelism compute what one process computes, alone and with FSDP2, replicas, checkpointing,
accumulation and dropout. The vocabularies divide by no number of ranks here; heads and MLPs have to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any
from unittest.mock import patch

import pytest
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor

from parallelism import clipping, training
from parallelism.mesh import build_mesh
from parallelism.strategies import parallelize
from parallelism.tensor import regions as tensor_regions
from parallelism.tensor import vocab_loss
from parallelism.tensor.regions import Regions
from parallelism.tensor.styles import local
from suite.case import Case
from suite.layout import ContextMethod, Layout, Recompute, Reduction
from suite.models.decoder import Activation, DecoderSpec, Norm, Position
from suite.models.dropout import SequenceDropout
from suite.spec import AttentionKernel, LossKernel
from tests.distributed.differences import are_same_bits, same_tensors
from tests.distributed.judgement import differences
from tests.distributed.plans import NUMERICS, single_process, trained
from tests.distributed.ranks import Ran, run_jobs, run_on_ranks
from tests.distributed.traces import CPU, RANKS_DIFFER, RankTrace, Trace, merged, rank_batch, record

pytestmark = pytest.mark.distributed

SEQUENCES, SEQ_LEN = 8, 16

GPT = DecoderSpec(
    name="gpt",
    layers=2,
    hidden=20,
    heads=4,
    ffn=28,
    vocab=53,
    max_positions=17,
    norm=Norm.LAYERNORM,
    activation=Activation.GELU,
    position=Position.LEARNED,
    bias=True,
    tied=True,
)
LLAMA = DecoderSpec(
    name="llama", layers=3, hidden=26, heads=8, kv_heads=4, head_dim=4, ffn=36, vocab=50 + 1, max_positions=20
)
TIED = replace(LLAMA, name="llama-tied", layers=2, tied=True, qkv_bias=True)


@dataclass(frozen=True)
class Trial:
    """A case by its choices."""

    model: DecoderSpec
    layout: Layout
    numerics: str = "fp64-adamw"
    loss: str = "plain"
    attention: str = "flash"
    micro_batches: int = 1
    dropout: float = 0.0
    recompute: str = "none"

    def __str__(self) -> str:
        dropped = f" dropout {self.dropout}" if self.dropout else ""
        return f"{self.case.label} {self.numerics}{dropped}"

    @property
    def case(self) -> Case:
        """The case."""
        layout = replace(self.layout, recompute=Recompute.parse(self.recompute))
        kernels = AttentionKernel(self.attention), LossKernel(self.loss)
        model = replace(self.model, dropout=self.dropout)
        return trained(model, layout, NUMERICS[self.numerics], SEQUENCES, self.micro_batches, *kernels)

    @property
    def is_double(self) -> bool:
        """Is everything in fp64?"""
        return NUMERICS[self.numerics].is_double


def tp(ranks: int, **settings: Any) -> Layout:
    """Tensor parallel, with other settings."""
    return Layout(tp=ranks, **settings)


WHOLE = {"sequence_parallel": False}
EACH = {"reduction": Reduction.MICRO_BATCH}
TRIALS = [
    Trial(GPT, tp(2), dropout=0.1, recompute="full", micro_batches=2),
    Trial(GPT, tp(2, **WHOLE), loss="chunked", attention="eager", dropout=0.1, recompute="selective"),
    Trial(LLAMA, tp(2), loss="chunked", attention="eager", recompute="every-2", dropout=0.1),
    Trial(TIED, tp(2, **WHOLE), micro_batches=2, recompute="full"),
    Trial(GPT, tp(2), "fp32-sgd", loss="chunked", recompute="selective"),
    Trial(LLAMA, tp(2, **WHOLE), "fp32-adamw", micro_batches=4),
    Trial(GPT, tp(2), "bf16-adamw", recompute="every-2"),
    Trial(LLAMA, tp(2, **WHOLE), "bf16-adamw", loss="chunked"),
    Trial(GPT, tp(4), loss="chunked"),
    Trial(TIED, tp(4, **WHOLE), "fp32-sgd", attention="eager"),
    Trial(GPT, tp(2, fsdp=2), micro_batches=2, dropout=0.1, recompute="full"),
    Trial(TIED, tp(2, fsdp=2, **WHOLE, **EACH), "fp32-sgd", micro_batches=2, loss="chunked"),
    Trial(
        LLAMA,
        tp(2, fsdp=2, reshard_after_forward=False, **EACH),
        "fp32-adamw",
        micro_batches=2,
        recompute="selective-op",
    ),
    Trial(LLAMA, tp(2, fsdp=2), "bf16-adamw", recompute="selective"),
    Trial(LLAMA, tp(2, dp=2, **EACH), micro_batches=2, loss="chunked", recompute="every-2"),
    Trial(GPT, tp(2, dp=2, **WHOLE), "fp32-sgd", dropout=0.1, micro_batches=2),
    Trial(TIED, tp(2, dp=2, bucket_mib=1), "bf16-adamw"),
    Trial(GPT, tp(2, cp=2), dropout=0.1, micro_batches=2, recompute="full"),
    Trial(LLAMA, tp(2, cp=2, context=ContextMethod.ULYSSES, **WHOLE), "fp32-sgd", dropout=0.1, loss="chunked"),
    Trial(GPT, tp(2, pp=2), dropout=0.1, micro_batches=4, recompute="full"),
    Trial(LLAMA, tp(2, pp=2, **WHOLE), "fp32-sgd", micro_batches=4, loss="chunked"),
    Trial(GPT, tp(2, fsdp=2, dp=2), dropout=0.1, recompute="selective-op"),
]


class Runs:
    """Traces of trials; the first that is asked for runs all those on as many ranks."""

    def __init__(self, trials: Sequence[Trial]) -> None:
        stored = (replace(trial, recompute="none") for trial in trials)
        self.trials = list(dict.fromkeys([*trials, *stored]))
        self.done: dict[Trial, Ran[RankTrace]] = {}

    def trace(self, trial: Trial) -> Trace:
        """The trial's run as one record. Raises what stopped it, if anything did."""
        if trial not in self.done:
            ranks = trial.layout.world_size
            mates = [other for other in self.trials if other.layout.world_size == ranks]
            jobs = [partial(record, other.case, double=other.is_double) for other in mates]
            self.done |= zip(mates, run_jobs(ranks, jobs, 200), strict=True)
        return merged(self.done[trial].result())


def reference(trial: Trial) -> Trace:
    """What one process computes."""
    return merged(run_on_ranks(1, partial(record, single_process(trial.case), double=trial.is_double)))


@pytest.fixture(scope="module")
def runs() -> Runs:
    return Runs(TRIALS)


@pytest.mark.parametrize("trial", TRIALS, ids=str)
def test_divided_decoders_compute_what_one_process_computes(runs: Runs, trial: Trial) -> None:
    found = differences(runs.trace(trial), reference(trial), trial.case, trial.is_double)
    assert not found, "\n".join(found[:20])


@pytest.mark.parametrize("trial", [trial for trial in TRIALS if trial.recompute != "none"], ids=str)
def test_checkpointing_changes_no_bit(runs: Runs, trial: Trial) -> None:
    assert are_same_bits(runs.trace(trial), runs.trace(replace(trial, recompute="none")))


def test_a_rank_holds_its_part_and_no_more() -> None:
    """Of 53 rows four ranks have 14, 14, 14 and 11; the rest is whole, or a quarter. A part owns its storage."""

    def held(rank: int) -> dict[str, tuple[tuple[int, ...], bool]]:
        case = Trial(GPT, tp(4)).case
        model = parallelize(training.build_model(case, CPU), build_mesh(case.layout, CPU.type), case)
        locals_ = {
            name: item.to_local() if isinstance(item, DTensor) else item for name, item in model.named_parameters()
        }
        return {
            name: (tuple(item.shape), item.untyped_storage().nbytes() == item.nbytes) for name, item in locals_.items()
        }

    ranks = run_on_ranks(4, held)
    assert [mine["embedding.weight"][0] for mine in ranks] == [(14, 20), (14, 20), (14, 20), (11, 20)]
    for mine in ranks:
        assert all(owns for _, owns in mine.values())
        assert "head.weight" not in mine  # tied: one parameter
        shapes = {name.removeprefix("blocks.1."): shape for name, (shape, _) in mine.items()}
        assert shapes["attention.wk.weight"] == (5, 20)
        assert shapes["attention.wk.bias"] == (5,)
        assert shapes["attention.wo.weight"] == (20, 5)
        assert shapes["attention.wo.bias"] == (20,)
        assert shapes["mlp.up.weight"] == (7, 20)
        assert shapes["mlp.down.weight"] == (20, 7)
        assert shapes["positions.weight"] == (17, 20)
        assert shapes["norm.weight"] == (20,)


@pytest.mark.parametrize("settings", [{}, WHOLE], ids=["sequence", "whole"])
def test_a_pipelines_stages_are_divided_like_the_whole(settings: dict[str, Any]) -> None:
    """Decoders without some of their parts, one after the other: the same loss and gradients, bit for bit."""
    case = Trial(replace(GPT, tied=False), tp(2, **settings), dropout=0.1).case

    def gradients(rank: int, is_cut: bool) -> tuple[float, dict[str, Tensor]]:
        mesh, batch = build_mesh(case.layout, CPU.type), rank_batch(case, rank, 0)
        stages = [training.build_model(case, CPU) for _ in range(2 if is_cut else 1)]
        if is_cut:
            first, last = stages
            first.norm = first.head = last.embedding = last.positions = None
            del first.blocks["1"], last.blocks["0"]
        for stage in stages:
            parallelize(stage, mesh, case)
        assert batch.keys is not None
        stream = stages[0](batch.ids[0], None, batch.keys[0]) if is_cut else batch.ids[0]
        loss = stages[-1](stream, batch.labels[0], batch.keys[0])
        loss.backward()
        return loss.item(), {
            name: item.grad.to_local() if isinstance(item.grad, DTensor) else item.grad
            for stage in stages
            for name, item in stage.named_parameters()
            if item.grad is not None
        }

    whole, cut = (ran.result() for ran in run_jobs(2, [partial(gradients, is_cut=cut) for cut in (False, True)]))
    for (loss, mine), (its_loss, its) in zip(whole, cut, strict=True):
        assert loss == its_loss
        assert same_tensors(mine, its)


# --- planted mistakes -----------------------------------------------------------------------------------------

MistakenRun = Callable[[Case, int], RankTrace]


def forgets_norm_gradients(case: Case, rank: int) -> RankTrace:
    """Each rank keeps what its part of the sequence says of the norms."""
    with patch.object(training, "sum_sequence_parts", lambda *_: None):
        return record(case, rank, double=True)


def adds_the_row_bias_on_every_rank(case: Case, rank: int) -> RankTrace:
    """The bias is summed over the ranks with the products."""

    def spread(model: nn.Module, mesh: DeviceMesh | None, case: Case) -> nn.Module:
        model = parallelize(model, mesh, case)
        assert mesh is not None
        regions = Regions(mesh["tp"], case.layout.sequence_parallel)
        for name, module in model.named_modules():
            if name.endswith(("wo", "down")):
                module.forward = partial(with_bias, module, regions)  # type: ignore[method-assign]
        return model

    def with_bias(module: nn.Linear, regions: Regions, x: Tensor) -> Tensor:
        return regions.leave(F.linear(x, local(module.weight), module.bias))

    return record(case, rank, spread, double=True)


def sees_its_own_logits_alone(case: Case, rank: int) -> RankTrace:
    """A loss over a part of the vocabulary."""
    with patch.object(vocab_loss.dist, "all_reduce", lambda *_, **__: None):
        return record(case, rank, double=True)


def leaves_the_stream_gradient_in_parts(case: Case, rank: int) -> RankTrace:
    """The backward pass of what columns read keeps this rank's share of the sum."""

    def own_part(y: Tensor, group: object, ranks: int) -> Tensor:
        return y.chunk(ranks, dim=1)[rank].contiguous() * ranks

    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return own_part(gradient, ctx.group, ctx.ranks), None, None

    with patch.object(tensor_regions._Gather, "backward", staticmethod(backward)):
        return record(case, rank, double=True)


def drops_the_first_part_everywhere(case: Case, rank: int) -> RankTrace:
    """Every rank takes the mask of a sequence as long as its part."""

    def spread(model: nn.Module, mesh: DeviceMesh | None, case: Case) -> nn.Module:
        model = parallelize(model, mesh, case)
        for module in model.modules():
            if isinstance(module, SequenceDropout):
                module.part = (0, 1)
        return model

    return record(case, rank, spread, double=True)


def clips_by_its_part(case: Case, rank: int) -> RankTrace:
    """The norm of this rank's parts."""
    with patch.object(clipping, "_sharding", lambda gradient: ()):
        return record(case, rank, double=True)


MISTAKES: dict[str, tuple[MistakenRun, str]] = {
    "norm gradients not summed": (forgets_norm_gradients, "gradient of step 0, blocks.0.attention_norm.weight"),
    "row bias on every rank": (adds_the_row_bias_on_every_rank, "gradient of step 0, blocks.0.mlp.down.bias"),
    "own logits alone": (sees_its_own_logits_alone, "loss of step 0"),
    "stream gradient in parts": (leaves_the_stream_gradient_in_parts, "gradient of step 0, blocks.0"),
    "another part's dropout": (drops_the_first_part_everywhere, "gradient of step 0"),
    "clipped by a part": (clips_by_its_part, "norm of step 0"),
}
PLANTED = Trial(GPT, tp(2), dropout=0.1)


@pytest.fixture(scope="module")
def planted() -> dict[str, list[str]]:
    """What the judgement says of each mistake."""
    jobs = [partial(run, PLANTED.case) for run, _ in MISTAKES.values()]
    single = reference(PLANTED)
    return {
        name: differences(merged(ran.result()), single, PLANTED.case, is_double=True)
        for name, ran in zip(MISTAKES, run_jobs(2, jobs), strict=True)
    }


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_found(name: str, planted: dict[str, list[str]]) -> None:
    found = [line for line in planted[name] if not line.endswith(RANKS_DIFFER)]
    assert any(line.startswith(MISTAKES[name][1]) for line in found), found[:20]
