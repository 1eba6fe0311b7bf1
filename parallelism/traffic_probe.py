"""Counts the collectives a rank really calls: every c10d operator that passes torch's dispatcher while it listens.

torch.distributed, DDP's reducer, FSDP2, DTensor, torch.distributed.pipelining and DeepSpeed all end in the operators
of `c10d::` or `_c10d_functional::`, on gloo and on NCCL alike. A dispatch mode sees them from Python and from C++; the
autograd engine hands the mode on to the threads that run the backward pass. It is what torch's CommDebugMode does, with
sizes and groups. Not seen: a thread the program starts itself, collectives inside an operator written in Python, and
what a backend makes of a call (gloo may run a reduce-scatter as an all-reduce).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode

from suite.collectives import Call, Collective

#: where torch keeps the operators that take a process group
NAMESPACES = frozenset({"c10d", "_c10d_functional"})
#: operators that send no payload: barriers, and the receiving end of a send
SILENT = frozenset({"barrier", "monitored_barrier_", "recv_", "recv_any_source_", "irecv"})


class UncountedCollective(RuntimeError):
    """An operator of torch.distributed that the probe has no rule for."""


@contextmanager
def record_traffic() -> Iterator[list[Call]]:
    """Every collective this rank calls in the block, in order. Raises UncountedCollective for one without a rule."""
    calls: list[Call] = []
    with _Listener(calls):
        yield calls


class _Listener(TorchDispatchMode):
    """Counts collectives and lets every operator run as it would have."""

    def __init__(self, calls: list[Call]) -> None:
        super().__init__()
        self._calls = calls

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if isinstance(func, torch._ops.OpOverload) and func.namespace in NAMESPACES:
            self._calls.extend(calls_of(func, args, kwargs or {}))
        elif any(issubclass(kind, DTensor) for kind in types):
            return NotImplemented  # a DTensor first becomes plain tensors and collectives, which come by here again
        return func(*args, **(kwargs or {}))


def calls_of(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Call]:
    """What a call of a c10d operator is: nothing for the silent ones, several for a batch of sends."""
    name = func._schema.name.split("::")[1]
    named = dict(zip((argument.name for argument in func._schema.arguments), args, strict=False)) | dict(kwargs)
    if name in SILENT or not named.keys() & {"process_group", "group_name"}:  # without a group it only waits or looks
        return []
    if name not in RULES:
        raise UncountedCollective(f"traffic: the operator {func} is not counted; counted: {', '.join(sorted(RULES))}")
    ranks = _group(named).size()
    collective, payload = RULES[name]
    return [Call(collective, ranks, size, dtype) for size, dtype in payload(named, ranks)]


def _group(named: Mapping[str, Any]) -> dist.ProcessGroup:
    """The group of a call: c10d's operators carry the object, the functional ones its name."""
    group = named["process_group"] if "process_group" in named else named["group_name"]
    if isinstance(group, torch.ScriptObject):
        return dist.ProcessGroup.unbox(group)
    return group if isinstance(group, dist.ProcessGroup) else dist.distributed_c10d._resolve_process_group(group)


#: (bytes, dtype) of each call that an operator stands for
_Payload = Callable[[Mapping[str, Any], int], list[tuple[int, str]]]


def _whole(*names: str) -> _Payload:
    """The bytes of an argument that is the payload; of the named ones the first that the operator has."""

    def payload(named: Mapping[str, Any], ranks: int) -> list[tuple[int, str]]:
        return [_size(_tensors(next(named[name] for name in names if name in named)))]

    return payload


def _part(*names: str) -> _Payload:
    """An argument that is one rank's part: the payload is as many of them as there are ranks."""

    def payload(named: Mapping[str, Any], ranks: int) -> list[tuple[int, str]]:
        size, dtype = _size(_tensors(next(named[name] for name in names if name in named)))
        return [(ranks * size, dtype)]

    return payload


def _batch(named: Mapping[str, Any], ranks: int) -> list[tuple[int, str]]:
    pairs = zip(named["op_list"], named["tensors"], strict=True)
    return [_size([tensor]) for operation, tensor in pairs if operation == "isend"]


def _tensors(value: Any) -> list[Tensor]:
    """The tensors of an argument, lists in lists laid flat."""
    return [value] if isinstance(value, Tensor) else [tensor for item in value for tensor in _tensors(item)]


def _size(tensors: list[Tensor]) -> tuple[int, str]:
    dtypes = {str(tensor.dtype).removeprefix("torch.") for tensor in tensors}
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors), "+".join(sorted(dtypes))


RULES: dict[str, tuple[Collective, _Payload]] = {
    # torch.distributed, DDP, FSDP2, DeepSpeed
    "allreduce_": (Collective.ALL_REDUCE, _whole("tensors")),
    "allreduce_coalesced_": (Collective.ALL_REDUCE, _whole("tensors")),
    "allgather_": (Collective.ALL_GATHER, _whole("output_tensors")),
    "_allgather_base_": (Collective.ALL_GATHER, _whole("output_tensor")),
    "allgather_coalesced_": (Collective.ALL_GATHER, _whole("output_lists")),
    "allgather_into_tensor_coalesced_": (Collective.ALL_GATHER, _whole("outputs")),
    "reduce_scatter_": (Collective.REDUCE_SCATTER, _whole("input_tensors")),
    "_reduce_scatter_base_": (Collective.REDUCE_SCATTER, _whole("input_tensor")),
    "reduce_scatter_tensor_coalesced_": (Collective.REDUCE_SCATTER, _whole("inputs")),
    "alltoall_": (Collective.ALL_TO_ALL, _whole("input_tensors")),
    "alltoall_base_": (Collective.ALL_TO_ALL, _whole("input")),
    "broadcast_": (Collective.BROADCAST, _whole("tensors", "input")),  # both families have one
    "reduce_": (Collective.REDUCE, _whole("tensors")),
    "gather_": (Collective.GATHER, _part("input_tensors")),
    "scatter_": (Collective.SCATTER, _part("output_tensors")),
    "send": (Collective.SEND, _whole("tensors")),
    # DTensor and functional collectives
    "all_reduce": (Collective.ALL_REDUCE, _whole("input")),
    "all_reduce_": (Collective.ALL_REDUCE, _whole("input")),
    "all_reduce_coalesced": (Collective.ALL_REDUCE, _whole("inputs")),
    "all_reduce_coalesced_": (Collective.ALL_REDUCE, _whole("inputs")),
    "all_gather_into_tensor": (Collective.ALL_GATHER, _part("input")),
    "all_gather_into_tensor_out": (Collective.ALL_GATHER, _part("input")),
    "all_gather_into_tensor_coalesced": (Collective.ALL_GATHER, _part("inputs")),
    "reduce_scatter_tensor": (Collective.REDUCE_SCATTER, _whole("input")),
    "reduce_scatter_tensor_out": (Collective.REDUCE_SCATTER, _whole("input")),
    "reduce_scatter_tensor_coalesced": (Collective.REDUCE_SCATTER, _whole("inputs")),
    "all_to_all_single": (Collective.ALL_TO_ALL, _whole("input")),
    "broadcast": (Collective.BROADCAST, _whole("input")),
    "isend": (Collective.SEND, _whole("tensor")),
    "batch_p2p_ops": (Collective.SEND, _batch),
}
