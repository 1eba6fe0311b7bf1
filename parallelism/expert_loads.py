"""What a step routed to each expert, and the biases that it moves: the trainer's part of a mixture of experts."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import TYPE_CHECKING

from suite.collectives import Collective, Message
from suite.models.experts import Balance
from suite.models.experts_layers import mixture_blocks
from suite.record import Quantity, Sample

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.distributed.device_mesh import DeviceMesh

    from suite.case import Case

#: axes whose ranks read other tokens
TOKEN_AXES = ("dp", "fsdp", "cp", "ep")
COUNT_BYTES = 8
SOURCE = "Wang et al. 2024, arXiv:2408.15664, algorithm 1"


def take_loads(model: nn.Module) -> Tensor | None:
    """Tokens that this rank routed to each expert since it was last asked, [mixtures, E]; None without mixtures."""
    import torch

    from suite.models.experts_module import mixtures

    tallies = [mixture.tally for mixture in mixtures(model)]
    if not tallies:
        return None
    loads = torch.stack(tallies)
    for tally in tallies:
        tally.zero_()
    return loads


def move_biases(model: nn.Module, loads: Tensor | None, mesh: DeviceMesh | None, case: Case) -> None:
    """Add a step to the bias of each expert that had fewer of the global batch's tokens than the mean, take one from
    each that had more. Tensor-parallel ranks route the same tokens, and stages have mixtures of their own."""
    import torch.distributed as dist

    from suite.models.experts_module import mixtures

    experts = case.model.experts
    if loads is None or experts is None or experts.balance is not Balance.BIAS:
        return
    total = loads.clone()
    for axis in TOKEN_AXES:
        if mesh is not None and getattr(case.layout, axis) > 1:
            dist.all_reduce(total, group=mesh[axis].get_group())
    total = total.float()
    steps = (total.mean(dim=1, keepdim=True) - total).sign() * experts.rate
    for mixture, step in zip(mixtures(model), steps, strict=True):
        assert mixture.router.bias is not None
        mixture.router.bias += step.to(mixture.router.bias.dtype)


def load_samples(model: nn.Module, routed: Sequence[Tensor | None], case: Case, rank: int) -> Iterator[Sample]:
    """How many of a rank's tokens each expert got in all steps together, by block and expert; `routed`: each step's
    take_loads of the model."""
    from suite.models.experts_module import MixtureMLP

    experts, steps = case.model.experts, [loads for loads in routed if loads is not None]
    if experts is None or not steps:
        return
    names = [name for name, module in model.named_modules() if isinstance(module, MixtureMLP)]
    for name, row in zip(names, sum(steps[1:], steps[0]).tolist(), strict=True):
        for expert, tokens in enumerate(row):
            index = _block_of(name, case.model.layers) * experts.count + expert
            yield Sample(Quantity.ROUTED_TOKENS, tokens, rank, index)


def _block_of(name: str, layers: int) -> int:
    """The number of the block that a module is in; those of multi-token prediction come behind the model's own."""
    parts = name.split(".")
    return layers + int(parts[parts.index("mtp") + 1]) if "mtp" in parts else int(parts[parts.index("blocks") + 1])


def load_messages(case: Case, blocks: Collection[int]) -> tuple[Message, ...]:
    """The counts that are summed over each axis of other tokens, once a step, of a rank's mixtures among `blocks`."""
    experts = case.model.experts
    if experts is None or experts.balance is not Balance.BIAS:
        return ()
    nbytes = sum(block in blocks for block in mixture_blocks(case.model)) * experts.count * COUNT_BYTES
    return tuple(
        Message(
            Collective.ALL_REDUCE, axis, getattr(case.layout, axis), nbytes, int(nbytes > 0),
            "tokens of each expert, for the routers' biases", f"mixtures*E*{COUNT_BYTES}", SOURCE,
        )
        for axis in TOKEN_AXES
    )  # fmt: skip
