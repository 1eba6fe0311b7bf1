"""DeepSpeed's ZeRO on the walk: what its stages allocate around each module, gradient, backward pass and update.

Read off DeepSpeed 0.19's runtime (engine.py, fp16/unfused_optimizer.py, zero/stage_1_and_2.py, zero/stage3.py,
zero/partition_parameters.py, runtime/comm/coalesced_collectives.py) and held to allocator traces.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from memory.events import Act, Event, Label, Phase, phase_of
from parallelism.zero_config import (
    Parameter,
    bucket_elements,
    element_bytes,
    groups_of,
    padded_group,
    parameters_of,
)
from suite.case import Case
from suite.operators import Ledger, Placed, Weight
from suite.record import Component
from suite.tape import Backend

FP32 = 4
RUNTIME = "DeepSpeed 0.19: deepspeed/runtime/"
STAGE_1_2, STAGE_3 = RUNTIME + "zero/stage_1_and_2.py", RUNTIME + "zero/stage3.py"
#: what autograd makes, and a stage reduces and frees
WHOLE = "gradients before they are reduced"


@dataclass(frozen=True)
class Rank:
    """A rank's part of the case under one of DeepSpeed's stages."""

    case: Case
    ledger: Ledger
    rank: int
    backend: Backend

    @property
    def ranks(self) -> int:
        """Ranks that the engine shards over: all of them."""
        return self.case.layout.dp

    @property
    def size(self) -> int:
        """Bytes of an element of a parameter or a gradient."""
        return element_bytes(self.case.workload.precision)

    @property
    def copies(self) -> bool:
        """Do collectives copy what they are given? gloo's gathers and scatters do."""
        return self.backend is Backend.CPU

    @property
    def limit(self) -> int:
        """Elements of the gradient bucket."""
        return bucket_elements(self.case)

    @cached_property
    def groups(self) -> tuple[tuple[Parameter, ...], ...]:
        """The optimizer's groups."""
        return groups_of(self.ledger)

    @cached_property
    def by_name(self) -> dict[str, Parameter]:
        """Every parameter."""
        return {item.name: item for item in parameters_of(self.ledger)}

    @cached_property
    def pieces(self) -> dict[Parameter, tuple[tuple[int, int], ...]]:
        """Stages 1 and 2: (rank, elements) of each parameter, cut where its group's flat buffer goes from one rank to
        the next."""
        found = {}
        for group in self.groups:
            part, start = padded_group(group, self.ranks) // self.ranks, 0
            for item in group:
                end = start + item.elements
                owners = range(start // part, (end - 1) // part + 1)
                found[item] = tuple(
                    (owner, min(end, (owner + 1) * part) - max(start, owner * part)) for owner in owners
                )
                start = end
        return found

    def owned(self, item: Parameter) -> int:
        """Elements of a parameter that this rank updates in stages 1 and 2."""
        return dict(self.pieces[item]).get(self.rank, 0)

    def part(self, group: Sequence[Parameter]) -> int:
        """Elements of this rank's part of a group in stages 1 and 2."""
        return padded_group(group, self.ranks) // self.ranks

    def padding(self, group: Sequence[Parameter]) -> int:
        """Elements of that part that no parameter fills."""
        return self.part(group) - sum(map(self.owned, group))


@dataclass
class Acts:
    """Writes the events of a step, in the order of the calls. Stage 0 and what all stages share."""

    at: Rank
    events: list[Event] = field(default_factory=list)

    #: does autograd add a micro-batch's gradients to those of the one before?
    accumulates = True
    #: are the whole gradients those that the optimizer reads?
    keeps_whole = True

    def weave(self, phase: Phase, placed: Placed) -> Phase:
        """A segment's stretch with this strategy's events where they happen."""
        done = 0
        for use in phase.uses:
            self.events += phase.events[done : use.at]
            done = use.at
            self.act(use.act, use.weights, placed)
        self.events += phase.events[done:]
        return self.take()

    def act(self, act: Act, weights: tuple[Weight, ...], placed: Placed) -> None:
        """Something happens to weights."""

    def end_backward(self, is_first: bool, is_last: bool) -> Phase:
        """A micro-batch's backward pass is over. Last: all gradients are joined for the all-reduce."""
        if is_last:
            elements = [item.elements for item in self.at.by_name.values()]
            if len(elements) > 1:
                self._pass(sum(elements) * self.at.size, "gradients joined to be all-reduced", "parameters*{size}")
        return self.take()

    def update(self) -> Phase:
        """Clip, update, spread the new parameters. bf16: every fp32 gradient at once."""
        if self.at.size != FP32:
            elements = sum(item.elements for item in self.at.by_name.values())
            self._pass(elements * FP32, "fp32 gradients of the masters", "parameters*4")
        return self.take()

    def take(self) -> Phase:
        """The events since the last call."""
        phase, self.events = phase_of(self.events), []
        return phase

    def _pass(self, nbytes: int, name: str, formula: str) -> None:
        self._add(nbytes, name, formula)
        self._add(-nbytes, name, formula)

    def _add(self, nbytes: int, name: str, formula: str, component: Component = Component.TRANSIENTS) -> None:
        if nbytes:
            label = Label(component, name, formula.format(size=self.at.size), 0, self.source)
            self.events.append(Event(nbytes, label))

    def _free(self, item: Parameter) -> None:
        """A whole gradient goes."""
        self._add(-item.elements * self.at.size, WHOLE, "parameters reached*{size}")

    @property
    def source(self) -> str:
        """Where the rules come from."""
        return RUNTIME + "engine.py"


@dataclass
class Bucketed(Acts):
    """Stages 1 and 2: a bucket lives in backward, and the rank keeps whole gradients of what it owns a part of."""

    bucket: list[Parameter] = field(default_factory=list)
    has_bucket: bool = False
    has_kept: bool = False
    left_over: int = 0
    is_first: bool = True

    keeps_whole = False

    @property
    def accumulates(self) -> bool:  # type: ignore[override]
        """Stage 1 leaves gradients where they are until the last micro-batch."""
        return self.at.case.layout.zero == 1

    @property
    def source(self) -> str:
        """Where the rules come from."""
        return STAGE_1_2

    def act(self, act: Act, weights: tuple[Weight, ...], placed: Placed) -> None:
        """The first gradient brings the bucket into being; stage 2 moves each into it at once."""
        if act is not Act.REDUCIBLE:
            return
        if not self.has_bucket:
            self.has_bucket = True
            self._bucket(1)
        if self.at.case.layout.zero == 2:
            self._put(self.at.by_name[placed.weight_name(weights[0])])

    def end_backward(self, is_first: bool, is_last: bool) -> Phase:
        """Reduce what waits; stage 1 reduces only now, after the last micro-batch."""
        if self.at.case.layout.zero == 1:
            if not is_last:
                return self.take()
            for group in self.at.groups:
                for item in group:
                    self._put(item)
        self._flush()
        if is_last:
            padding = sum(map(self.at.padding, self.at.groups))
            self._add(padding * self.at.size, "zeros for the padding", "padding*{size}", Component.GRADIENTS)
        self._add(-self.left_over, WHOLE, "parameters reached*{size}")
        self._bucket(-1)
        if self.has_kept and self.at.case.layout.zero == 2 and not is_first:
            self._keep(-1)
        self.has_bucket = self.has_kept = False
        self.left_over = 0
        self.is_first = False
        return self.take()

    def update(self) -> Phase:
        """Norms in fp64, gradient by gradient; group by group a flat gradient in fp32; then the new parameters."""
        at = self.at
        self._pass(8 * max(map(at.owned, at.by_name.values())), "a gradient for its norm", "largest part*8")
        for group in at.groups:
            self._step(group)
        self._add(-self._kept_bytes, "gradients", "owned parameters*{size}", Component.GRADIENTS)
        padding = sum(map(at.padding, at.groups))
        self._add(-padding * at.size, "zeros for the padding", "padding*{size}", Component.GRADIENTS)
        if at.copies:
            largest = max(padded_group(group, at.ranks) for group in at.groups)
            self._pass(largest * at.size, "gloo's copy of the gathered parameters", "largest group*{size}")
        return self.take()

    def _step(self, group: Sequence[Parameter]) -> None:
        at, part = self.at, self.at.part(group)
        parts = sum(1 for item in group if at.owned(item)) + bool(at.padding(group))
        flat = part * at.size if parts > 1 else 0
        self._add(flat, "flat gradient of a group", "P/N*{size}")
        if at.size != FP32:
            self._add(part * FP32, "flat gradient of a group in fp32", "P/N*4")
            self._add(-flat, "flat gradient of a group", "P/N*{size}")
            self._add(-part * FP32, "flat gradient of a group in fp32", "P/N*4")
        else:
            self._add(-flat, "flat gradient of a group", "P/N*{size}")

    # --- gradients --------------------------------------------------------------------------------------

    def _put(self, item: Parameter) -> None:
        """A gradient is copied into the bucket, which is reduced first if it would not fit; a larger one waits alone."""
        if self.bucket and sum(other.elements for other in self.bucket) + item.elements > self.at.limit:
            self._flush()
        self.bucket.append(item)
        if item.elements <= self.at.limit:
            self._free(item)

    def _flush(self) -> None:
        """All-reduce the bucket: its slices, one for each run of the same owner, are joined if they are several."""
        if not self.bucket:
            return
        runs: list[list[int]] = []
        for owner, elements in (piece for item in self.bucket for piece in self.at.pieces[item]):
            if runs and runs[-1][0] == owner:
                runs[-1][1] += elements
            else:
                runs.append([owner, elements])
        joined = max(_joined([elements for _, elements in runs], self.at.limit), default=0)
        self._pass(joined * self.at.size, "gradients joined to be all-reduced", "bucket*{size}")
        for item in self.bucket:
            self._keep_or_drop(item)
        self.bucket.clear()

    def _keep_or_drop(self, item: Parameter) -> None:
        is_large, is_owned = item.elements > self.at.limit, self.at.owned(item) > 0
        if is_owned and not self.has_kept:
            self.has_kept = True
            self._keep(1)
        if is_large and (is_owned or self.at.case.layout.zero == 2):
            self._free(item)
        elif is_large:
            self.left_over += item.elements * self.at.size

    @property
    def _kept_bytes(self) -> int:
        return sum(item.elements for item in self.at.by_name.values() if self.at.owned(item)) * self.at.size

    def _keep(self, sign: int) -> None:
        """Whole gradients of the parameters that the rank owns a part of; stage 2 adds later ones to the first."""
        if self.is_first or self.at.case.layout.zero == 1:
            name, component = "gradients", Component.GRADIENTS
        else:
            name, component = "new gradients, added to the old", Component.TRANSIENTS
        self._add(sign * self._kept_bytes, name, "owned parameters*{size}", component)

    def _bucket(self, sign: int) -> None:
        elements = "bucket_mib" if self.at.case.layout.bucket_mib else "5e8 elements, DeepSpeed's default,"
        self._add(sign * self.at.limit * self.at.size, "gradient bucket, allocated whole", f"{elements} *{{size}}")


@dataclass
class Gathered(Acts):
    """Stage 3: parameters are gathered module by module, gradients scattered bucket by bucket."""

    bucket: list[Parameter] = field(default_factory=list)
    held: dict[str, int] = field(default_factory=dict)
    rerun: dict[str, int] = field(default_factory=dict)

    accumulates = False
    keeps_whole = False

    @property
    def source(self) -> str:
        """Where the rules come from."""
        return STAGE_3

    def act(self, act: Act, weights: tuple[Weight, ...], placed: Placed) -> None:
        """Gather before a module runs, free after; a gradient goes into the bucket at once.

        Checkpointing's rerun keeps tensors detached from their parameters, so that what was gathered for it outlives
        the module's forward, beside what is gathered for its backward.
        """
        if act is Act.NEEDED:
            self._gather(weights, placed.weight_name(weights[0]))
        elif act is Act.LEFT:
            self._release(placed.weight_name(weights[0]))
        elif act is Act.RERUN:
            self.rerun[placed.weight_name(weights[0])] = self.held.pop(placed.weight_name(weights[0]))
        else:
            self._put(self.at.by_name[placed.weight_name(weights[0])])

    def end_backward(self, is_first: bool, is_last: bool) -> Phase:
        """Reduce what waits; free the embeddings, which no input's gradient tells that they are done."""
        self._flush()
        for name in tuple(self.held):
            self._release(name)
        return self.take()

    def update(self) -> Phase:
        """Norms in fp64, part by part; then group by group a flat gradient in fp32."""
        at = self.at
        largest = max(self._part(item) for item in at.by_name.values())
        self._pass(8 * largest, "a gradient for its norm", "largest part*8")
        for group in at.groups:
            part = sum(map(self._part, group))
            flat = part * at.size if len(group) > 1 else 0
            self._add(flat, "flat gradient of a group", "Q*{size}")
            if at.size != FP32:
                self._add(part * FP32, "flat gradient of a group in fp32", "Q*4")
                self._add(-flat, "flat gradient of a group", "Q*{size}")
                self._add(-part * FP32, "flat gradient of a group in fp32", "Q*4")
            else:
                self._add(-flat, "flat gradient of a group", "Q*{size}")
        return self.take()

    def _part(self, item: Parameter | Weight) -> int:
        return -(-item.elements // self.at.ranks)

    def _padded(self, items: Iterable[Parameter | Weight]) -> int:
        return sum(map(self._part, items)) * self.at.ranks * self.at.size

    def _gather(self, weights: tuple[Weight, ...], name: str) -> None:
        """One flat buffer; of several parameters each is copied out of it, one alone stays in it."""
        flat = self._padded(weights)
        self._gathered(flat, "gather output")
        if self.at.copies:
            self._gathered(flat, "gloo's copy of the gathered parameters")
            self._gathered(-flat, "gloo's copy of the gathered parameters")
        self.held[name] = sum(item.elements for item in weights) * self.at.size if len(weights) > 1 else flat
        self._gathered(self.held[name], "gathered parameters")
        self._gathered(-flat, "gather output")

    def _release(self, name: str) -> None:
        self._gathered(-self.held.pop(name), "gathered parameters")
        self._gathered(-self.rerun.pop(name, 0), "gathered parameters")

    def _gathered(self, nbytes: int, name: str) -> None:
        self._add(nbytes, name, "sum of ceil(elements/N)*N*{size}", Component.GATHERED)

    def _put(self, item: Parameter) -> None:
        filled = sum(other.elements for other in self.bucket)
        if self.bucket and filled + item.elements > self.at.limit:
            self._flush()
        self.bucket.append(item)
        if item.elements <= self.at.limit:
            self._free(item)

    def _flush(self) -> None:
        """Lay the gradients out rank by rank, unless one alone needs no padding; reduce-scatter; keep the parts."""
        if not self.bucket:
            return
        flat = self._padded(self.bucket)
        is_laid_out = len(self.bucket) > 1 or self.bucket[0].elements % self.at.ranks > 0
        laid_out = flat if is_laid_out else 0
        self._add(laid_out, "reduce-scatter input", "sum over the bucket of ceil(elements/N)*N*{size}")
        if self.at.copies:
            self._pass(flat, "gloo's copy of the reduce-scatter input", "the same")
        self._add(-laid_out, "reduce-scatter input", "sum over the bucket of ceil(elements/N)*N*{size}")
        for item in self.bucket:
            if item.elements > self.at.limit:
                self._free(item)
        self.bucket.clear()


def _joined(sizes: Iterable[int], limit: int) -> Iterable[int]:
    """Elements of each all-reduce that joins several slices: they are taken until they are beyond the limit."""
    total = count = 0
    for size in sizes:
        total, count = total + size, count + 1
        if total > limit:
            yield total if count > 1 else 0
            total = count = 0
    yield total if count > 1 else 0


STAGES: dict[int, Callable[[Rank], Acts]] = {0: Acts, 1: Bucketed, 2: Bucketed, 3: Gathered}


def acts_of(case: Case, ledger: Ledger, rank: int, backend: Backend) -> Acts | None:
    """What DeepSpeed does in this case; None where another engine runs it."""
    if not case.layout.is_deepspeed:
        return None
    return STAGES[case.layout.zero](Rank(case, ledger, rank, backend))
