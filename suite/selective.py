"""What selective checkpointing per operator keeps of a block: the rule, as kernels of a ledger.

torchtitan's default (`activation_checkpoint.mode = "selective"`, option "op"; parallelize_llama.py of December 2024)
wraps each block in torch's checkpoint with a policy over dispatched operators: the outputs of the 1st, 3rd, 5th, ...
matrix product (`aten.mm`), of fused attention and of reduce-scatter are kept, everything else is run again. Its models
have no biases. A linear with a bias is dispatched as `aten.addmm`, never `mm`: here both count, in one series, so that
a model with biases gets what one without them gets. Products between tensors of activations (`aten.bmm`, attention in
the open) are not in torchtitan's list and are run again.
"""

from __future__ import annotations

from collections.abc import Iterable

from suite.operators import Array, Kernel, Operator, Region

#: of these every other one, the first included; of those all
PRODUCT = "linear"
KEPT = frozenset({"flash_attention", "scatter_sequence"})


def kept_outputs(body: Iterable[Operator | Region]) -> tuple[Array, ...]:
    """The arrays of a block that are kept for its rerun.

    Counted: outputs of every other `linear` from the first on, output and log-sum-exp of fused attention, sums that
    sequence parallelism scatters. Not counted: the fused kernel's random state (16 bytes on CUDA); a ring's blocks of
    attention, which are merged in place and so run again; the block's input, which is the region's.
    """
    kernels = [kernel for operator in body if isinstance(operator, Operator) for kernel in operator.kernels]
    products = [kernel for kernel in kernels if kernel.name == PRODUCT]
    kept: list[Kernel] = [*products[::2], *(kernel for kernel in kernels if kernel.name in KEPT)]
    return tuple(array for kernel in kept for array in kernel.writes)
