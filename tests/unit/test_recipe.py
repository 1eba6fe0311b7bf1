"""The recipe by hand: schedule, decay groups, clipping, and what AdamW and SGD make of a gradient."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import pytest
import torch
from torch import Tensor

from parallelism.batches import Batch
from parallelism.optimizers import build_optimizer
from parallelism.training import Trainer, build_model, learning_rate
from suite.case import Case, case_from
from suite.memory_probe import BACKWARD, FORWARD, IDLE, OPTIMIZER
from suite.spec import OptimizerKind, Precision, Recipe

pytestmark = pytest.mark.unit

CPU = torch.device("cpu")
CASE = case_from(
    {
        "model": {
            "layers": 1,
            "hidden": 8,
            "heads": 2,
            "ffn": 12,
            "vocab": 11,
            "max_positions": 8,
            "bias": True,
            "norm": "layernorm",
        },
        "workload": {"seq_len": 8, "micro_batch": 2, "precision": "fp32"},
        "recipe": {"steps": 4, "warmup_steps": 2, "learning_rate": 0.01, "clip_norm": 0.05},
    }
)


@dataclass
class Step:
    """What went into the optimizer and came out, by parameter."""

    before: dict[str, Tensor] = field(default_factory=dict)
    raw: dict[str, Tensor] = field(default_factory=dict)
    clipped: dict[str, Tensor] = field(default_factory=dict)
    after: dict[str, Tensor] = field(default_factory=dict)
    norm: float = 0.0


def train(case: Case, steps: int = 3) -> list[Step]:
    """A few steps on one rank, seen from the optimizer."""
    model = build_model(case, CPU)
    optimizer = build_optimizer(model, case)
    seen: list[Step] = []

    def weights() -> dict[str, Tensor]:
        return {name: item.detach().clone() for name, item in model.named_parameters()}

    def gradients() -> dict[str, Tensor]:
        return {name: item.grad.clone() for name, item in model.named_parameters() if item.grad is not None}

    def watch(phase: str) -> None:
        if phase == OPTIMIZER:
            seen.append(Step(before=weights(), raw=gradients()))

    def before_update(*_: object) -> None:
        seen[-1].clipped = gradients()

    optimizer.register_step_pre_hook(before_update)
    trainer = Trainer(case, model, optimizer, CPU, watch)
    for step in range(steps):
        result = trainer.step(step, batch(case, step))
        seen[-1].after, seen[-1].norm = weights(), result.gradient_norm.item()
        assert all(item.grad is None for item in model.parameters())
    return seen


def batch(case: Case, step: int) -> Batch:
    """Random ids and labels, [micro_batches, micro_batch, seq_len]."""
    shape = (case.workload.micro_batches, case.workload.micro_batch, case.workload.seq_len + 1)
    rows = torch.randint(case.model.vocab, shape, generator=torch.Generator().manual_seed(step))
    return Batch(rows[..., :-1], rows[..., 1:])


def norm_of(gradients: dict[str, Tensor]) -> float:
    return math.sqrt(sum(item.double().square().sum().item() for item in gradients.values()))


def decay_of(name: str, case: Case) -> float:
    """Matrices decay: embedding, positions, projections, head. Norms and biases do not."""
    is_vector = name.endswith("bias") or "norm" in name
    return 0.0 if is_vector else case.recipe.weight_decay


# --- the schedule --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("step", "share"),
    [
        (0, 0.25),
        (1, 0.5),
        (2, 0.75),
        (3, 1.0),  # the warm-up ends at the peak
        (4, 1.0),  # the cosine starts from it: cos(0) = 1
        (6, 0.1 + 0.9 * 0.75),  # a third of the way: cos(pi/3) = 1/2
        (7, 0.55),  # half way: cos(pi/2) = 0
        (8, 0.1 + 0.9 * 0.25),  # two thirds: cos(2 pi/3) = -1/2
        (10, 0.1),  # a tenth, where the steps end
        (1000, 0.1),
    ],
)
def test_learning_rate_by_hand(step: int, share: float) -> None:
    recipe = Recipe(steps=10, warmup_steps=4, learning_rate=3e-4)
    assert learning_rate(recipe, step) == pytest.approx(3e-4 * share, rel=1e-12)


def test_no_warmup_starts_at_the_peak() -> None:
    assert learning_rate(Recipe(steps=5, warmup_steps=0, learning_rate=1.0), 0) == 1.0


@pytest.mark.parametrize("warmup", [5, 8])
def test_a_warmup_as_long_as_the_run_only_rises(warmup: int) -> None:
    recipe = Recipe(steps=5, warmup_steps=warmup, learning_rate=1.0)
    assert [learning_rate(recipe, step) for step in range(5)] == [(step + 1) / warmup for step in range(5)]


def test_every_group_gets_the_step_rate() -> None:
    model = build_model(CASE, CPU)
    optimizer = build_optimizer(model, CASE)
    trainer = Trainer(CASE, model, optimizer, CPU)
    for step, rate in enumerate((0.005, 0.01, 0.01, 0.1 * 0.01 + 0.9 * 0.01 * 0.5)):
        trainer.step(step, batch(CASE, step))
        assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([rate, rate])


# --- the optimizers ------------------------------------------------------------------------------------------


def test_matrices_decay_and_vectors_do_not() -> None:
    model = build_model(CASE, CPU)
    names = {item: name for name, item in model.named_parameters()}
    groups = build_optimizer(model, CASE).param_groups
    decays = {names[item]: group["weight_decay"] for group in groups for item in group["params"]}
    assert decays == {name: decay_of(name, CASE) for name in names.values()}
    assert {0.0, 0.1} == set(decays.values())


def test_adamw_settings() -> None:
    for group in build_optimizer(build_model(CASE, CPU), CASE).param_groups:
        assert (group["betas"], group["eps"], group["amsgrad"]) == ((0.9, 0.95), 1e-8, False)


def test_adamw_by_hand() -> None:
    """p (1 - lr wd) - lr m' / (sqrt(v') + eps), with m and v corrected for their start (arXiv:1711.05101)."""
    first: dict[str, Tensor] = {}
    second: dict[str, Tensor] = {}
    for place, step in enumerate(train(CASE)):
        rate = learning_rate(CASE.recipe, place)
        for name, gradient in step.clipped.items():
            g = gradient.double()
            first[name] = 0.9 * first.get(name, torch.zeros_like(g)) + 0.1 * g
            second[name] = 0.95 * second.get(name, torch.zeros_like(g)) + 0.05 * g.square()
            mean, square = first[name] / (1 - 0.9 ** (place + 1)), second[name] / (1 - 0.95 ** (place + 1))
            kept = step.before[name].double() * (1 - rate * decay_of(name, CASE))
            torch.testing.assert_close(
                step.after[name].double(), kept - rate * mean / (square.sqrt() + 1e-8), rtol=1e-5, atol=1e-7
            )


def test_sgd_by_hand() -> None:
    """buffer = 0.9 buffer + g + wd p; p - lr buffer."""
    case = replace(CASE, workload=replace(CASE.workload, optimizer=OptimizerKind.SGD))
    buffers: dict[str, Tensor] = {}
    for place, step in enumerate(train(case)):
        rate = learning_rate(case.recipe, place)
        for name, gradient in step.clipped.items():
            pull = gradient.double() + decay_of(name, case) * step.before[name].double()
            buffers[name] = 0.9 * buffers[name] + pull if name in buffers else pull
            torch.testing.assert_close(
                step.after[name].double(), step.before[name].double() - rate * buffers[name], rtol=1e-5, atol=1e-7
            )


# --- clipping ------------------------------------------------------------------------------------------------


def test_a_large_gradient_is_scaled_to_the_limit() -> None:
    for step in train(CASE):
        assert step.norm == pytest.approx(norm_of(step.raw), rel=1e-5)  # what is reported is what there was
        assert norm_of(step.clipped) == pytest.approx(CASE.recipe.clip_norm, rel=1e-4)
        scale = CASE.recipe.clip_norm / step.norm
        for name, gradient in step.raw.items():
            torch.testing.assert_close(step.clipped[name], gradient * scale, rtol=1e-4, atol=0)


def test_a_small_gradient_is_left_alone() -> None:
    case = replace(CASE, recipe=replace(CASE.recipe, clip_norm=100.0))
    for step in train(case):
        assert all(torch.equal(step.clipped[name], gradient) for name, gradient in step.raw.items())


# --- the step ------------------------------------------------------------------------------------------------


def test_phases_are_marked_in_order() -> None:
    case = replace(CASE, workload=replace(CASE.workload, micro_batches=2))
    model = build_model(case, CPU)
    marks: list[str] = []
    Trainer(case, model, build_optimizer(model, case), CPU, marks.append).step(0, batch(case, 0))
    assert marks == [FORWARD, BACKWARD, FORWARD, BACKWARD, OPTIMIZER, IDLE]


def test_state_is_fp32_in_bf16_mixed() -> None:
    case = replace(CASE, workload=replace(CASE.workload, precision=Precision.BF16_MIXED))
    model = build_model(case, CPU)
    optimizer = build_optimizer(model, case)
    Trainer(case, model, optimizer, CPU).step(0, batch(case, 0))
    state = [value for each in optimizer.state.values() for value in each.values()]
    assert {item.dtype for item in (*model.parameters(), *state)} == {torch.float32}


def test_evaluation_is_the_loss_and_changes_nothing() -> None:
    model = build_model(CASE, CPU)
    trainer = Trainer(CASE, model, build_optimizer(model, CASE), CPU)
    before = [item.detach().clone() for item in model.parameters()]
    batches = [batch(CASE, step) for step in range(3)]
    with torch.no_grad():
        losses = [model(each.ids[0], each.labels[0]).item() for each in batches]
    loss = trainer.evaluate(batches)
    assert loss.item() == pytest.approx(sum(losses) / 3, rel=1e-6)
    assert not loss.requires_grad
    assert all(torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True))


def test_the_seed_alone_decides_the_weights() -> None:
    torch.manual_seed(0)
    first = list(build_model(CASE, CPU).parameters())
    torch.manual_seed(1)
    torch.rand(7)
    assert all(torch.equal(a, b) for a, b in zip(first, build_model(CASE, CPU).parameters(), strict=True))
    other = build_model(replace(CASE, recipe=replace(CASE.recipe, seed=2)), CPU)
    assert not torch.equal(first[0], next(other.parameters()))
