"""The key-value cache of a served model: what is kept, how it is stored, and for how many tokens. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from suite.parse import require, setting


class CacheDtype(StrEnum):
    """Number formats of what is stored."""

    AUTO = "auto"  # what the model computes in
    FP32 = "fp32"
    BF16 = "bf16"
    FP16 = "fp16"
    FP8 = "fp8"  # e4m3, unscaled
    INT8 = "int8"  # codes with a scale and an offset a group
    INT4 = "int4"  # the same, two codes a byte

    @property
    def bits(self) -> int | None:
        """Bits of a stored element without its share of a scale; None for AUTO, which the model decides."""
        return _BITS[self]

    @property
    def is_quantized(self) -> bool:
        """Codes that scales turn back into numbers?"""
        return self in (CacheDtype.INT8, CacheDtype.INT4)


_BITS = {
    CacheDtype.AUTO: None, CacheDtype.FP32: 32, CacheDtype.BF16: 16, CacheDtype.FP16: 16, CacheDtype.FP8: 8,
    CacheDtype.INT8: 8, CacheDtype.INT4: 4,
}  # fmt: skip


class Allocation(StrEnum):
    """When room is taken."""

    STATIC = "static"  # for the whole capacity, before the first token
    GROWING = "growing"  # as tokens come: the old array is copied into a larger one


class LatentForm(StrEnum):
    """How attention reads multi-head latent attention's cache (arXiv:2405.04434, section 2.1.2)."""

    ABSORBED = "absorbed"  # queries are taken into the latent space; the cache is read as it is
    PLAIN = "plain"  # keys and values of all heads are made of the latents, for every token in every step


class CacheKind(StrEnum):
    """What of the past is kept."""

    FULL = "full"  # every token
    WINDOW = "window"  # the newest tokens, in a rolling buffer (arXiv:2310.06825, section 2)
    SINKS = "sinks"  # the first tokens beside the newest (arXiv:2309.17453, section 3.2)
    BLOCKS = "blocks"  # both, and blocks between them fetched back from the host (arXiv:2402.04617)


@dataclass(frozen=True)
class CacheSpec:
    """A cache, as a Case's `cache` part has it. Which of its settings fit which model: suite/serving_rules.py."""

    cache_dtype: CacheDtype = setting(
        CacheDtype.AUTO, "what is stored: auto (compute type), fp32, bf16, fp16, fp8, int8, int4"
    )
    quant_group: int = setting(0, "with int8 or int4: elements of a head that share a scale (0: the whole head)")
    window: int | None = setting(
        None, "newest tokens that are kept, the query's own included (none: the model's window)"
    )
    sinks: int | None = setting(None, "with window: first tokens that are kept beside it")
    memory_block: int | None = setting(None, "with window and sinks: tokens of a block that the host keeps")
    representatives: int = setting(4, "with memory_block: tokens that stand for a block")
    fetched_blocks: int = setting(16, "with memory_block: blocks that a step fetches back")
    page_tokens: int | None = setting(None, "tokens of a page, in a paged cache (none: one array a layer)")
    allocation: Allocation = setting(Allocation.STATIC, "when room is taken: static, growing")
    cache_tokens: int | None = setting(None, "tokens of a sequence that there is room for (none: prompt and answer)")
    latent_form: LatentForm = setting(LatentForm.ABSORBED, "how attention reads a latent cache: absorbed, plain")

    def __post_init__(self) -> None:
        for name in ("window", "sinks", "memory_block", "page_tokens", "cache_tokens"):
            size = getattr(self, name)
            require(size is None or size >= 1, f"cache.{name}: must be at least 1 where it is given, got {size}")
        for name in ("representatives", "fetched_blocks"):
            require(getattr(self, name) >= 1, f"cache.{name}: must be at least 1, got {getattr(self, name)}")
        require(self.quant_group >= 0, f"cache.quant_group: must be at least 0, got {self.quant_group}")
        require(
            not self.quant_group or self.cache_dtype.is_quantized,
            f"cache.quant_group: {self.quant_group} with cache_dtype({self.cache_dtype}), which has no scales;"
            " take int8 or int4",
        )
        require(self.sinks is None or self.window is not None, f"cache.sinks: {self.sinks} without window; give one")
        require(
            self.memory_block is None or self.sinks is not None,
            f"cache.memory_block: {self.memory_block} without window and sinks; give both",
        )
        require(
            self.memory_block is None or self.representatives <= self.memory_block,
            f"cache.representatives: {self.representatives} of memory_block({self.memory_block}) tokens",
        )

    @property
    def kind(self) -> CacheKind:
        """What of the past is kept (a model's own window is not known here)."""
        if self.memory_block is not None:
            return CacheKind.BLOCKS
        if self.sinks is not None:
            return CacheKind.SINKS
        return CacheKind.FULL if self.window is None else CacheKind.WINDOW

    def __str__(self) -> str:
        """A short name for tables: `window4096+int8`."""
        parts = [f"{self.kind}{self.window or ''}"] if self.kind is not CacheKind.FULL else []
        parts += [f"{self.sinks}"] if self.sinks else []
        parts += [f"{self.fetched_blocks}x{self.memory_block}"] if self.memory_block else []
        parts += [self.cache_dtype.value] if self.cache_dtype is not CacheDtype.AUTO else []
        parts += [f"group{self.quant_group}"] if self.quant_group else []
        parts += [f"page{self.page_tokens}"] if self.page_tokens else []
        parts += [f"room{self.cache_tokens}"] if self.cache_tokens else []
        parts += [self.allocation.value] if self.allocation is not Allocation.STATIC else []
        parts += [self.latent_form.value] if self.latent_form is not LatentForm.ABSORBED else []
        return "+".join(parts) or "full"
