"""Expert parallelism computes what one process computes, dropless, alone and with replicas, FSDP2, HSDP, tensor
parallelism and pipelines: losses, norms and every gradient."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest

from suite.case import Case
from suite.layout import Layout, Recompute
from suite.models.decoder import DecoderSpec
from suite.models.experts import Balance, Experts, Scoring
from suite.spec import AttentionKernel, LossKernel
from tests.distributed.judgement import differences
from tests.distributed.plans import NUMERICS, single_process, trained
from tests.distributed.ranks import run_cases
from tests.distributed.traces import RankTrace, merged, record

pytestmark = pytest.mark.distributed

SEQUENCES = 8
#: 6 experts: of 3 on a rank, shards of 2 and of 1
MIXTRAL = DecoderSpec(
    name="mixtral", layers=2, hidden=24, heads=4, kv_heads=2, ffn=28, vocab=53, max_positions=20,
    experts=Experts(count=6, top_k=2, ffn=16),
)  # fmt: skip
#: one expert a rank of 2, which FSDP2 shards along its rows
FEW = replace(MIXTRAL, name="few", experts=Experts(count=2, top_k=1, ffn=16, normalized=False))
DEEPSEEK = replace(
    MIXTRAL, name="deepseek", layers=3, dense_layers=1,
    experts=Experts(count=4, top_k=2, ffn=16, shared=1, scoring=Scoring.SIGMOID, groups=2, top_groups=1,
                    balance=Balance.AUXILIARY, rate=0.1),
)  # fmt: skip


def case_of(model: DecoderSpec, micro_batches: int = 1, **layout: object) -> Case:
    """A case of a global batch that no layout changes."""
    kernels = AttentionKernel.FLASH, LossKernel.PLAIN
    return trained(model, Layout(**layout), NUMERICS["fp64-adamw"], SEQUENCES, micro_batches, *kernels)  # type: ignore[arg-type]


CASES = [
    case_of(MIXTRAL, ep=2),
    case_of(DEEPSEEK, 2, ep=2, recompute=Recompute.parse("full")),
    case_of(MIXTRAL, ep=2, dp=2),
    case_of(DEEPSEEK, 2, ep=2, fsdp=2),
    case_of(FEW, ep=2, fsdp=2),
    case_of(MIXTRAL, ep=2, tp=2),
    case_of(MIXTRAL, 2, ep=2, pp=2),
]


@pytest.fixture(scope="module")
def traces() -> dict[Case, tuple[RankTrace, ...]]:
    """Every case's record, rank by rank, and those of single processes."""
    cases = dict.fromkeys([*CASES, *map(single_process, CASES)])
    return run_cases(tuple(cases), partial(record, double=True), deadline_s=240.0)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.label)
def test_it_computes_what_one_process_computes(case: Case, traces: dict[Case, tuple[RankTrace, ...]]) -> None:
    alone = merged(traces[single_process(case)])
    assert differences(merged(traces[case]), alone, case, is_double=True) == []
