"""Which of a model's blocks have experts, and what their routers hold beside weights. Torch-free."""

from __future__ import annotations

from suite.models.base import ModelSpec
from suite.models.experts import Balance
from suite.operators import Array, DType, Size


def has_experts(spec: ModelSpec, block: int) -> bool:
    """Is the block's MLP a mixture?"""
    return spec.experts is not None and block >= getattr(spec, "dense_layers", 0)


def experts_buffers(spec: ModelSpec) -> tuple[Array, ...]:
    """Of every mixture, how many tokens were routed to each expert; and the router's biases where it has some."""
    if spec.experts is None:
        return ()
    count = Size("E", spec.experts.count)
    found: list[Array] = []
    for block in range(spec.layers):
        if has_experts(spec, block):
            if spec.experts.balance is Balance.BIAS:
                found.append(Array(f"blocks.{block}.mlp.router.bias", (count,), DType.FP32))
            found.append(Array(f"blocks.{block}.mlp.tally", (count,), DType.INT64))
    return tuple(found)
