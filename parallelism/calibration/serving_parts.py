"""What a served model's passes are made of, each part timed by itself: operators, attention through a cache. Needs
torch.

Operators come in the order in which a pass has them, so that each finds the caches as others have left them, and each
block has weights of its own: a token's step reads them all once.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from suite.caches.base import Cache
from suite.caches.build import DTYPES, build_cache
from suite.caches.core import through
from suite.cache_shape import CacheShape, compute_dtype
from suite.case import case_from
from suite.hardware.operator_times import Format, Timed
from suite.models.decoder_module import Decoder
from suite.serving_rules import context_tokens

#: operator, shape, format
Key = tuple[str, tuple[int, ...], str]
Call = Callable[[], object]

CPU = torch.device("cpu")
COMPUTE = {Format.FP32: torch.float32, Format.BF16: torch.bfloat16, Format.FP16: torch.float16}
#: layers of a cache whose attention is timed: so many lie between two uses of one
LAYERS = 4
#: calls of a module that does nothing, timed together
CALLS = 100


class Modules:
    """Weights by operator, shape and place: runs that have the same shapes share them."""

    def __init__(self) -> None:
        self._made: dict[tuple[object, ...], nn.Module] = {}

    def at(self, make: Callable[..., nn.Module], sizes: tuple[int, ...], dtype: torch.dtype, place: int) -> nn.Module:
        """The module of these sizes at a place."""
        key = (make, sizes, dtype, place)
        if key not in self._made:
            self._made[key] = make(*sizes).to(dtype)
        return self._made[key]


class Run:
    """One pass's operators: those of so many blocks, then those before and after them."""

    def __init__(self, row: Mapping[str, Any], modules: Modules) -> None:
        format = Format(row["format"])
        self.is_short = row["is_short"]
        uses = row["block"] * row["blocks"] + row["ends"]
        places: dict[str, int] = defaultdict(int)
        inputs: dict[tuple[int, ...], Tensor] = {}
        self.calls: list[tuple[Key, Call]] = []
        for name, sizes in uses:
            operator, shape = Timed(name), tuple(sizes)
            kind = f"{operator}{shape[-2:]}"
            call = _BUILDERS[operator](shape, _Parts(COMPUTE[format], inputs, modules, places[kind]))
            places[kind] += 1
            self.calls.append(((operator.value, shape, format.value), call))

    def readings(self) -> dict[Key, float]:
        """Mean seconds of a call of each operator, in one go through all of them. A token's step follows others like
        it, so it is timed after one that is not."""
        if self.is_short:
            for _, call in self.calls:
                call()
        found: dict[Key, list[float]] = defaultdict(list)
        for key, call in self.calls:
            start = time.perf_counter()
            call()
            found[key].append(time.perf_counter() - start)
        return {key: sum(seconds) / len(seconds) for key, seconds in found.items()}


class _Parts:
    """Inputs and weights of one call. Inputs of one shape are one tensor: what a pass's operator reads has just been
    written, and is in the caches."""

    def __init__(
        self, dtype: torch.dtype, inputs: dict[tuple[int, ...], Tensor], modules: Modules, place: int
    ) -> None:
        self.dtype, self.inputs, self.modules, self.place = dtype, inputs, modules, place

    def x(self, *shape: int) -> Tensor:
        """An input."""
        if shape not in self.inputs:
            self.inputs[shape] = torch.randn(shape).to(self.dtype)
        return self.inputs[shape]

    def module(self, make: Callable[..., nn.Module], *sizes: int) -> nn.Module:
        """A module with weights of this place."""
        return self.modules.at(make, sizes, self.dtype, self.place)


def _plain_linear(inputs: int, outputs: int) -> nn.Linear:
    return nn.Linear(inputs, outputs, bias=False)


def _linear(shape: tuple[int, ...], parts: _Parts, make: Callable[..., nn.Module]) -> Call:
    tokens, inputs, outputs = shape
    module, x = parts.module(make, inputs, outputs), parts.x(1, tokens, inputs)
    return lambda: module(x)


def _norm(shape: tuple[int, ...], parts: _Parts, make: Callable[..., nn.Module]) -> Call:
    module, x = parts.module(make, shape[-1]), parts.x(1, *shape)
    return lambda: module(x)


def _swiglu(shape: tuple[int, ...], parts: _Parts) -> Call:
    gate, up = parts.x(1, *shape), parts.x(2, *shape)[1:]
    return lambda: F.silu(gate) * up


def _gelu(shape: tuple[int, ...], parts: _Parts) -> Call:
    x = parts.x(1, *shape)
    return lambda: F.gelu(x, approximate="tanh")


def _add(shape: tuple[int, ...], parts: _Parts) -> Call:
    x, y = parts.x(1, *shape), parts.x(2, *shape)[1:]
    return lambda: x + y


def _embedding(shape: tuple[int, ...], parts: _Parts) -> Call:
    sequences, tokens, rows, width = shape
    module, ids = parts.module(nn.Embedding, rows, width), torch.randint(rows, (sequences, tokens))
    return lambda: module(ids)


def _positions(shape: tuple[int, ...], parts: _Parts) -> Call:
    """Of every sequence's own places, unlike in training."""
    sequences, tokens, rows, width = shape
    module, x = parts.module(nn.Embedding, rows, width), parts.x(sequences, tokens, width)
    places = torch.arange(tokens).expand(sequences, -1)
    return lambda: x + module(places)


_BUILDERS: dict[Timed, Callable[[tuple[int, ...], _Parts], Call]] = {
    Timed.LINEAR: lambda shape, parts: _linear(shape, parts, _plain_linear),
    Timed.LINEAR_BIAS: lambda shape, parts: _linear(shape, parts, nn.Linear),
    Timed.RMS_NORM: lambda shape, parts: _norm(shape, parts, nn.RMSNorm),
    Timed.LAYER_NORM: lambda shape, parts: _norm(shape, parts, nn.LayerNorm),
    Timed.SWIGLU: _swiglu,
    Timed.GELU: _gelu,
    Timed.ADD: _add,
    Timed.EMBEDDING: _embedding,
    Timed.POSITIONS: _positions,
}


class Answering:
    """A cache that is filled with a prompt at once, or with one token after another, and the attention of its layers
    over what is there. What queries, keys and values are does not matter; their shapes are the case's."""

    def __init__(self, case: Mapping[str, Any], queries: int) -> None:
        small = case_from({**case, "model": {**case["model"], "layers": LAYERS}})
        self.case, self.queries = small, queries
        dtype = DTYPES[compute_dtype(small)]
        self.model = Decoder(small.model, small.workload.attention)
        self.model.reset_parameters()
        self.model.to(dtype).eval()
        self.sequences = CacheShape.of(small).sequences
        self.dtype = dtype
        self.given = self._inputs_of_core(queries)
        self.cache: Cache | None = None
        self.length = 0

    def readings(self) -> dict[str, float]:
        """Seconds of a layer's core, and of what the pass does once."""
        prompt = self.case.workload.seq_len
        last = context_tokens(self.case) - 1
        if self.queries > 1:
            self.cache, self.length = build_cache(self.case, CPU), 0
        elif self.cache is None or self.length >= last:
            self.cache, self.length = build_cache(self.case, CPU), 0
            self._fill(prompt)
            self._attend(self.queries)  # a token's step follows others like it
        return self._attend(self.queries)

    def _fill(self, tokens: int) -> None:
        """Keep a prompt without reading it."""
        assert self.cache is not None
        self.cache.advance(torch.arange(tokens).expand(self.sequences, -1))
        for layer in self.cache.layers:
            layer.extend(*self._lanes(tokens))
        self.length = tokens

    def _attend(self, tokens: int) -> dict[str, float]:
        cache = self.cache
        assert cache is not None
        places = torch.arange(self.length, self.length + tokens).expand(self.sequences, -1)
        self.length += tokens
        with through(self.model, cache):
            cores = [block.attention.core for block in self.model.blocks.values()]  # type: ignore[union-attr]
            start = time.perf_counter()
            cache.advance(places)
            rope = None if self.model.rope is None else self.model.rope(tokens, self.dtype, places.clamp(min=0))
            once = time.perf_counter() - start
            given = tuple(rope if isinstance(each, tuple) else each for each in self.given)
            start = time.perf_counter()
            for core in cores:
                core(*given)
            seconds = time.perf_counter() - start
        return {"layer": seconds / len(cores), "once": once}

    def _inputs_of_core(self, tokens: int) -> tuple[Any, ...]:
        """What a block's attention hands to its core."""
        found: list[tuple[Any, ...]] = []
        block = next(iter(self.model.blocks.values()))
        core = block.attention.core  # type: ignore[union-attr]
        hook = core.register_forward_pre_hook(lambda _, args: found.append(args))  # type: ignore[union-attr]
        x = torch.randn(self.sequences, tokens, self.case.model.hidden).to(self.dtype)
        places = torch.arange(tokens).expand(self.sequences, -1)
        rope = None if self.model.rope is None else self.model.rope(tokens, self.dtype, places)
        block.attention(x, rope)  # type: ignore[operator]
        hook.remove()  # type: ignore[union-attr]
        return found[0]

    def _lanes(self, tokens: int) -> tuple[Tensor, ...]:
        """What so many tokens leave in a layer."""
        lanes = CacheShape.of(self.case).lanes
        return tuple(torch.randn(self.sequences, tokens, lane.heads, lane.width).to(self.dtype) for lane in lanes)


class _Same(nn.Module):
    """Returns what it is given."""

    def forward(self, x: Tensor) -> Tensor:
        """x."""
        return x


def time_call() -> float:
    """Seconds of a module's call that does nothing."""
    same, x = _Same(), torch.zeros(1)
    start = time.perf_counter()
    for _ in range(CALLS):
        same(x)
    return (time.perf_counter() - start) / CALLS
