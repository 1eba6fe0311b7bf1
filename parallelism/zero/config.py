"""A case as DeepSpeed's configuration, and the model's parameters as DeepSpeed groups and pads them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from suite.layout import Offload
from suite.spec import Precision

if TYPE_CHECKING:
    from suite.case import Case
    from suite.operators import Ledger

#: elements of a gradient bucket where the layout names none (deepspeed/runtime/zero/config.py, reduce_bucket_size)
DEFAULT_BUCKET_ELEMENTS = 500_000_000
#: ZeRO-3 as in the paper: gathered just before a module runs, freed just after. DeepSpeed's own defaults keep
#: parameters below 1e5 elements whole, and every parameter that is used again within 1e9 elements: under them a small
#: model is not divided while it works, and what is sent depends on a trace of the first steps.
STAGE_3_SETTINGS = {
    "stage3_param_persistence_threshold": 0,
    "stage3_max_reuse_distance": 0,
    "stage3_prefetch_bucket_size": 0,
}


def element_bytes(precision: Precision) -> int:
    """Bytes of a parameter and of its gradient: DeepSpeed's bf16 keeps both in bf16, beside fp32 masters."""
    return 2 if precision is Precision.BF16_MIXED else 4


def bucket_elements(case: Case) -> int:
    """Elements of a gradient bucket: layout.bucket_mib of the parameters' type, or DeepSpeed's default.

    Stage 0 does not read it: the engine's all-reduce has a bucket of 5e8 elements that no setting reaches.
    """
    if not case.layout.bucket_mib:
        return DEFAULT_BUCKET_ELEMENTS
    return case.layout.bucket_mib * 2**20 // element_bytes(case.workload.precision)


def is_clipped_by_engine(case: Case) -> bool:
    """Does the engine clip? Not in stage 0 in fp32, where it clips without telling the norm: our own clipping runs."""
    return case.layout.zero > 0 or case.workload.precision is Precision.BF16_MIXED


def deepspeed_config(case: Case) -> dict[str, Any]:
    """The case as DeepSpeed's configuration (https://www.deepspeed.ai/docs/config-json).

    Precision fp32 sets nothing. bf16-mixed is DeepSpeed's bf16: parameters, activations and gradients in bf16, reduced
    and accumulated in bf16, the optimizer on fp32 masters. Autocast, which bf16-mixed is elsewhere, keeps parameters,
    residual stream's norms and gradients in fp32; so losses agree within bf16's rounding, and bytes do not.

    The optimizer is ours, torch's, passed beside this: `zero_allow_untested_optimizer` lets SGD and fused AdamW be
    sharded, and `zero_force_ds_cpu_optimizer` false lets torch's AdamW work in host memory too, where DeepSpeed's own
    would be compiled at the first use.
    """
    layout, workload = case.layout, case.workload
    clip = case.recipe.clip_norm
    return {
        "train_batch_size": case.global_batch,
        "train_micro_batch_size_per_gpu": workload.micro_batch,
        "gradient_accumulation_steps": workload.micro_batches,
        "gradient_clipping": clip if is_clipped_by_engine(case) and math.isfinite(clip) else 0.0,
        "bf16": {"enabled": workload.precision is Precision.BF16_MIXED},
        "zero_optimization": _zero_section(case) if layout.zero else {"stage": 0},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": None,
        "wall_clock_breakdown": False,
    }


def _zero_section(case: Case) -> dict[str, Any]:
    """Left at DeepSpeed's defaults: contiguous gradients; reductions overlap backward in stage 3 alone."""
    layout, elements = case.layout, bucket_elements(case)
    section: dict[str, Any] = {
        "stage": layout.zero,
        "reduce_bucket_size": elements,
        "allgather_bucket_size": elements,  # read only by a torch without all_gather_into_tensor
    }
    if layout.zero == 3:
        section |= STAGE_3_SETTINGS
    pinned = {"device": "cpu", "pin_memory": case.cluster.device != "cpu"}
    if layout.offload is not Offload.NONE:
        section["offload_optimizer"] = pinned
    if layout.offload is Offload.PARAMETERS:
        section["offload_param"] = pinned
    return section


@dataclass(frozen=True)
class Parameter:
    """A parameter that owns its storage, where it stands in the model."""

    name: str
    shape: tuple[int, ...]

    @cached_property
    def elements(self) -> int:
        """Elements on this rank."""
        return math.prod(self.shape)

    @property
    def is_matrix(self) -> bool:
        """Does it decay? Vectors do not."""
        return len(self.shape) >= 2


def parameters_of(ledger: Ledger) -> tuple[Parameter, ...]:
    """Every parameter once, in the module's order."""
    return tuple(
        Parameter(placed.weight_name(weight), tuple(size.value for size in weight.shape))
        for placed in ledger.in_module_order
        for weight in placed.segment.weights
        if not weight.tied_to
    )


def groups_of(ledger: Ledger) -> tuple[tuple[Parameter, ...], ...]:
    """The optimizer's groups: matrices and vectors, first the kind of the first parameter (a later pipeline stage
    begins with a norm)."""
    parameters = parameters_of(ledger)
    kinds = dict.fromkeys(item.is_matrix for item in parameters)
    return tuple(tuple(item for item in parameters if item.is_matrix is kind) for kind in kinds)


def padded_group(group: Sequence[Parameter], ranks: int) -> int:
    """Elements of a group's flat buffer in stages 1 and 2: a multiple of 2N, for each rank's part to start at four
    bytes in bf16 (deepspeed/runtime/zero/stage_1_and_2.py, nccl_start_alignment_factor)."""
    return math.ceil(sum(item.elements for item in group) / (2 * ranks)) * 2 * ranks
