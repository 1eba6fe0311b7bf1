"""What a served model's passes are made of, each part timed by itself: operators, attention through a cache. Needs
torch.

Operators come in the order in which a pass has them, so that each finds the caches as others have left them, and each
block has weights of its own: a token's step reads them all once.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from suite.cache_shape import CacheShape, compute_dtype
from suite.caches.base import NOTHING
from suite.caches.build import DTYPES, build_cache
from suite.caches.core import through
from suite.case import case_from
from suite.generation.beam import Beams
from suite.generation.sampling import chooser
from suite.hardware.operator_times import Format, Timed
from suite.models.decoder_module import Decoder
from suite.serving import Sampling
from suite.serving_lengths import prompt_lengths
from suite.serving_rules import context_tokens

#: operator, shape, format
Key = tuple[str, tuple[int, ...], str]
Call = Callable[[], object]

CPU = torch.device("cpu")
COMPUTE = {Format.FP32: torch.float32, Format.BF16: torch.bfloat16, Format.FP16: torch.float16}
#: a pass that is shorter is timed after another
SHORT_S = 0.03


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


@dataclass(frozen=True)
class Reading:
    """Mean seconds of a call of each operator and of a layer's core in one go, and of what the pass does once."""

    operators: dict[Key, float]
    layer: float
    once: float


class Passing:
    """One pass: operators of so many blocks with attention through a cache among them, then those at its ends. A short
    one follows others like it, whose code and weights it finds in the caches: it is timed after one that is not."""

    def __init__(self, row: Mapping[str, Any], modules: Modules) -> None:
        self.kind, self.modules, self.blocks = Format(row["format"]), modules, row["blocks"]
        self.answering = Answering(row["case"], row["queries"], row["entries"], self.blocks)
        self.inputs: dict[tuple[int, ...], Tensor] = {}
        places: dict[str, int] = defaultdict(int)
        self.around = [
            (self._calls(row["before"], places), self._calls(row["after"], places)) for _ in range(self.blocks)
        ]
        self.ends = self._calls(row["ends"], places)
        self.goes = 2

    def readings(self) -> Reading:
        """One go, each call timed by itself."""
        for _ in range(self.goes):
            start = time.perf_counter()
            found = self._go()
            self.goes = 2 if time.perf_counter() - start < SHORT_S else 1
        return found

    def _go(self) -> Reading:
        found: dict[Key, list[float]] = defaultdict(list)
        layers = []
        once, cores = self.answering.begin()
        with self.answering.through():
            for (before, after), core in zip(self.around, cores, strict=True):
                _timed(before, found)
                start = time.perf_counter()
                core()
                layers.append(time.perf_counter() - start)
                _timed(after, found)
            _timed(self.ends, found)
        operators = {key: sum(seconds) / len(seconds) for key, seconds in found.items()}
        return Reading(operators, sum(layers) / len(layers), once)

    def _calls(self, uses: Iterable[tuple[str, list[int]]], places: dict[str, int]) -> list[tuple[Key, Call]]:
        calls = []
        for name, sizes in uses:
            operator, shape = Timed(name), tuple(sizes)
            alike = f"{operator}{shape[-2:]}"
            parts = _Parts(COMPUTE[self.kind], self.inputs, self.modules, places[alike])
            calls.append(((operator.value, shape, self.kind.value), _BUILDERS[operator](shape, parts)))
            places[alike] += 1
        return calls


def _timed(calls: Iterable[tuple[Key, Call]], found: dict[Key, list[float]]) -> None:
    for key, call in calls:
        start = time.perf_counter()
        call()
        found[key].append(time.perf_counter() - start)


class _Parts:
    """Inputs and weights of one call. Inputs of one shape are one tensor: what a pass's operator reads has just been
    written, and is in the caches."""

    def __init__(self, dtype: torch.dtype, inputs: dict[tuple[int, ...], Tensor], modules: Modules, place: int) -> None:
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
    """A cache that a prompt's chunk is read into, or one token after another, and its layers' attention. What queries,
    keys and values are does not matter; their shapes are the case's."""

    def __init__(self, case: Mapping[str, Any], queries: int, entries: int, layers: int) -> None:
        self.case = case_from({**case, "model": {**case["model"], "layers": layers}})
        #: tokens that a pass adds; entries that are there before the first
        self.queries, self.earlier = queries, self.case.workload.seq_len if queries == 1 else entries - queries
        self.sequences, self.dtype = CacheShape.of(self.case).sequences, DTYPES[compute_dtype(self.case)]
        self.model = Decoder(self.case.decoder, self.case.workload.attention)
        self.model.reset_parameters()
        self.model.to(self.dtype).eval()
        self.given = self._inputs_of_core()
        lengths = torch.tensor(prompt_lengths(self.case)).repeat_interleave(self.case.serving.copies)
        self.pads = self.case.workload.seq_len - lengths
        self.logits = torch.randn(self.sequences, self.case.model.vocab)
        if self.case.serving.sampling is not Sampling.BEAM:
            self.choose = chooser(self.case.serving, torch.Generator())
        self.cache = build_cache(self.case, CPU)
        self.length = 0

    def begin(self) -> tuple[float, list[Call]]:
        """Make ready for the pass's tokens: its seconds, and the cores' calls, to be made within `through`."""
        is_full = self.length + self.queries >= context_tokens(self.case)
        if self.length == 0 or self.queries > 1 or is_full:
            self.cache, self.length = build_cache(self.case, CPU), 0
            if self.earlier:
                self._fill(self.earlier)
        start = time.perf_counter()
        rows = self._choose()
        if self.queries == 1 and rows is not None:
            self.cache.reorder(rows)
        places = self._advance(self.queries)
        rope = None if self.model.rope is None else self.model.rope(self.queries, self.dtype, places.clamp(min=0))
        once = time.perf_counter() - start
        given = tuple(rope if isinstance(each, tuple) else each for each in self.given)
        return once, [lambda index=index: self._attention(index).core(*given) for index in self.model.blocks]  # type: ignore[misc]

    def through(self) -> AbstractContextManager[None]:
        """Let attention go through the cache."""
        return through(self.model, self.cache, self.case.cache.latent_form)

    def _fill(self, tokens: int) -> None:
        """Keep a prompt without reading it."""
        self._advance(tokens)
        sizes = [(self.sequences, tokens, lane.heads, lane.width) for lane in CacheShape.of(self.case).lanes]
        for layer in self.cache.layers:
            layer.extend(*(torch.randn(size).to(self.dtype) for size in sizes))

    def _advance(self, tokens: int) -> Tensor:
        """Make the cache ready for so many tokens more: their places."""
        places = torch.arange(self.length, self.length + tokens) - self.pads.unsqueeze(-1)
        places = places.masked_fill(places < 0, NOTHING)
        self.cache.advance(places)
        self.length += tokens
        return places

    def _choose(self) -> Tensor | None:
        """Choose tokens of some logits; of beams, the rows that they go on from."""
        serving = self.case.serving
        if serving.sampling is Sampling.BEAM:
            beams = Beams.begun(self.case.workload.micro_batch, serving.beams, CPU)
            return beams.extended(self.logits)[1]
        self.choose(self.logits)
        return None

    def _inputs_of_core(self) -> tuple[Any, ...]:
        """What a block's attention hands to its core."""
        found: list[tuple[Any, ...]] = []
        attention = self._attention("0")
        hook = attention.core.register_forward_pre_hook(lambda _, args: found.append(args))
        x = torch.randn(self.sequences, self.queries, self.case.model.hidden).to(self.dtype)
        places = torch.arange(self.queries).expand(self.sequences, -1)
        attention(x, None if self.model.rope is None else self.model.rope(self.queries, self.dtype, places))
        hook.remove()
        return found[0]

    def _attention(self, index: str) -> Any:
        """A block's attention, whatever its kind."""
        return self.model.blocks[index].attention
