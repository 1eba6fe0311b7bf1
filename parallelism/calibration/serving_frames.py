"""What a served model's passes do around their operators: modules' calls, views, the residual stream. Needs torch."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from suite.caches.core import next_logits
from suite.hardware.serving_times import SERVED_BLOCK, SERVED_PASS
from suite.models.decoder import DecoderSpec
from suite.models.decoder_module import Block, Decoder
from suite.spec import AttentionKernel

#: calls that are timed together
CALLS = 20
SPEC = DecoderSpec(layers=1, hidden=16, heads=1, ffn=16, vocab=16, max_positions=16)
#: stand-ins in a block: 2 norms, 7 linears, the core; in what is around blocks: embedding, norm, head
BLOCK_STUBS, PASS_STUBS = 10, 3


class Same(nn.Module):
    """Returns what it is given first."""

    def forward(self, x: Tensor, *others: object) -> Tensor:
        """x."""
        return x


class _Rows(nn.Module):
    """Returns rows for whatever tokens."""

    def forward(self, ids: Tensor) -> Tensor:
        """[1, 1, h]."""
        return _ROWS


_ROWS = torch.zeros(1, 1, SPEC.hidden)


class _Nothing:
    """A cache that keeps nothing."""

    def advance(self, places: Tensor) -> None:
        """Nothing."""


class Frames:
    """Times a block and a model whose operators return what they are given, and what of their work is no frame."""

    def __init__(self) -> None:
        self.works = {"block": _block(), "pass": _pass(), "call": _calls(), "pointwise": _pointwise}

    def readings(self) -> dict[str, float]:
        """Seconds of a call of each."""
        return {name: _mean(work) for name, work in self.works.items()}


def frames_from(readings: dict[str, list[float]]) -> dict[str, float]:
    """Overheads from the works' readings: `suite.hardware.serving_times` says what each is."""
    seconds = {name: statistics.median(values) for name, values in readings.items()}
    block = seconds["block"] - BLOCK_STUBS * seconds["call"] - seconds["pointwise"]
    return {SERVED_BLOCK: max(0.0, block), SERVED_PASS: max(0.0, seconds["pass"] - PASS_STUBS * seconds["call"])}


def _mean(work: Callable[[], object]) -> float:
    work()
    start = time.perf_counter()
    for _ in range(CALLS):
        work()
    return (time.perf_counter() - start) / CALLS


def _block() -> Callable[[], object]:
    block = Block(SPEC, AttentionKernel.FLASH, site=1)
    _stub(block, ("attention_norm", "mlp_norm"))
    _stub(block.attention, ("wq", "wk", "wv", "wo", "core"))
    _stub(block.mlp, ("gate", "up", "down"))
    return lambda: block(_ROWS, None)


def _pass() -> Callable[[], object]:
    model = Decoder(SPEC)
    _stub(model, ("norm", "head"))
    model.embedding, model.rope, model.blocks = _Rows(), None, nn.ModuleDict()  # type: ignore[assignment]
    ids = places = torch.zeros(1, 1, dtype=torch.int64)
    return lambda: next_logits(model, _Nothing(), ids, places)  # type: ignore[arg-type]


def _calls() -> Callable[[], object]:
    same = Same()
    return lambda: same(_ROWS)


def _pointwise() -> None:
    """The block's arithmetic that is counted as operators of their own sizes: both sums, and the MLP's products."""
    _ = F.silu(_ROWS) * _ROWS
    _ = _ROWS + _ROWS
    _ = _ROWS + _ROWS


def _stub(module: nn.Module, names: Iterable[str]) -> None:
    for name in names:
        setattr(module, name, Same())
