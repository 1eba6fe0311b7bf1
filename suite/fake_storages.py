"""The account of code that runs on fake tensors: every storage it would have allocated, with birth and death.

It fills the structure that suite/allocations.py fills from the CPU allocator's events, so whoever reads one reads the
other. A storage is born when an operator returns it and dies with the last tensor on it; the clock counts births,
deaths and marks. What a kernel allocates and frees inside itself has no storage here. It is put in by formula
(suite/fake_scratch.py): a block of its own, born and dead before the operator returns. Not counted: storages that the
operators find there already, those of other devices (meta), and the 8 bytes of a Python number that autograd keeps.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from itertools import accumulate
from typing import Any, cast
from unittest.mock import patch

import torch
from torch import Tensor
from torch._prims_common import is_non_overlapping_and_dense_or_false
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_iter

from suite.allocations import GATHER_SPANS, AllocationTrace, Block, Mark

aten: Any = torch.ops.aten
ENTER, LEAVE = "profiler::_record_function_enter_new", "profiler::_record_function_exit"
COLLECTIVES = ("c10d::", "_c10d_functional::")
#: the address of what a kernel needs in passing; storages are numbered from 1
SCRATCH = 0
#: how autograd's engine is called: what it calls itself has this caller
ENGINE = "_engine_run_backward"

#: bytes that an operator (namespace::name) with these arguments and this result needs in passing
Scratch = Callable[[str, Sequence[Any], Any], int]


def nothing(name: str, given: Sequence[Any], result: Any) -> int:
    """Kernels that need nothing in passing."""
    return 0


class StorageTracker(TorchDispatchMode):
    """Hears every operator on fake CPU tensors. Goes on top of FakeTensorMode; `recorded` is what it heard."""

    def __init__(self, scratch: Scratch = nothing, sole_owner: tuple[int, int, int] | None = None) -> None:
        super().__init__()
        self._scratch = scratch
        self._blocks: list[Block] = []
        self._marks: list[Mark] = []
        self._living: dict[int, tuple[Block, weakref.ref[Any]]] = {}
        self._spans: list[str] = []
        self._clock = self._addresses = 0
        self._sole_owner = _uses_of_a_sole_owner() if sole_owner is None else sole_owner

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Torch wraps every call otherwise; nothing is compiled here."""
        return False

    def mark(self, name: str) -> None:
        """Leave a named instant in the trace."""
        self._marks.append(Mark(name, self._tick()))

    def address(self, tensor: Tensor) -> int:
        """The number of the storage that holds a tensor's elements (a DTensor's part); -1 where it was made unheard."""
        local = getattr(tensor, "_local_tensor", None)
        found = self._living.get(_key(tensor if local is None else local))
        return -1 if found is None else found[0].address

    def recorded(self, with_scratch: bool = True) -> AllocationTrace:
        """What has been heard so far, with or without what kernels need in passing."""
        blocks = [block for block in self._blocks if with_scratch or block.address != SCRATCH]
        changes = [(block.born, block.nbytes) for block in blocks]
        changes += [(block.died, -block.nbytes) for block in blocks if block.died is not None]
        changes.sort()
        totals = accumulate(nbytes for _, nbytes in changes)
        return AllocationTrace(blocks, list(self._marks), [at for at, _ in changes], list(totals))

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        named = kwargs or {}
        if func is torch.ops.prim.device.default:
            return func(*args, **named)
        if any(issubclass(kind, DTensor) for kind in types):
            return NotImplemented  # a DTensor first becomes plain tensors, which come by here again
        given = [item for item in tree_iter((args, named)) if isinstance(item, Tensor)]
        is_lifted = func is aten.lift_fresh.default  # a tensor of given numbers, which is made fake and heard
        if given and not is_lifted and not any(isinstance(item, FakeTensor) for item in given):
            with _disable_current_modes():
                return func(*args, **named)
        if func is aten._local_scalar_dense.default:
            return 1.0 if given[0].is_floating_point() else 1
        if func is torch.ops._c10d_functional.wait_tensor.default:
            return given[0]  # as the real one does; the fake one makes another tensor
        if func is aten.add.Tensor and (summed := self._add_in_place(args)) is not None:
            return summed
        self._span(func._schema.name, args)
        result = func(*args, **named)
        self._hear(func, given, result)
        self._pass(func, (*args, *named.values()), result)
        return result

    def resized(self, storage: Any) -> None:
        """A storage may have another size now: then its block is over and another begins, of the same number."""
        found = self._living.get(storage._cdata)
        if found is not None and found[0].nbytes != storage.nbytes():
            self._end(found[0])
            self._living[storage._cdata] = self._begin(found[0].address, storage.nbytes()), found[1]

    def _span(self, name: str, args: tuple[Any, ...]) -> None:
        """FSDP2 names what it does."""
        if name == ENTER:
            self._spans.append(args[0])
        elif name == LEAVE:
            self._spans.pop()

    def _add_in_place(self, pair: Sequence[Any]) -> Tensor | None:
        """Of two gradients that meet on a tensor the engine adds the second to the first if nobody else holds that, but
        never while a mode listens (input_buffer.cpp, can_accumulate_inplace). Here it does; None: the sum is new."""
        if sys._getframe(2).f_code.co_name != ENGINE or not self._is_free(pair):
            return None
        return pair[0].add_(pair[1])

    def _is_free(self, pair: Sequence[Any]) -> bool:
        """Does the engine alone hold the first of two gradients?"""
        return _uses(pair[0]) == self._sole_owner and is_non_overlapping_and_dense_or_false(pair[0])

    def _hear(self, func: Any, given: list[Tensor], result: Any) -> None:
        """New storages among an operator's results, changed sizes among its arguments."""
        made = [item for item in tree_iter(result) if isinstance(item, Tensor)]
        known = {_key(item) for item in given}
        for item in made:
            key = _key(item)
            if key not in self._living and key not in known and item.device.type == "cpu":
                self._born(key, item.untyped_storage())
        if func._schema.is_mutable:
            for item in given:
                self.resized(item.untyped_storage())

    def _born(self, key: int, storage: Any) -> None:
        self._addresses += 1
        self._living[key] = (
            self._begin(self._addresses, storage.nbytes()),
            weakref.ref(storage, lambda _: self._died(key)),
        )

    def _died(self, key: int) -> None:
        self._end(self._living.pop(key)[0])

    def _begin(self, address: int, nbytes: int, is_gather: bool = False) -> Block:
        inside = any(name.startswith(GATHER_SPANS) for name in self._spans)
        block = Block(address, nbytes, self._tick(), is_gather=is_gather or inside)
        if nbytes:
            self._blocks.append(block)
        return block

    def _end(self, block: Block) -> None:
        block.died = self._tick()

    def _pass(self, func: Any, given: Sequence[Any], result: Any) -> None:
        """What the kernel needs beside its result."""
        name = func._schema.name
        if nbytes := self._scratch(name, given, result):
            self._end(self._begin(SCRATCH, nbytes, is_gather=name.startswith(COLLECTIVES)))

    def _tick(self) -> int:
        self._clock += 1
        return self._clock


def _key(tensor: Tensor) -> int:
    """What tells living storages apart."""
    return tensor.untyped_storage()._cdata


def _uses(tensor: Tensor) -> tuple[int, int, int]:
    """References to a tensor, to it from Python, and to its storage."""
    return cast(Any, tensor)._use_count(), sys.getrefcount(tensor), torch._C._storage_Use_Count(_key(tensor))


@cache
def _uses_of_a_sole_owner() -> tuple[int, int, int]:
    """The references that a tracker sees to a gradient that the engine alone holds: tried out, since it is the calls'
    business how many they add."""
    seen: list[tuple[int, int, int]] = []

    class Trial(StorageTracker):
        def _is_free(self, pair: Sequence[Any]) -> bool:
            seen.append(_uses(pair[0]))
            return False

    with _disable_current_modes(), FakeTensorMode(), Trial(nothing, (0, 0, 0)):
        x = torch.ones(2, requires_grad=True)
        torch.autograd.grad([x.sin(), x.cos()], [x], [torch.ones(2), torch.ones(2)])
    return seen[0]


@contextmanager
def track_storages(scratch: Scratch = nothing) -> Iterator[StorageTracker]:
    """Hear every operator on fake CPU tensors in the block, which lies inside FakeTensorMode."""
    tracker = StorageTracker(scratch)
    resize = torch.UntypedStorage.resize_

    def resize_and_tell(storage: Any, *given: Any) -> Any:
        result = resize(storage, *given)
        tracker.resized(storage)
        return result

    with patch.object(torch.UntypedStorage, "resize_", resize_and_tell), tracker:
        yield tracker
