"""Attention over a ring and by all-to-alls is attention over the whole sequence, alone and inside a Decoder."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from parallelism.context import ring as ring_module
from parallelism.context import ulysses as ulysses_module
from parallelism.context.block import BlockKernel, block_kernel
from parallelism.context.ring import InFlight, Pair, Ring, ring_attention
from parallelism.context.ulysses import ulysses_attention
from suite.layout import ContextMethod
from suite.parse import SpecError
from suite.spec import AttentionKernel
from tests.distributed.attention_trials import SEQ_LEN, Trial, gap, run_trial
from tests.distributed.ranks import run_jobs, run_on_ranks

pytestmark = pytest.mark.distributed

ULYSSES, EAGER = ContextMethod.ULYSSES, AttentionKernel.EAGER
#: fp32: sums of 24 terms in another order. bf16: scores, probabilities, a block's output and the merged one are each
#: rounded to 8 bits, forward and again backward; rounding is 2^-9 of a value.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 8 * 2**-9}

TRIALS = [
    *(Trial(ranks, balanced=balanced) for ranks in (2, 3, 4) for balanced in (False, True)),
    *(Trial(ranks, kind=EAGER, balanced=balanced) for ranks, balanced in ((2, True), (3, False), (4, True))),
    *(Trial(3, balanced=balanced, dtype=dtype, kind=kind) for balanced, dtype, kind in (
        (True, torch.float32, AttentionKernel.FLASH), (False, torch.float32, EAGER),
        (True, torch.bfloat16, AttentionKernel.FLASH), (False, torch.bfloat16, AttentionKernel.FLASH),
        (True, torch.bfloat16, EAGER))),
    Trial(2, balanced=True, heads=3, kv_heads=3),
    Trial(4, balanced=True, heads=5, kv_heads=1),
    Trial(3, is_causal=False),
    *(Trial(ranks, ULYSSES, heads=2 * ranks, kv_heads=ranks) for ranks in (2, 3, 4)),
    Trial(2, ULYSSES, heads=4, kv_heads=4, dtype=torch.float32),
    Trial(2, ULYSSES, heads=8, kv_heads=4, dtype=torch.bfloat16),
]  # fmt: skip


@pytest.fixture(scope="module")
def gaps() -> dict[Trial, float]:
    found: dict[Trial, float] = {}
    for ranks in (2, 3, 4):
        mine = [trial for trial in TRIALS if trial.ranks == ranks]
        ran = run_on_ranks(ranks, lambda rank, mine=mine: [run_trial(trial, _world()) for trial in mine])
        found |= {trial: gap(trial, [values[place] for values in ran]) for place, trial in enumerate(mine)}
    return found


def _world() -> dist.ProcessGroup:
    group = dist.group.WORLD
    assert group is not None
    return group


@pytest.mark.parametrize("trial", TRIALS, ids=str)
def test_ranks_together_compute_the_whole(gaps: dict[Trial, float], trial: Trial) -> None:
    assert gaps[trial] <= TOLERANCE[trial.dtype]


def test_one_rank_is_its_own_ring() -> None:
    trials = [Trial(1), Trial(1, balanced=True), Trial(1, ULYSSES)]

    def alone(rank: int) -> list[list[Tensor]]:
        groups = [dist.new_group([each]) for each in range(2)]
        return [run_trial(trial, groups[rank]) for trial in trials]

    for values in run_on_ranks(2, alone):
        for trial, value in zip(trials, values, strict=True):
            assert gap(trial, [value]) <= TOLERANCE[trial.dtype]


# --- the work ------------------------------------------------------------------------------------------------


class Counting:
    """A kernel that counts the query-key pairs that it is asked for, forward and backward."""

    def __init__(self, kernel: BlockKernel, pairs: list[int]) -> None:
        self.kernel = kernel
        self.pairs = pairs

    def forward(self, q: Tensor, k: Tensor, v: Tensor, is_causal: bool) -> tuple[Tensor, Tensor]:
        self._count(0, q, k, is_causal)
        return self.kernel.forward(q, k, v, is_causal)

    def backward(
        self, grad: Tensor, q: Tensor, out: Tensor, lse: Tensor, k: Tensor, v: Tensor, is_causal: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        self._count(1, q, k, is_causal)
        return self.kernel.backward(grad, q, out, lse, k, v, is_causal)

    def _count(self, way: int, q: Tensor, k: Tensor, is_causal: bool) -> None:
        queries, keys = q.shape[2], k.shape[2]
        self.pairs[way] += queries * (queries + 1) // 2 if is_causal else queries * keys


def _pairs(balanced: bool) -> tuple[tuple[int, int], ...]:
    """Pairs that each of four ranks computes, forward and backward."""

    def count(rank: int) -> tuple[int, int]:
        pairs = [0, 0]

        def counting(kind: AttentionKernel, q: Tensor, k: Tensor, v: Tensor) -> BlockKernel:
            return Counting(block_kernel(kind, q, k, v), pairs)

        with replaced(ring_module, "block_kernel", counting):
            run_trial(Trial(4, balanced=balanced), _world())
        return pairs[0], pairs[1]

    return run_on_ranks(4, count)


def test_balanced_ranks_do_the_same_work_and_no_masked_pair() -> None:
    pairs = SEQ_LEN * (SEQ_LEN + 1) // 2
    assert _pairs(balanced=True) == ((pairs // 4, pairs // 4),) * 4
    # 6 tokens a rank: a triangle of 21, and 36 for every earlier rank
    assert _pairs(balanced=False) == ((21, 21), (57, 57), (93, 93), (129, 129))


# --- refusals ------------------------------------------------------------------------------------------------


def test_what_does_not_divide_is_refused() -> None:
    def refusals(rank: int) -> list[str]:
        odd, three = torch.zeros(1, 4, 3, 6), torch.zeros(1, 4, 3, 6)
        lines = []
        for attempt in (
            lambda: ring_attention(odd, odd, odd, _world(), True, True),
            lambda: ulysses_attention(odd, three, three, _world(), lambda q, k, v: q),
            lambda: ulysses_attention(odd[:, :, :2], three, three, _world(), lambda q, k, v: q),
        ):
            with pytest.raises(SpecError) as refused:
                attempt()
            lines.append(str(refused.value))
        return lines

    ring, heads, kv_heads = run_on_ranks(2, refusals)[0]
    assert ring == "workload.seq_len: 3 tokens a rank are not two equal chunks; take a multiple of 2 cp"
    assert heads == "model.heads: 3 % cp(2) != 0: the all-to-all gives each rank whole heads; use ring"
    assert kv_heads.startswith("model.kv_heads: 3 % cp(2) != 0")


# --- mistakes that the comparison has to find ------------------------------------------------------------------


@contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """`owner.name` is `value` for a while, on this rank."""
    old = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, old)


def _stay(ring: Ring, pair: Pair, tag: int) -> InFlight:
    """Nothing moves."""
    return InFlight(pair, pair, ())


def _half_and_half(out: Tensor, lse: Tensor, block_out: Tensor, block_lse: Tensor) -> None:
    """Averages outputs without regard to their weights."""
    out.lerp_(block_out.to(out.dtype), 0.5)


def _forget_weight(out: Tensor, lse: Tensor, block_out: Tensor, block_lse: Tensor) -> None:
    """Merges outputs and leaves the log-sum-exp as it was."""
    out.lerp_(block_out.to(out.dtype), torch.sigmoid(block_lse - lse).unsqueeze(-1))


def _sums_stay(pass_on: Callable[..., InFlight]) -> Callable[..., InFlight]:
    """Keys travel; the sums of gradients do not."""

    def wrong(ring: Ring, pair: Pair, tag: int) -> InFlight:
        return pass_on(ring, pair, tag) if tag == ring_module.KEYS else InFlight(pair, pair, ())

    return wrong


def _heads_stay(parts: Tensor, group: dist.ProcessGroup) -> Tensor:
    return parts.contiguous()


MISTAKES: dict[str, tuple[Any, str, Any, Trial]] = {
    "a step is skipped": (Ring, "pass_on", _stay, Trial(3)),
    "gradients stay": (Ring, "pass_on", _sums_stay(Ring.pass_on), Trial(3, balanced=True)),
    "outputs are averaged": (ring_module, "_merge", _half_and_half, Trial(3)),
    "log-sum-exp is not merged": (ring_module, "_merge", _forget_weight, Trial(3, balanced=True)),
    "heads stay": (ulysses_module, "_exchanged", _heads_stay, Trial(3, ULYSSES, heads=6, kv_heads=3)),
}


def test_mistakes_are_found() -> None:
    def job(owner: Any, name: str, value: Any, trial: Trial) -> Callable[[int], list[Tensor]]:
        def run(rank: int) -> list[Tensor]:
            with replaced(owner, name, value):
                return run_trial(trial, _world())

        return run

    ran = run_jobs(3, [job(*mistake) for mistake in MISTAKES.values()])
    found = {name: gap(row[-1], done.result()) for (name, row), done in zip(MISTAKES.items(), ran, strict=True)}
    assert min(found.values()) > 1e-3, found
