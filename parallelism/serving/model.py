"""The model that a rank answers with: weights in the compute type, divided by tensor parallelism, whole logits."""

from __future__ import annotations

from functools import partial
from typing import cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from parallelism.dtypes import torch_dtype
from parallelism.strategies import STRATEGIES
from parallelism.training import build_model
from suite.cache_shape import compute_dtype
from suite.case import Case
from suite.models.blocks import Attention
from suite.models.decoder_module import Decoder
from suite.models.loss import LOSSES
from suite.share import own_rows


def served_model(case: Case, mesh: DeviceMesh | None, device: torch.device) -> Decoder:
    """The weights that the case's seed gives, the same in every layout; ready to answer."""
    model = build_model(case, device)
    assert isinstance(model, Decoder)
    return as_served(model, mesh, case)


def as_served(model: Decoder, mesh: DeviceMesh | None, case: Case) -> Decoder:
    """A whole model in the type that it answers in (rotary tables stay in fp32), spread over mesh["tp"], every rank of
    which then has the logits of the whole vocabulary."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(torch_dtype(compute_dtype(case)))
    if case.layout.tp > 1:
        assert mesh is not None
        copy_heads(model, case.layout.tp)
        model = cast("Decoder", STRATEGIES["tensor"].apply(model, mesh, case))
        _gather_logits(model, mesh["tp"])
        model.loss = LOSSES[case.workload.loss]  # of whole logits
    return model.requires_grad_(False).eval()


def copy_heads(model: Decoder, tp: int) -> None:
    """Where there are fewer key-value heads than ranks, let each rank have a whole one: tp / kv_heads neighbours have
    copies of the one that their queries read. Weights of a head are neighbouring rows."""
    copies = tp // model.spec.kv_heads
    if copies < 2:
        return
    for attention in model.modules():
        if isinstance(attention, Attention):
            attention.wk, attention.wv = (_copied(each, attention.head_dim, copies) for each in _projections(attention))


def _projections(attention: Attention) -> tuple[nn.Linear, nn.Linear]:
    return attention.wk, attention.wv


def _copied(projection: nn.Linear, head_dim: int, copies: int) -> nn.Linear:
    """The projection with each of its heads so many times in a row."""

    def rows(parameter: Tensor) -> nn.Parameter:
        return nn.Parameter(parameter.detach().unflatten(0, (-1, head_dim)).repeat_interleave(copies, 0).flatten(0, 1))

    weight, bias = projection.weight, projection.bias
    wide = nn.Linear(weight.shape[1], weight.shape[0] * copies, bias=bias is not None, device="meta")
    wide.weight = rows(weight)
    if bias is not None:
        wide.bias = rows(bias)
    return wide


def _gather_logits(model: Decoder, mesh: DeviceMesh) -> None:
    """Let the head give the logits of all ranks' parts of the vocabulary, [..., V]."""
    assert model.head is not None
    gather = partial(gathered_vocabulary, vocab=model.spec.vocab, group=mesh.get_group())
    model.head.register_forward_hook(lambda _, __, part: gather(part))


def gathered_vocabulary(part: Tensor, vocab: int, group: dist.ProcessGroup) -> Tensor:
    """Every rank's columns [..., V_r] -> [..., V]. The last ranks' parts may be narrower, and are filled up to be sent;
    only then does anything lie beyond the vocabulary."""
    ranks = dist.get_world_size(group)
    widest = len(own_rows(vocab, ranks, 0))
    mine = nn.functional.pad(part, (0, widest - part.shape[-1])).contiguous()
    parts = mine.new_empty(ranks * len(mine), *mine.shape[1:])
    dist.all_gather_into_tensor(parts, mine, group)
    return parts.unflatten(0, (ranks, -1)).movedim(0, -2).flatten(-2)[..., :vocab]
