"""Optimizers and update kernels that a layout cannot take, and why."""

from __future__ import annotations

from typing import TYPE_CHECKING

from suite.layout_rules import Rule
from suite.optimizers import KERNELS, has_dtensors
from suite.spec import OptimizerKernel, OptimizerKind

if TYPE_CHECKING:
    from suite.case import Case


def _is_divided(case: Case, kind: OptimizerKind) -> bool:
    return case.workload.optimizer is kind and has_dtensors(case.layout)


def _divided(case: Case) -> str:
    return f"{_optimizer(case)} with layout.fsdp({case.layout.fsdp}), layout.tp({case.layout.tp})"


def _optimizer(case: Case) -> str:
    return f"workload.optimizer({case.workload.optimizer})"


def _kernel(case: Case) -> str:
    return f"workload.optimizer_kernel({case.workload.optimizer_kernel}) with {_optimizer(case)}"


def _on_engine(text: str, case: Case) -> str:
    return f"{text} with layout.zero({case.layout.zero}), layout.engine({case.layout.engine})"


OPTIMIZER_RULES: tuple[Rule[Case], ...] = (
    Rule(
        "an update kernel that the optimizer has not",
        "adamw and sgd have fused, foreach and loop, adafactor foreach and loop, muon and adam-8bit loop; use auto",
        lambda case: case.workload.optimizer_kernel is not OptimizerKernel.AUTO
        and case.workload.optimizer_kernel not in KERNELS[case.workload.optimizer],
        _kernel,
    ),
    Rule(
        "fused sgd with fsdp or tp",
        "DTensor has no rule for the fused SGD kernel; use auto, foreach or loop",
        lambda case: case.workload.optimizer_kernel is OptimizerKernel.FUSED and _is_divided(case, OptimizerKind.SGD),
        lambda case: f"{_kernel(case)} and layout.fsdp({case.layout.fsdp}), layout.tp({case.layout.tp})",
    ),
    Rule(
        "adafactor with fsdp or tp",
        "DTensor cannot square a norm over a divided dimension in place, as its row and column means do; use adamw"
        " or sgd, or dp, cp or pp",
        lambda case: _is_divided(case, OptimizerKind.ADAFACTOR),
        _divided,
    ),
    Rule(
        "muon with fsdp or tp",
        "it orthogonalizes whole matrices: DTensor would gather them anew in each of its iterations, and sum bf16"
        " products in another order than one process; use adamw or sgd, or dp, cp or pp",
        lambda case: _is_divided(case, OptimizerKind.MUON),
        _divided,
    ),
    Rule(
        "adam-8bit with fsdp or tp",
        "shards would cut its blocks of 256 elements, so that layouts would learn apart; use adamw or sgd, or dp, cp"
        " or pp",
        lambda case: _is_divided(case, OptimizerKind.ADAM_8BIT),
        _divided,
    ),
    Rule(
        "DeepSpeed's engine with adafactor, muon or adam-8bit",
        "its stages 1 to 3 update flat partitions, which have no rows or columns and other blocks, and stage 0 gives"
        " nothing that engine torch does not; use adamw or sgd, or engine torch",
        lambda case: case.layout.is_deepspeed
        and case.workload.optimizer not in (OptimizerKind.ADAMW, OptimizerKind.SGD),
        lambda case: _on_engine(_optimizer(case), case),
    ),
    Rule(
        "DeepSpeed's engine with foreach or loop",
        "the formulas know its engine with fused updates alone; use auto or fused",
        lambda case: case.layout.is_deepspeed
        and case.workload.optimizer_kernel in (OptimizerKernel.FOREACH, OptimizerKernel.LOOP),
        lambda case: _on_engine(_kernel(case), case),
    ),
    Rule(
        "ZeroRedundancyOptimizer with muon or adam-8bit",
        "it divides one optimizer over ranks, and these are two, with AdamW for the rest; use adamw, sgd or adafactor",
        lambda case: case.layout.zero == 1 and not case.layout.is_deepspeed
        and case.workload.optimizer in (OptimizerKind.MUON, OptimizerKind.ADAM_8BIT),
        lambda case: _on_engine(_optimizer(case), case),
    ),
)  # fmt: skip
