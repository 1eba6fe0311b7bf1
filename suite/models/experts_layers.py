"""Which of a model's blocks have experts, what their routers hold beside weights, and what a token uses. Torch-free."""

from __future__ import annotations

from suite.models.base import ModelSpec
from suite.models.experts import Balance
from suite.operators import Array, DType, Size


def has_experts(spec: ModelSpec, block: int) -> bool:
    """Is the block's MLP a mixture?"""
    return spec.experts is not None and block >= getattr(spec, "dense_layers", 0)


def mixture_blocks(spec: ModelSpec) -> tuple[int, ...]:
    """The blocks with a mixture, those of multi-token prediction behind the others."""
    if spec.experts is None:
        return ()
    return tuple(block for block in range(spec.layers + getattr(spec, "mtp", 0)) if has_experts(spec, block))


def experts_buffers(spec: ModelSpec) -> tuple[Array, ...]:
    """Of every mixture, how many tokens were routed to each expert; and the router's biases where it has some."""
    if spec.experts is None:
        return ()
    count = Size("E", spec.experts.count)
    found: list[Array] = []
    for block in mixture_blocks(spec):
        place = f"blocks.{block}" if block < spec.layers else f"mtp.{block - spec.layers}"
        if spec.experts.balance is Balance.BIAS:
            found.append(Array(f"{place}.mlp.router.bias", (count,), DType.FP32))
        found.append(Array(f"{place}.mlp.tally", (count,), DType.INT64))
    return tuple(found)


def router_biases(spec: ModelSpec) -> int:
    """Elements of the routers' biases, which are buffers: no optimizer moves them. DeepSeek-V3's published count of
    parameters has them, ours of a model's parameters has not."""
    return sum(array.elements for array in experts_buffers(spec) if array.name.endswith("router.bias"))


def idle_parameters(spec: ModelSpec) -> int:
    """Parameters that one token does not use: of every mixture (multi-token prediction's left out), the matrices of the
    routed experts that it does not go to, 3 h f each."""
    if spec.experts is None:
        return 0
    blocks = sum(has_experts(spec, block) for block in range(spec.layers))
    return blocks * (spec.experts.count - spec.experts.top_k) * 3 * spec.hidden * spec.experts.ffn


def active_parameters(spec: ModelSpec, parameters: int) -> int:
    """Of a whole model's `parameters` (without multi-token prediction's), those that one token's forward pass uses.

    Counted: everything that is not a routed expert, embedding and head included, and top_k experts of every mixture;
    routers' biases where `parameters` has them. So Mixtral's and DeepSeek-V3's published figures count.
    """
    return parameters - idle_parameters(spec)
