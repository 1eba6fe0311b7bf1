"""The named suites: what they promise to cover, and that every case of theirs is one that can be told apart."""

from __future__ import annotations

import math
from collections import defaultdict
from itertools import combinations

import pytest

from memory.estimate import MemoryModel
from memory.inference import InferenceModel
from parallelism.strategies import STRATEGIES
from suite.cache_matrix import FACTORS as CACHE_FACTORS
from suite.cache_matrix import WHOLE, pairs_cache_matrix, whole_cache_matrix
from suite.case import Case, case_from
from suite.cases import SUITES, default_suite, quick_suite, strategies_suite, suite_of
from suite.family_cases import families_suite
from suite.layout import ContextMethod, RecomputeKind, Schedule
from suite.matrix import FACTORS, pairs_matrix, whole_matrix
from suite.models import SPECS
from suite.models.decoder import Norm, Position
from suite.parse import SpecError
from suite.spec import AttentionKernel, LossKernel, Precision

pytestmark = pytest.mark.unit

DEFAULT = default_suite()
#: the whole matrices are hundreds and thousands of cases, made as their samples are
QUICKLY = [name for name in SUITES if name not in ("memory", "kv-matrix")]


@pytest.mark.parametrize("name", QUICKLY)
def test_the_cases_of_a_suite_are_distinct_and_survive_json(name: str) -> None:
    cases = suite_of(name)
    assert len({case.case_id for case in cases}) == len(cases)
    for case in cases:
        assert case_from(case.to_mapping()) == case


@pytest.mark.parametrize("name", QUICKLY)
def test_the_cases_of_a_suite_have_labels_of_their_own(name: str) -> None:
    labels = [case.label for case in suite_of(name)]
    assert len(set(labels)) == len(labels)


@pytest.mark.parametrize("name", QUICKLY)
def test_a_suite_runs_on_any_machine_and_needs_no_file(name: str) -> None:
    for case in suite_of(name):
        assert case.cluster.device == "cpu"
        assert case.cluster.nodes == 1
        assert case.layout.world_size <= (4 if name in ("default", "quick") else 8)
        assert case.recipe.data == ""
        model = InferenceModel(case) if case.serves else MemoryModel(case)
        assert model.peak_bytes() < 2**30


def test_the_default_suite_covers_what_is_promised() -> None:
    def values(of: str) -> set[object]:
        found = set()
        for case in DEFAULT:
            value: object = case
            for name in of.split("."):
                value = getattr(value, name)
            found.add(value)
        return found

    assert len(DEFAULT) >= 10
    assert values("model.position") == {Position.LEARNED, Position.ROPE}  # GPT-2's form and LLaMA's
    assert values("model.norm") == {Norm.LAYERNORM, Norm.RMSNORM}
    assert values("model.tied") == {True, False}
    assert values("workload.precision") >= {Precision.FP32, Precision.BF16_MIXED}
    assert values("workload.attention") == set(AttentionKernel)
    assert values("workload.loss") == set(LossKernel)
    assert values("layout.recompute.kind") == set(RecomputeKind)
    assert values("layout.dp") >= {1, 2}
    assert values("layout.fsdp") >= {1, 2, 4}
    assert {case.layout.reshard_after_forward for case in DEFAULT if case.layout.fsdp > 1} == {True, False}
    assert {1, 2} <= values("workload.micro_batches")


def test_each_form_runs_alone_under_ddp_and_under_fsdp() -> None:
    kinds = defaultdict(set)
    for case in DEFAULT:
        layout = case.layout
        kinds[case.model.position].add("ddp" if layout.dp > 1 else "fsdp" if layout.fsdp > 1 else "single")
    assert set(map(frozenset, kinds.values())) == {frozenset({"single", "ddp", "fsdp"})}


def test_the_layouts_of_a_model_share_one_global_batch() -> None:
    """Their loss curves are laid over each other: they must be trained on the same tokens."""

    def trained_on(case: Case) -> tuple[object, ...]:
        return case.global_batch, case.workload.seq_len, case.recipe

    for cases in (DEFAULT, quick_suite(), strategies_suite()):
        for name in {case.model.name for case in cases}:
            assert len({trained_on(case) for case in cases if case.model.name == name}) == 1


def test_a_model_of_ten_million_trains_long_enough_to_learn() -> None:
    learning = [case for case in DEFAULT if MemoryModel(case).ledger.parameters > 5e6]
    assert learning
    for case in learning:
        assert case.recipe.steps >= 100
        assert case.recipe.validation_batches > 0


def test_an_unknown_suite_is_refused_with_the_known_ones() -> None:
    with pytest.raises(
        SpecError,
        match=r"^--suite: 'nightly' is not known; known: default, quick, strategies, forms, families, peers, memory,"
        r" memory-pairs, kv, kv-times, kv-pairs, kv-matrix, plan, speed$",
    ):
        suite_of("nightly")
    with pytest.raises(SpecError, match=r"did you mean default\?$"):
        suite_of("defualt")


def test_the_strategies_suite_has_every_strategy_schedule_and_recomputation() -> None:
    cases = strategies_suite()
    assert len({case.case_id for case in cases}) == len(cases) >= 30
    for strategy in STRATEGIES.values():
        assert any(strategy.is_used(case.layout) for case in cases), strategy.name
    assert {case.layout.schedule for case in cases if case.layout.pp > 1} == set(Schedule)
    assert {case.layout.recompute.kind for case in cases} == set(RecomputeKind)
    assert {case.layout.context for case in cases if case.layout.cp > 1} == set(ContextMethod)
    assert max(case.layout.world_size for case in cases) == 8


def test_the_memory_suite_is_every_combination_or_says_why_not() -> None:
    matrix = whole_matrix()
    size = math.prod(map(len, FACTORS.values()))
    assert size >= 4 * 30 * 3 * 2 * 2 * 2  # forms, strategies, checkpointing, precision, kernels, optimizers
    assert len({case.case_id for case in matrix.cases}) == len(matrix.cases)
    assert len(matrix.cases) + sum(matrix.refused.values()) == size
    assert all(": " in reason for reason in matrix.refused)  # the field, and why


def test_every_two_settings_meet_in_the_sample_of_the_memory_suite() -> None:
    met = {pair for choice in pairs_matrix().cases.values() for pair in combinations(choice.items(), 2)}
    possible = {pair for choice in whole_matrix().cases.values() for pair in combinations(choice.items(), 2)}
    assert met == possible
    assert len(pairs_matrix().cases) < len(whole_matrix().cases) / 10


def test_the_sample_of_caches_lets_every_two_settings_meet() -> None:
    choices = pairs_cache_matrix().choices
    for one, other in combinations(CACHE_FACTORS, 2):
        met = {(choice[one], choice[other]) for choice in choices}
        assert len(met) == len(CACHE_FACTORS[one]) * len(CACHE_FACTORS[other])


def test_the_whole_matrix_of_caches_leaves_out_what_is_refused_and_says_why() -> None:
    """Forms x kinds x formats x prompts x ranks; a latent is kept whole, its plain form is its own, and a model's own
    window neither grows nor has more of it."""
    matrix = whole_cache_matrix()
    assert len(matrix.choices) == math.prod(map(len, WHOLE.values()))
    assert len(matrix.cases) + sum(matrix.refused.values()) == len(matrix.choices)
    a_pair = 5 * 2 * 3  # formats, prompts, ranks
    refused = {
        "plain": sum(count for why, count in matrix.refused.items() if "latent_form(plain)" in why),
        "latent": sum(count for why, count in matrix.refused.items() if why.startswith("model.latent")),
        "growing": sum(count for why, count in matrix.refused.items() if "allocation(growing)" in why),
    }
    assert refused == {"plain": 4 * a_pair, "latent": 3 * a_pair, "growing": a_pair}
    assert sum(refused.values()) == sum(matrix.refused.values())


def test_the_families_suite_has_every_family_in_what_it_takes() -> None:
    """All share rows and recompute; pipelines are the decoders' that predict one token, experts the mixtures'."""
    cases = families_suite()
    models = {case.model.name for case in cases}
    assert {case.model.family for case in cases} == set(SPECS)

    def with_layout(**degrees: int) -> set[str]:
        return {
            case.model.name
            for case in cases
            if all(getattr(case.layout, name) == degree for name, degree in degrees.items())
        }

    for degrees in ({"dp": 2, "zero": 0}, {"fsdp": 2, "ep": 1}, {"dp": 2, "zero": 1}):
        assert with_layout(**degrees) == models
    assert with_layout(ep=2, fsdp=2) == with_layout(ep=2, fsdp=1) == {"mixtral-1m", "deepseek-v2-1m", "deepseek-v3-1m"}
    assert with_layout(pp=2) == {"mixtral-1m", "deepseek-v2-1m", "alibi-1m", "linear-1m"}
    for name in models:
        short = [case for case in cases if case.model.name == name and case.recipe.steps == 6]
        assert len({case.global_batch for case in short}) <= 2
        assert any(case.model.name == name and case.recipe.validation_batches for case in cases)
