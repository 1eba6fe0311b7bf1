"""A served case on this machine's CPU: operators, attention through the cache and messages that a calibration has."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

from parallelism.simulator.cpu_operators import Use, uses_of
from parallelism.simulator.serving_messages import serving_messages
from parallelism.simulator.serving_work import middle_of, served_ledger
from suite.cache_shape import CacheShape, compute_dtype
from suite.case import Case
from suite.hardware.calibration import Calibration
from suite.hardware.collective_times import CollectiveTimes, Exchange, Form, distinct, exchange_of
from suite.hardware.operator_times import Crowd, Format, Timed
from suite.hardware.serving_times import SERVED_BLOCK, SERVED_PASS, CachedCore
from suite.models.decoder import Position
from suite.operators import OperatorKind, Segment
from suite.parse import require
from suite.serving_rules import context_tokens
from suite.share import share_of
from suite.tape import Backend

#: operators of a block that a core's time holds, and gradients that meet
_IN_CORES = frozenset({Timed.ROTARY, Timed.FLASH, Timed.EAGER, Timed.MEET})


@dataclass(frozen=True)
class Pass:
    """One forward pass of a served case: operators before and after the blocks, those of a block, its attention."""

    ends: tuple[Use, ...]
    before: tuple[Use, ...]
    """of a block, up to its attention"""
    after: tuple[Use, ...]
    blocks: int
    core: CachedCore
    format: Format


@dataclass(frozen=True)
class ServingWanted:
    """What has to be measured for some served cases, each once."""

    passes: dict[Crowd, tuple[Pass, ...]]
    cases: dict[CachedCore, Case]
    """for each core a case that it is measured with: the rank's heads, one layer"""
    exchanges: tuple[Exchange, ...]


def serving_wanted(cases: Iterable[Case], cores: int) -> ServingWanted:
    """The measurements behind `CpuServing` of these cases at the middle token of their answers, on a machine with so
    many cores. SpecError for what is not timed."""
    passes: dict[Crowd, dict[Pass, None]] = {}
    small: dict[CachedCore, Case] = {}
    exchanges: list[Exchange] = []
    for case in cases:
        reason = serving_untimed(case)
        require(not reason, reason)
        mine = passes.setdefault(Crowd.of(case.cluster.per_node, cores), {})
        for tokens, entries in (*_ends_of_prompt(case), (1, context_tokens(middle_of(case)) - 1)):
            done = pass_of(case, tokens, entries)
            mine[done] = None
            small[done.core] = _small(case, done.core)
            exchanges += [exchange for exchange, _ in _exchanges(case, tokens)]
    return ServingWanted({crowd: tuple(found) for crowd, found in passes.items()}, small, distinct(exchanges))


def serving_untimed(case: Case) -> str:
    """What of a served case has no measurement on the CPU: the field and what would do; empty where all has."""
    if case.model.experts is not None:
        return f"model.experts: what {case.model.name} routes is not timed on the CPU; models without experts are"
    if case.layout.pp > 1:
        return f"layout.pp: {case.layout.pp}: a pipeline that answers is not timed on the CPU; 1 is"
    if case.cluster.nodes > 1:
        return f"cluster.nodes: {case.cluster.nodes}: serving is timed on this machine alone; take 1"
    return ""


@dataclass(frozen=True)
class CpuServing:
    """Seconds of a case's passes. `bases` collects what was not measured at its very shape."""

    case: Case
    calibration: Calibration
    bases: set[str] = field(default_factory=set, compare=False)

    def __post_init__(self) -> None:
        reason = serving_untimed(self.case)
        require(not reason, reason)

    @property
    def prefill_seconds(self) -> float:
        """Reading all prompts, a chunk after the other, its attention over the entries that are there by then."""
        return sum(self._seconds(tokens, entries) for tokens, entries in _chunks(self.case))

    @property
    def decode_seconds(self) -> float:
        """One token more of every sequence, the last one of the answers."""
        return self._seconds(1, context_tokens(self.case) - 1)

    @property
    def basis(self) -> str:
        """Where the times come from, in words; whole once both have been asked for."""
        machine, others = self.calibration.machine, sorted(self.bases)
        said = f"; {len(others)} parts not at their own shape, as {others[0]}" if others else ""
        return (
            f"operators, attention through the cache and collectives measured on this machine ({machine.cpu},"
            f" {machine.cores} cores, torch {machine.torch}) on {self.calibration.created or 'an unknown day'},"
            f" no pass among them{said}"
        )

    def _seconds(self, tokens: int, entries: int) -> float:
        done = pass_of(self.case, tokens, entries)
        crowd = self.calibration.crowd(self.case.cluster.per_node)
        core = self.calibration.core_times.seconds(done.core, crowd)
        uses = Counter((*done.ends, *(done.before + done.after) * done.blocks))
        frames = self.calibration.overhead
        seconds = done.blocks * (core.layer + frames(SERVED_BLOCK)) + core.once + frames(SERVED_PASS)
        for use, count in uses.items():
            found = self.calibration.served_times.seconds(use.operator, use.shape, done.format, crowd)
            self.bases.update([found.basis] if found.basis else [])
            seconds += count * found.forward
        self.bases.update([core.basis] if core.basis else [])
        table = CollectiveTimes(self.calibration.collectives)
        return seconds + sum(count * table.seconds(each).seconds for each, count in _exchanges(self.case, tokens))


def pass_of(case: Case, tokens: int, entries: int) -> Pass:
    """The pass over so many new tokens of every sequence, after which there are so many."""
    ledger = served_ledger(case, CacheShape.of(case).sequences, tokens, Backend.CPU)
    kind, sequences = Format(compute_dtype(case).label), CacheShape.of(case).sequences
    ends: list[Use] = []
    block: tuple[list[Use], list[Use]] = ([], [])
    for segment in ledger.counts:
        if segment.name == "block":
            block = _around_core(case, segment)
            continue
        operators = tuple(segment.operators())
        if segment.name in ledger.loss:  # the head without its loss
            operators = tuple(operator for operator in operators if operator.kind is OperatorKind.MATMUL)
        uses = list(uses_of(case, operators))
        if segment.name in ledger.loss or segment.name == "final norm":  # of the last token alone
            uses = [replace(use, shape=(sequences, *use.shape[1:])) for use in uses]
        ends += uses
    return Pass(tuple(ends), tuple(block[0]), tuple(block[1]), case.model.layers, _core(case, tokens, entries), kind)


def _around_core(case: Case, segment: Segment) -> tuple[list[Use], list[Use]]:
    """A block's operators before its attention, and after it."""
    operators = tuple(segment.operators())
    place = next(index for index, operator in enumerate(operators) if operator.kind is OperatorKind.ATTENTION)
    before, after = (
        [use for use in uses_of(case, part) if use.operator not in _IN_CORES]
        for part in (operators[:place], operators[place:])
    )
    return before, after


def _core(case: Case, tokens: int, entries: int) -> CachedCore:
    spec, share = case.decoder, share_of(case.layout, 0)
    return CachedCore(
        sequences=CacheShape.of(case).sequences,
        queries=tokens,
        entries=entries,
        heads=share.rows(spec.heads),
        kv_heads=max(1, spec.kv_heads // case.layout.tp),
        width=spec.head_dim,
        rotated=spec.rotary_dim if spec.position is Position.ROPE else 0,
        cache=replace(case.cache, cache_tokens=None),
        format=Format(compute_dtype(case).label),
        serving=replace(case.serving, new_tokens=None, prefill_tokens=0),
        vocab=spec.vocab,
        window=spec.window,
        latent=spec.latent,
    )


#: width of the model around a core that is measured, and the least tokens that are made through it
_NARROW, _STEPS = 16, 4


def _small(case: Case, core: CachedCore) -> Case:
    """A case with the core's attention in a narrow model of one layer, on one rank."""
    serving = replace(case.serving, new_tokens=max(_STEPS, case.serving.new_tokens or 0))
    positions = max(case.model.max_positions, case.workload.seq_len + (serving.new_tokens or 0))
    spec = replace(
        case.decoder, layers=1, hidden=_NARROW, ffn=_NARROW, head_dim=core.width, name="core", max_positions=positions,
        heads=core.heads, kv_heads=core.kv_heads if core.latent is None else core.heads,
    )  # fmt: skip
    layout, cluster = replace(case.layout, tp=1, dp=1), replace(case.cluster, per_node=1)
    return replace(case, model=spec, layout=layout, cluster=cluster, serving=serving)


def _chunks(case: Case) -> list[tuple[int, int]]:
    """Tokens of each pass that reads the prompts, and how many there are then."""
    prompt = case.workload.seq_len
    chunk = min(case.serving.prefill_tokens or prompt, prompt)
    ends = [*range(chunk, prompt, chunk), prompt]
    return [(end - start, end) for start, end in zip((0, *ends), ends, strict=False)]


def _ends_of_prompt(case: Case) -> list[tuple[int, int]]:
    """The first and the last whole chunk, and what is left over: others lie between them."""
    chunks = _chunks(case)
    whole = [each for each in chunks if each[0] == chunks[0][0]]
    return list(dict.fromkeys((whole[0], whole[-1], chunks[-1])))


def _exchanges(case: Case, tokens: int) -> Iterator[tuple[Exchange, int]]:
    for message in serving_messages(case, tokens):
        yield exchange_of(message, Form.DIRECT, case.cluster.per_node), message.count
