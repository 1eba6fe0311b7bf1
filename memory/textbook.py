"""Formulas as papers and other tools print them, to hold published figures to: bytes unless said otherwise. Torch-free.

None of them is used for an estimate here; the ledger's walks are. They say what others compute.
"""

from __future__ import annotations

from fractions import Fraction

from suite.parse import require

#: bytes a parameter of mixed-precision Adam: 16-bit weights, 16-bit gradients, fp32 master weights and two moments
WEIGHT, GRADIENT, ADAM = 2, 2, 12


def zero_model_states(parameters: float, stage: int, ranks: int) -> float:
    """ZeRO's model states on one rank: (2 + 2 + 12) bytes a parameter, of which stage 1 divides the 12, stage 2 the
    gradients too, stage 3 all (arXiv:1910.02054, section 3.1, figure 1)."""
    require(0 <= stage <= 3, f"stage: must be 0 to 3, got {stage}")
    require(ranks >= 1, f"ranks: must be at least 1, got {ranks}")
    parts = ((ADAM, 1), (GRADIENT, 2), (WEIGHT, 3))
    return parameters * float(sum(Fraction(size, ranks if stage >= first else 1) for size, first in parts))


def zero_activations(layers: int, hidden: int, tokens: int) -> float:
    """ZeRO's rule of thumb for a GPT-2-like model without checkpointing: 12 h a token and layer, in 16 bits
    (arXiv:1910.02054, section 3.2, footnote)."""
    return 12.0 * hidden * tokens * layers * 2


def deepspeed_zero2(parameters: float, ranks: int, nodes: int, offload: bool) -> tuple[float, float]:
    """(bytes of a GPU, of a host) by DeepSpeed's estimator for stage 2, its host factor 1.5 included
    (docs/code-docs/source/memory.rst): 2 P + 16 P / N more unless the optimizer is on the host, which has
    4 P a local rank in any case, or 16 P."""
    _check_ranks(ranks, nodes)
    local = ranks // nodes
    if offload:
        return 2 * parameters, max(4 * parameters * ranks, 16 * parameters) / nodes * 1.5
    return 4 * parameters + 16 * parameters / ranks, 4 * parameters * local * 1.5


def deepspeed_zero3(
    parameters: float, largest: float, ranks: int, nodes: int, offload_optimizer: bool, offload_parameters: bool,
    zero_init: bool,
) -> tuple[float, float]:  # fmt: skip
    """(bytes of a GPU, of a host) by DeepSpeed's estimator for stage 3, its host factor 1.5 included: 4 bytes of the
    largest layer, and of 18 P / N what is not on the host."""
    _check_ranks(ranks, nodes)
    local, whole = ranks // nodes, 4 * parameters * (ranks // nodes)
    if offload_optimizer:
        state = 18 if offload_parameters else 16
        gpu = 4 * largest + (0 if offload_parameters else 2 * parameters / ranks)
        host = state * parameters / nodes if zero_init else max(whole, state * parameters / nodes)
        return gpu, host * 1.5
    return 4 * largest + 18 * parameters / ranks, (4 * largest * local if zero_init else whole) * 1.5


def _check_ranks(ranks: int, nodes: int) -> None:
    require(1 <= nodes <= ranks, f"ranks: must be at least nodes({nodes}) and that at least 1, got {ranks}")
