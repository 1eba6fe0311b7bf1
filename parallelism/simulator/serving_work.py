"""What a served case computes and reads: FLOPs, bytes of weights and of cache, of a decode step and of the prompts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction

from parallelism.schedules.ledgers import stages_of_place
from parallelism.simulator.work import GROUPED
from suite.cache import CacheKind, LatentForm
from suite.cache_shape import CacheShape, cache_kind, compute_dtype
from suite.case import Case
from suite.models.ledgers import ledger_of
from suite.models.served import weight_bytes
from suite.operators import Ledger, Operator, OperatorKind
from suite.parse import require
from suite.record import CacheTerm, Component, Quantity
from suite.share import share_of
from suite.spec import Workload
from suite.tape import Backend, Numerics


@dataclass(frozen=True, slots=True)
class Work:
    """What some kernels do: FLOPs (a multiply-add is two), bytes of weights, bytes of the cache."""

    flops: float = 0.0
    weight_bytes: float = 0.0
    cache_bytes: float = 0.0

    @property
    def nbytes(self) -> float:
        """All that is read."""
        return self.weight_bytes + self.cache_bytes

    def times(self, count: float) -> Work:
        """So many of it."""
        return Work(self.flops * count, self.weight_bytes * count, self.cache_bytes * count)

    def __add__(self, other: Work) -> Work:
        return Work(
            self.flops + other.flops, self.weight_bytes + other.weight_bytes, self.cache_bytes + other.cache_bytes
        )


#: works of single kernels, and how often each is done
Parts = dict[Work, int]


def arithmetic_intensity(work: Work) -> float:
    """FLOPs for each byte that is read: below a device's own ratio of the two rates, reading is what takes time."""
    return work.flops / work.nbytes


def decode_work(case: Case, cache: tuple[CacheTerm, ...]) -> Work:
    """One more token of every sequence, on one rank's share of every block (of a pipeline: all its stages, which a
    token passes one after the other).

    Counted: every matrix and norm once, of experts those that tokens may be expected to reach, of an embedding its
    tokens' rows, what a step reads of the cache (CACHE_READ of `cache`, of one rank), the products' FLOPs and
    attention's. Not counted: activations, norms' and rope's arithmetic, a cache's write of the new token, turning codes
    back into numbers. SpecError for a case that is trained.
    """
    return _total(decode_parts(case, cache))


def prefill_work(case: Case) -> Work:
    """Reading all prompts, `serving.prefill_tokens` at a time: as decode_work, over causal attention, the head for the
    last token of a pass alone. Weights are read once a pass; of the cache what earlier passes wrote. Sequences are of
    seq_len, padding included. SpecError for a case that is trained."""
    return _total(prefill_parts(case))


def decode_parts(case: Case, cache: tuple[CacheTerm, ...]) -> Parts:
    """The kernels of decode_work."""
    shape = CacheShape.of(case)
    read = _read_bytes(case, cache)
    entries = _entries_read(case, cache)
    parts = _products(case, shape.sequences, 1, 1)
    expanded = entries - shape.sequences  # a plain latent cache's, but for the new ones that the ledger has
    flops = entries * pair_flops(case) + expanded * _expansion_flops(case)
    return _with(parts, Work(float(flops), 0.0, read / shape.layers), shape.layers)


def prefill_parts(case: Case) -> Parts:
    """The kernels of prefill_work."""
    shape, prompt = CacheShape.of(case), case.workload.seq_len
    chunk = min(case.serving.prefill_tokens or prompt, prompt)
    passes, rest = divmod(prompt, chunk)
    parts: Parts = Counter()
    for tokens, count in ((chunk, passes), (rest, 1 if rest else 0)):
        if count:
            parts = _merged(parts, _products(case, shape.sequences, tokens, count))
    earlier = sum(seen(case, start) for start in range(chunk, prompt, chunk))  # entries that later passes find
    flops = shape.sequences * (_pairs(case, prompt) * pair_flops(case) + earlier * _expansion_flops(case))
    read = earlier * shape.sequences * sum(lane.elements for lane in shape.lanes) * _bits(case) / 8
    return _with(parts, Work(float(flops), 0.0, float(read)), shape.layers)


def middle_of(case: Case) -> Case:
    """The case when half of its answers are made: the decode step that its median one is like."""
    made = case.serving.new_tokens or 1
    return replace(case, serving=replace(case.serving, new_tokens=made // 2 + 1))


def seen(case: Case, tokens: int) -> int:
    """Entries that a query may read where so many tokens are there, its own included."""
    kind, cache = cache_kind(case), case.cache
    if kind is CacheKind.FULL:
        return tokens
    kept = (cache.window or case.model.window or tokens) + (cache.sinks or 0)
    if kind is CacheKind.BLOCKS:
        kept += cache.fetched_blocks * (cache.memory_block or 0)
    return min(tokens, kept)


def pair_flops(case: Case) -> int:
    """FLOPs of one query of every head on a rank with one entry: 2 d for its score and 2 d for its part of the sum.
    Of an absorbed latent the score is over kv_rank + rope_dim and the sum over kv_rank (arXiv:2405.04434, 2.1.2)."""
    spec, latent = case.model, case.model.latent
    heads = share_of(case.layout, 0).rows(spec.heads)
    if latent is None:
        return 4 * heads * spec.head_dim
    if case.cache.latent_form is LatentForm.ABSORBED:
        return 2 * heads * (2 * latent.kv_rank + latent.rope_dim)
    return 2 * heads * (latent.nope_dim + latent.rope_dim + latent.v_dim)


def served_ledger(case: Case, sequences: int, tokens: int, backend: Backend = Backend.CUDA) -> Ledger:
    """The operators of one pass over so many tokens of so many sequences, on one rank's share of the whole model."""
    compute = compute_dtype(case)
    workload = Workload(seq_len=tokens, micro_batch=sequences, attention=case.workload.attention)
    numerics = Numerics(compute, compute, compute, autocast=False)
    return ledger_of(
        case.model, workload, case.layout.recompute, numerics, backend, share=share_of(case.layout, 0)
    )  # fmt: skip


def _products(case: Case, sequences: int, tokens: int, count: int) -> Parts:
    """Every operator with weights, for `count` passes over so many tokens of each sequence."""
    ledger = served_ledger(case, sequences, tokens)
    compute = compute_dtype(case).nbytes
    width, used = weight_bytes(case.model, compute) / compute, _used_experts(case, sequences * tokens)
    parts: Parts = Counter()
    for segment, often in ledger.counts.items():
        rows = 1 / tokens if segment.name in ledger.loss else 1.0  # the last token's logits alone
        for work in _works(segment.operators(), rows, width, used):
            parts[work] += often * count
    return parts


def _works(operators: Iterator[Operator], rows: float, width: float, used: float) -> Iterator[Work]:
    """Each product's work: of experts' weights the share `used` is read; all are `width` of the compute type's."""
    for operator in operators:
        if operator.kind is OperatorKind.EMBEDDING:
            yield Work(0.0, float(sum(array.nbytes for kernel in operator.kernels for array in kernel.writes)))
        elif operator.weights:
            flops = operator.flops.forward * rows if operator.kind is OperatorKind.MATMUL else 0.0
            read = used if any(kernel.name == GROUPED for kernel in operator.kernels) else 1.0
            yield Work(float(flops), sum(weight.nbytes for weight in operator.weights) * width * read)


def _used_experts(case: Case, tokens: int) -> float:
    """The share of a mixture's experts that some of so many tokens may be expected to reach where each goes to any
    top_k alike: 1 - (1 - top_k / E)^tokens."""
    experts = case.model.experts
    return 1.0 if experts is None else 1.0 - (1.0 - experts.top_k / experts.count) ** tokens


def _read_bytes(case: Case, cache: tuple[CacheTerm, ...]) -> float:
    """Of all layers, from one rank's terms."""
    return sum(term.nbytes for term in cache if _is_read(term, cache)) * float(_layers_over(case, cache))


def _entries_read(case: Case, cache: tuple[CacheTerm, ...]) -> Fraction:
    """Entries that queries read in one layer, of all sequences together: bytes of keys over an entry's."""
    shape = CacheShape.of(case)
    keys = sum(term.nbytes for term in cache if _is_read(term, cache) and term.component is Component.KEYS)
    require(keys > 0, "cache: has no term of keys that a step reads; take memory.caches.model.cache_terms(case)")
    return keys * _layers_over(case, cache) / (shape.layers * shape.keys.elements * Fraction(_bits(case), 8))


def _is_read(term: CacheTerm, cache: tuple[CacheTerm, ...]) -> bool:
    return term.quantity is Quantity.CACHE_READ and term.rank == cache[0].rank


def _layers_over(case: Case, cache: tuple[CacheTerm, ...]) -> Fraction:
    """How many times the layers of the rank that the terms are of the model has."""
    if case.layout.pp == 1:
        return Fraction(1)
    stages = stages_of_place(case, case.layout.place("pp", cache[0].rank))
    return Fraction(case.model.layers, sum(len(stage.blocks) for stage in stages))


def _bits(case: Case) -> int:
    """Of an element of the cache, its share of a scale not counted."""
    return case.cache.cache_dtype.bits or 8 * compute_dtype(case).nbytes


def _expansion_flops(case: Case) -> int:
    """FLOPs of making all heads' keys and values of one latent, where the cache's form asks for it."""
    latent = case.model.latent
    if latent is None or case.cache.latent_form is not LatentForm.PLAIN:
        return 0
    heads = share_of(case.layout, 0).rows(case.model.heads)
    return 2 * latent.kv_rank * heads * (latent.nope_dim + latent.v_dim)


def _pairs(case: Case, prompt: int) -> int:
    """Queries with the entries that they may read, of a sequence from its first token on."""
    most = seen(case, prompt)
    return most * (most + 1) // 2 + (prompt - most) * most


def _with(parts: Parts, work: Work, count: int) -> Parts:
    return _merged(parts, Counter({work: count}))


def _merged(parts: Parts, others: Parts) -> Parts:
    return dict(Counter(parts) + Counter(others))


def _total(parts: Parts) -> Work:
    return sum((work.times(count) for work, count in parts.items()), Work())
