"""Chains of one operator as the models run it: the same modules and functions, several in a row. Needs torch."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from suite.hardware.operator_times import Format, Timed, work_of
from suite.models.blocks import CORES, rotate
from suite.models.experts_module import MixtureMLP
from suite.models.experts_sizes import experts_of
from suite.models.loss import plain_cross_entropy
from suite.models.padded_attention import PaddedFlashCore, padding_bias
from suite.models.recurrent import Cell
from suite.models.recurrent_module import Recurrence
from suite.spec import AttentionKernel

#: operators in a chain, each with inputs and weights of its own; fewer where their tensors are large
LENGTH, SHORT = 8, 2
LARGE_ELEMENTS = 2**21

Call = Callable[[], Tensor]


@dataclass
class Chain:
    """Calls of one operator, the tensors whose gradients are inputs', and those that are weights'."""

    format: Format
    calls: list[Call] = field(default_factory=list)
    inputs: list[Tensor] = field(default_factory=list)
    weights: list[nn.Parameter] = field(default_factory=list)
    gradients: list[Tensor] = field(default_factory=list)
    renew: Callable[[Tensor], object] = lambda each: each.add_(0)
    """Writes an input before a call, in place"""

    def __len__(self) -> int:
        return len(self.calls)

    def add(self, module: nn.Module | Callable[..., Tensor], *inputs: Tensor) -> None:
        """One more call, `module(*inputs)`."""
        self.calls.append(lambda: module(*inputs))
        self.inputs += [each for each in inputs if each.requires_grad]
        self.weights += list(module.parameters()) if isinstance(module, nn.Module) else []

    def forward(self) -> list[Tensor]:
        """Every call, under autocast where the format has it."""
        compute = _COMPUTE[self.format]
        with torch.autocast("cpu", compute, enabled=self.format in _AUTOCAST):
            return [call() for call in self.calls]

    def timed(self, place: int) -> tuple[float, Tensor]:
        """Seconds of one call, and what it gives."""
        compute = _COMPUTE[self.format]
        with torch.autocast("cpu", compute, enabled=self.format in _AUTOCAST):
            start = time.perf_counter()
            output = self.calls[place]()
            return time.perf_counter() - start, output

    def prepare(self) -> None:
        """Gradients of the outputs, made once."""
        self.gradients = [torch.ones_like(output) for output in self.forward()]

    def freeze(self, frozen: bool) -> None:
        """Let the weights want no gradients, or want them again."""
        for weight in self.weights:
            weight.requires_grad_(not frozen)

    @torch.no_grad()
    def touch_inputs(self, place: int) -> None:
        """Bring a call's inputs into the caches, where a step's are that the operator before has just written."""
        each_has = len(self.inputs) // len(self)
        for each in self.inputs[place * each_has : (place + 1) * each_has]:
            self.renew(each)

    def touch_gradients(self) -> None:
        """The same for the outputs' gradients."""
        for each in self.gradients:
            each.add_(0)

    def backward(self, outputs: list[Tensor]) -> None:
        """Gradients of the inputs and of the weights that want them: no leaf's `.grad` is touched."""
        wanted = [*self.inputs, *(each for each in self.weights if each.requires_grad)]
        torch.autograd.grad(outputs, wanted, self.gradients * (len(outputs) // len(self.gradients)))


_AUTOCAST = (Format.BF16_AUTOCAST, Format.FP16_AUTOCAST)
_COMPUTE = {
    Format.FP32: torch.float32,
    Format.BF16: torch.bfloat16,
    Format.FP16: torch.float16,
    Format.BF16_AUTOCAST: torch.bfloat16,
    Format.FP16_AUTOCAST: torch.float16,
}


def chain_of(operator: Timed, shape: tuple[int, ...], format: Format) -> Chain:
    """Calls of the operator with data of their own each."""
    chain = Chain(format)
    size = work_of(operator, shape) if operator is Timed.MIXTURE else math.prod(shape)
    for _ in range(LENGTH if size <= LARGE_ELEMENTS else SHORT):
        _BUILDERS[operator](chain, shape, _Types(format))
    chain.prepare()
    return chain


@dataclass(frozen=True)
class _Types:
    """Tensors in the format's types."""

    format: Format

    @property
    def stream(self) -> torch.dtype:
        """The residual stream's, and the weights'."""
        return torch.float32 if self.format in _AUTOCAST else _COMPUTE[self.format]

    def wide(self, *shape: int) -> Tensor:
        """An input of the stream's type."""
        return torch.randn(shape).to(self.stream).requires_grad_()

    def narrow(self, *shape: int) -> Tensor:
        """An input of the type that products give."""
        return torch.randn(shape).to(_COMPUTE[self.format]).requires_grad_()

    def module(self, module: nn.Module) -> nn.Module:
        """A module whose weights are in the stream's type."""
        return module.to(self.stream)


def _linear(chain: Chain, shape: tuple[int, ...], types: _Types, bias: bool = False) -> None:
    tokens, inputs, outputs = shape
    chain.add(types.module(nn.Linear(inputs, outputs, bias=bias)), types.narrow(1, tokens, inputs))


def _norm(chain: Chain, shape: tuple[int, ...], types: _Types, kind: Callable[[int], nn.Module]) -> None:
    tokens, width = shape
    chain.add(types.module(kind(width)), types.wide(1, tokens, width))


def _rotary(chain: Chain, shape: tuple[int, ...], types: _Types) -> None:
    sequences, tokens, heads, rotated, width = shape
    angles = torch.rand(tokens, 1, rotated // 2).to(_COMPUTE[types.format])
    x = types.narrow(sequences, tokens, heads, width)
    chain.add(lambda x: rotate(x, angles, angles), x)


def _attention(chain: Chain, shape: tuple[int, ...], types: _Types, kernel: AttentionKernel) -> None:
    sequences, tokens, heads, kv_heads, width = shape
    core = CORES[kernel]()
    q, k, v = (types.narrow(sequences, tokens, count * width) for count in (heads, kv_heads, kv_heads))
    split = (sequences, tokens, -1, width)
    chain.add(lambda q, k, v: core(q.view(split), k.view(split), v.view(split), None).flatten(2), q, k, v)


def _recurrence(chain: Chain, shape: tuple[int, ...], types: _Types) -> None:
    gates, sequences, tokens, width = shape
    layer = Recurrence(next(cell for cell in Cell if cell.gates == gates), width)
    for weight in layer.parameters():
        nn.init.uniform_(weight, -1 / math.sqrt(width), 1 / math.sqrt(width))
    chain.add(types.module(layer), types.narrow(sequences, tokens, width))


def _mixture(chain: Chain, shape: tuple[int, ...], types: _Types) -> None:
    """Random tokens, so that experts have nearly equal loads; drawn anew for every call, because a CPU's products are
    prepared anew for each number of rows that an expert has not had before, and a step's routing is never the last's.
    """
    sequences, tokens, hidden = shape[:3]
    mixture = MixtureMLP(experts_of(shape), hidden)
    for weight in mixture.parameters():
        nn.init.normal_(weight, std=1 / math.sqrt(hidden))
    chain.add(types.module(mixture), types.wide(sequences, tokens, hidden))
    chain.renew = lambda each: each.normal_()


def _padded_attention(chain: Chain, shape: tuple[int, ...], types: _Types) -> None:
    sequences, tokens, _, _, width = shape
    core, split = PaddedFlashCore(), (sequences, tokens, -1, width)
    q, k, v = (types.narrow(sequences, tokens, heads * width) for heads in (shape[2], shape[3], shape[3]))
    bias = padding_bias(torch.full((sequences,), tokens), tokens, q.dtype)
    chain.add(lambda q, k, v: core(q.view(split), k.view(split), v.view(split), bias).flatten(2), q, k, v)


def _gelu(chain: Chain, shape: tuple[int, ...], types: _Types) -> None:
    chain.add(lambda x: F.gelu(x, approximate="tanh"), types.narrow(1, *shape))


def _swiglu(chain: Chain, shape: tuple[int, ...], types: _Types) -> None:
    chain.add(lambda gate, up: F.silu(gate) * up, types.narrow(1, *shape), types.narrow(1, *shape))


def _add(chain: Chain, shape: tuple[int, ...], types: _Types) -> None:
    chain.add(lambda x, y: x + y, types.wide(1, *shape), types.narrow(1, *shape))


def _cast(chain: Chain, shape: tuple[int, ...], types: _Types) -> None:
    kind = _COMPUTE[types.format]
    chain.add(lambda x: x.to(kind), torch.randn(1, *shape).requires_grad_())


def _embedding(chain: Chain, shape: tuple[int, ...], types: _Types) -> None:
    sequences, tokens, rows, width = shape
    ids = torch.randint(rows, (sequences, tokens))
    chain.add(types.module(nn.Embedding(rows, width)), ids)


class _Positions(nn.Module):
    """A table's rows added to the stream, as Decoder._embed does."""

    def __init__(self, rows: int, width: int) -> None:
        super().__init__()
        self.positions = nn.Embedding(rows, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.positions(torch.arange(x.shape[1], device=x.device))


def _positions(chain: Chain, shape: tuple[int, ...], types: _Types) -> None:
    sequences, tokens, rows, width = shape
    chain.add(types.module(_Positions(rows, width)), types.wide(sequences, tokens, width))


def _cross_entropy(chain: Chain, shape: tuple[int, ...], types: _Types) -> None:
    tokens, vocab = shape
    labels = torch.randint(vocab, (1, tokens))
    chain.add(lambda logits: plain_cross_entropy(lambda x: x, logits, labels), types.narrow(1, tokens, vocab))


_BUILDERS: dict[Timed, Callable[[Chain, tuple[int, ...], _Types], None]] = {
    Timed.LINEAR: _linear,
    Timed.LINEAR_BIAS: lambda chain, shape, types: _linear(chain, shape, types, bias=True),
    Timed.RMS_NORM: lambda chain, shape, types: _norm(chain, shape, types, nn.RMSNorm),
    Timed.LAYER_NORM: lambda chain, shape, types: _norm(chain, shape, types, nn.LayerNorm),
    Timed.ROTARY: _rotary,
    Timed.FLASH: lambda chain, shape, types: _attention(chain, shape, types, AttentionKernel.FLASH),
    Timed.PADDED_FLASH: _padded_attention,
    Timed.EAGER: lambda chain, shape, types: _attention(chain, shape, types, AttentionKernel.EAGER),
    Timed.RECURRENCE: _recurrence,
    Timed.MIXTURE: _mixture,
    Timed.GELU: _gelu,
    Timed.SWIGLU: _swiglu,
    Timed.ADD: _add,
    Timed.CAST: _cast,
    Timed.MEET: lambda chain, shape, types: chain.add(lambda x: x.view_as(x), types.wide(1, *shape)),
    Timed.EMBEDDING: _embedding,
    Timed.POSITIONS: _positions,
    Timed.CROSS_ENTROPY: _cross_entropy,
}
