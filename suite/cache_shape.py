"""How large one rank's part of a cache is: layers, what each keeps of a token, sequences, room. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from suite.cache import CacheDtype, CacheKind
from suite.formats import COMPUTE
from suite.operators import DType
from suite.parse import require
from suite.serving_lengths import prompt_lengths
from suite.serving_rules import context_tokens, kept_tokens
from suite.spec import Precision

if TYPE_CHECKING:
    from suite.case import Case

#: what stored elements are where they are not codes
STORED = {
    CacheDtype.FP32: DType.FP32, CacheDtype.BF16: DType.BF16, CacheDtype.FP16: DType.FP16, CacheDtype.FP8: DType.FP8,
}  # fmt: skip


@dataclass(frozen=True)
class Lane:
    """What a token leaves in a layer, of one sort: `heads` vectors of `width` elements."""

    heads: int
    width: int

    @property
    def elements(self) -> int:
        """Elements a token."""
        return self.heads * self.width


@dataclass(frozen=True)
class CacheShape:
    """A rank's part of a case's cache. Tensor parallelism divides key-value heads; where it has more ranks than heads,
    each rank keeps a whole one, and a latent is on all of them (vLLM keeps both so)."""

    layers: int
    keys: Lane  # or the latent
    values: Lane  # or the rotated key that heads share
    sequences: int
    room: int  # entries a sequence: no more than its window and sinks
    held: int  # entries of the longest sequence when the last token is made, which is itself not kept
    lengths: tuple[int, ...]  # tokens of every sequence at that time
    compute: DType  # what attention computes in

    @classmethod
    def of(cls, case: Case, layers: int | None = None) -> CacheShape:
        """Of a served case, on a rank with so many of its layers (None: all). SpecError for a case that is trained."""
        require(case.serves, "serving.new_tokens: missing; give the tokens that are made of each prompt")
        spec, context = case.model, context_tokens(case)
        most = kept_tokens(case) or max(context, case.cache.cache_tokens or 0)
        heads = max(1, spec.kv_heads // case.layout.tp)
        keys = values = Lane(heads, spec.head_dim)
        if spec.latent is not None:
            keys, values = Lane(1, spec.latent.kv_rank), Lane(1, spec.latent.rope_dim)
        return cls(
            layers=spec.layers if layers is None else layers,
            keys=keys,
            values=values,
            sequences=case.workload.micro_batch * case.serving.copies,
            room=min(case.cache.cache_tokens or context, most),
            held=min(context - 1, most),
            lengths=tuple(
                context - 1 - padding
                for padding in (case.workload.seq_len - length for length in prompt_lengths(case))
                for _ in range(case.serving.copies)
            ),
            compute=compute_dtype(case),
        )

    @property
    def lanes(self) -> tuple[Lane, Lane]:
        """Both sorts."""
        return self.keys, self.values


def compute_dtype(case: Case) -> DType:
    """What a served model's weights are loaded and computed in: fp32, or 16 bits whatever it was trained in."""
    return COMPUTE[case.workload.precision] if case.workload.precision is not Precision.FP16_MIXED else DType.FP16


def stored_dtype(case: Case) -> DType | None:
    """What a cache's elements are; None where they are codes with scales."""
    kind = case.cache.cache_dtype
    return compute_dtype(case) if kind is CacheDtype.AUTO else STORED.get(kind)


def cache_kind(case: Case) -> CacheKind:
    """What of the past the case's cache keeps: a model with a window needs no more than that."""
    is_windowed = case.cache.kind is CacheKind.FULL and case.model.window is not None and not case.cache.page_tokens
    return CacheKind.WINDOW if is_windowed else case.cache.kind
