"""What the equality tests run: tiny models, layouts, workloads and number formats, and samples of their product.

A Plan is a Case's choices by name, so that a test's name tells them. The models' widths are odd on purpose: no
number of ranks here divides their rows, and on 4 ranks some shards are empty.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from random import Random

from suite.case import Case
from suite.layout import Layout, Recompute
from suite.models.base import ModelSpec
from suite.models.decoder import Activation, DecoderSpec, Norm, Position
from suite.spec import AttentionKernel, LossKernel, OptimizerKind, Precision, Recipe, Workload

#: sequences a step, whatever the layout: it divides by every number of ranks here, and twice
GLOBAL_BATCH = 24
SEQ_LEN = 16

FORMS: dict[str, DecoderSpec] = {
    "gpt": DecoderSpec(
        name="gpt",
        layers=2,
        hidden=34,
        heads=2,
        ffn=70,
        vocab=101,
        max_positions=17,
        norm=Norm.LAYERNORM,
        activation=Activation.GELU,
        position=Position.LEARNED,
        bias=True,
        tied=True,
    ),
    "llama-gqa": DecoderSpec(
        name="llama-gqa", layers=3, hidden=36, heads=6, kv_heads=2, ffn=50, vocab=101, max_positions=20
    ),
    "llama-tied": DecoderSpec(
        name="llama-tied", layers=2, hidden=30, heads=5, kv_heads=1, ffn=49, vocab=97, max_positions=20, tied=True
    ),
}

LAYOUTS: dict[str, Layout] = {
    "single": Layout(),
    "ddp2": Layout(dp=2),
    "ddp4": Layout(dp=4),
    "fsdp2": Layout(fsdp=2),
    "fsdp2-keep": Layout(fsdp=2, reshard_after_forward=False),
    "fsdp3": Layout(fsdp=3),
    "fsdp4": Layout(fsdp=4),
    "hsdp2x2": Layout(dp=2, fsdp=2),
    "fsdp4-keep": Layout(fsdp=4, reshard_after_forward=False),
}


@dataclass(frozen=True)
class Numerics:
    """Number format and update rule of a run."""

    precision: Precision
    optimizer: OptimizerKind
    learning_rate: float
    is_double: bool = False


NUMERICS: dict[str, Numerics] = {
    "fp64-adamw": Numerics(Precision.FP32, OptimizerKind.ADAMW, 1e-2, is_double=True),
    "fp32-sgd": Numerics(Precision.FP32, OptimizerKind.SGD, 0.3),
    # AdamW divides a gradient by its own size, so rounding picks the way of an element whose gradient is all rounding;
    # small steps keep that below what the other gradients are held to
    "fp32-adamw": Numerics(Precision.FP32, OptimizerKind.ADAMW, 1e-4),
    "bf16-adamw": Numerics(Precision.BF16_MIXED, OptimizerKind.ADAMW, 1e-3),
}


@dataclass(frozen=True)
class Plan:
    """One run, by the names of its choices."""

    layout: str = "single"
    recompute: str = "none"
    form: str = "gpt"
    attention: str = "flash"
    loss: str = "plain"
    micro_batches: int = 1
    numerics: str = "fp32-sgd"

    def __str__(self) -> str:
        return "-".join(
            (
                self.layout,
                f"recompute_{self.recompute}",
                self.form,
                self.attention,
                self.loss,
                f"x{self.micro_batches}",
                self.numerics,
            )
        )

    @property
    def case(self) -> Case:
        """The case that the plan names."""
        layout = replace(LAYOUTS[self.layout], recompute=Recompute.parse(self.recompute))
        kernels = AttentionKernel(self.attention), LossKernel(self.loss)
        return trained(FORMS[self.form], layout, NUMERICS[self.numerics], GLOBAL_BATCH, self.micro_batches, *kernels)

    @property
    def is_double(self) -> bool:
        """Is everything in fp64?"""
        return NUMERICS[self.numerics].is_double

    @property
    def ranks(self) -> int:
        """Ranks that it takes."""
        return LAYOUTS[self.layout].world_size

    @property
    def single_process(self) -> Plan:
        """The same global batch on one rank, at once, with nothing recomputed."""
        return replace(self, layout="single", recompute="none", micro_batches=1)

    @property
    def stored(self) -> Plan:
        """The same with nothing recomputed."""
        return replace(self, recompute="none")


def trained(
    model: ModelSpec,
    layout: Layout,
    numerics: Numerics,
    sequences: int,
    micro_batches: int,
    attention: AttentionKernel,
    loss: LossKernel,
) -> Case:
    """A model under a layout, so many sequences a step in so many micro-batches a rank."""
    workload = Workload(
        seq_len=SEQ_LEN,
        micro_batch=sequences // (layout.data_ranks * micro_batches),
        micro_batches=micro_batches,
        precision=numerics.precision,
        optimizer=numerics.optimizer,
        attention=attention,
        loss=loss,
    )
    return case_of(model, layout, workload, numerics.learning_rate)


def single_process(case: Case) -> Case:
    """The same model, recipe and global batch on one rank, at once, with nothing recomputed."""
    workload = replace(case.workload, micro_batch=case.global_batch, micro_batches=1)
    return Case(case.model, Layout(), workload, recipe=case.recipe)


def case_of(model: ModelSpec, layout: Layout, workload: Workload, learning_rate: float) -> Case:
    """A case whose recipe does something in each of three steps: warm-up, clipping, decay."""
    recipe = Recipe(steps=4, warmup_steps=2, learning_rate=learning_rate, clip_norm=0.25)
    return Case(model, layout, workload, recipe=recipe)


AXES: dict[str, Sequence[str | int]] = {
    "layout": tuple(LAYOUTS),
    "recompute": ("none", "selective", "selective-op", "full", "every-2"),
    "form": tuple(FORMS),
    "attention": tuple(AttentionKernel),
    "loss": tuple(LossKernel),
    "micro_batches": (1, 2),
    "numerics": tuple(NUMERICS),
}


def pairwise_plans() -> list[Plan]:
    """Plans in which every two choices of two axes meet: some 32 of the product's 3,072."""
    random = Random(0)
    missing = {frozenset({(a, x), (b, y)}) for a, b in combinations(AXES, 2) for x in AXES[a] for y in AXES[b]}
    plans = []
    while missing:
        wanted = min(missing, key=sorted_pair)
        drawn = ({axis: random.choice(AXES[axis]) for axis in AXES} | dict(wanted) for _ in range(200))
        best = max(drawn, key=lambda choices: len(missing & _pairs(choices)))
        missing -= _pairs(best)
        plans.append(Plan(**best))  # type: ignore[arg-type]
    return plans


def sorted_pair(pair: frozenset[tuple[str, str | int]]) -> list[tuple[str, str]]:
    """An order of pairs that does not depend on how strings are hashed today."""
    return sorted((axis, str(choice)) for axis, choice in pair)


def _pairs(choices: dict[str, str | int]) -> set[frozenset[tuple[str, str | int]]]:
    return {frozenset(pair) for pair in combinations(choices.items(), 2)}


def all_needed(plans: Sequence[Plan]) -> list[Plan]:
    """The plans, what each is compared with, once each."""
    return list(dict.fromkeys(each for plan in plans for each in (plan, plan.stored, plan.single_process)))
