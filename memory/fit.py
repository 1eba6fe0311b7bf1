"""What fits: the largest micro-batch, the longest sequence, the fewest GPUs, the least recomputation.

One setting is varied and all others stay. Sizes are found by doubling and halving, so that what is answered fits and
the next step does not; where memory is not monotone (padding, fragmentation) there may be a larger size beyond it that
fits again. Recomputation is tried from the least on, one mode after another.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from enum import StrEnum

from memory.allocator_settings import AllocatorSettings
from memory.assessment import Assessment
from memory.estimate import MemoryModel
from memory.verdict import Verdict
from suite.case import Case
from suite.case_rules import sequence_parts
from suite.hardware import Device, DeviceKind
from suite.layout import Layout, Recompute
from suite.parse import SpecError, require
from suite.spec import Cluster

#: where searches without a bound of their own end
MOST_SEQUENCES, MOST_RANKS = 2**20, 2**17


class Target(StrEnum):
    """What to look for."""

    MICRO_BATCH = "micro-batch"
    SEQ_LEN = "seq-len"
    GPUS = "gpus"
    RECOMPUTE = "recompute"


@dataclass(frozen=True)
class Candidate:
    """A value of what is varied, and what comes of it."""

    value: int | str
    assessment: Assessment

    @property
    def case(self) -> Case:
        """The case with that value."""
        return self.assessment.model.case


@dataclass(frozen=True)
class Answer:
    """The best that fits, and the next step, which does not. `best` None: nothing fits, and `next` is the least that
    was tried. `next` None: there is no further step. `note` says which, and what was varied beside."""

    target: Target
    varied: str
    best: Candidate | None
    next: Candidate | None
    note: str = ""


@dataclass(frozen=True)
class Search:
    """Looks for what a device holds of a case; `accept` is the worst verdict that counts as fitting."""

    case: Case
    device: Device
    accept: Verdict = Verdict.FITS
    settings: AllocatorSettings = AllocatorSettings()
    tried: dict[Case, Candidate] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        require(
            self.device.memory_bytes.value is not None,
            f"cluster.device: {self.device.name} has no published memory ({self.device.memory_bytes.source});"
            " `models --devices` lists those that have",
        )

    def answer(self, target: Target) -> Answer:
        """The answer for one target. SpecError where the case leaves nothing to vary."""
        search = {
            Target.MICRO_BATCH: self._micro_batch,
            Target.SEQ_LEN: self._seq_len,
            Target.GPUS: self._gpus,
            Target.RECOMPUTE: self._recompute,
        }
        return search[target]()

    # --- targets ----------------------------------------------------------------------------------------

    def _micro_batch(self) -> Answer:
        def candidate(size: int) -> Candidate:
            return self._try(size, replace(self.case, workload=replace(self.case.workload, micro_batch=size)))

        return self._largest(Target.MICRO_BATCH, "workload.micro_batch", candidate, MOST_SEQUENCES, "")

    def _seq_len(self) -> Answer:
        step, model = sequence_parts(self.case.layout), self.case.model
        is_windowed = model.window is not None and model.window < model.max_positions
        most = (model.window or 0) if is_windowed else model.max_positions

        def candidate(parts: int) -> Candidate:
            return self._try(
                parts * step, replace(self.case, workload=replace(self.case.workload, seq_len=parts * step))
            )

        of = f"multiples of {step}, which the layout divides; " if step > 1 else ""
        end = f"{of}the model's {'window is' if is_windowed else 'max_positions are'} {most}"
        return self._largest(Target.SEQ_LEN, "workload.seq_len", candidate, most // step, end)

    def _gpus(self) -> Answer:
        layout = self.case.layout
        require(
            self.device.kind is not DeviceKind.CPU,
            "--for gpus: ranks on a CPU share its memory, so more of them have less each; name a GPU with --device",
        )
        require(
            layout.dp == 1 or layout.fsdp > 1 or layout.zero > 0,
            f"--for gpus: layout.dp({layout.dp}) replicas hold everything each, more of them free nothing; give fsdp"
            " or zero",
        )
        axis, to = "dp" if layout.zero else "fsdp", layout.reshard_after_forward
        step = 1 if isinstance(to, bool) else to
        least = self._least_degree(axis, step)

        def candidate(size: int) -> Candidate:
            spread = _with_degree(layout, axis, least + (size - 1) * step)
            return self._try(spread.world_size, self._spread(spread))

        varied = f"layout.{axis}"
        most = max(1, MOST_RANKS * getattr(layout, axis) // (layout.world_size * step))
        fewest = _first(lambda size: self._fits(candidate(size)), most)
        if fewest is None:
            note = f"nothing fits: {varied} {least + (most - 1) * step}, {candidate(most).value} ranks, does not"
            return Answer(Target.GPUS, varied, None, candidate(most), note)
        refused = f"; the other settings allow no {varied} below it" if fewest == 1 and least > 1 else ""
        note = f"{varied} {least + (fewest - 1) * step}, {_others(layout, axis)}{refused}"
        before = candidate(fewest - 1) if fewest > 1 else None
        return Answer(Target.GPUS, varied, candidate(fewest), before, note)

    def _least_degree(self, axis: str, step: int) -> int:
        """The least degree that the layout's other settings allow: 1, or the first above."""
        try:
            self._spread(_with_degree(self.case.layout, axis, step))
        except SpecError:
            self._spread(_with_degree(self.case.layout, axis, 2 * step))
            return 2 * step
        return step

    def _spread(self, layout: Layout) -> Case:
        return replace(self.case, layout=layout, cluster=self._cluster(layout))

    def _recompute(self) -> Answer:
        """Modes by the FLOPs that they compute again, the least first."""
        varied = "layout.recompute"
        before = None
        for candidate in self._modes():
            if self._fits(candidate):
                return Answer(Target.RECOMPUTE, varied, candidate, before)
            before = candidate
        return Answer(Target.RECOMPUTE, varied, None, before, "nothing fits: not with every block recomputed either")

    def _modes(self) -> list[Candidate]:
        layers = self.case.model.layers
        blocks = {-(-layers // every): every for every in range(layers, 1, -1)}
        names = ["none", "selective", *(f"every-{every}" for every in blocks.values()), "full"]
        modes = [Recompute.parse(name) for name in names]
        tried = [
            self._try(str(mode), replace(self.case, layout=replace(self.case.layout, recompute=mode))) for mode in modes
        ]
        return sorted(tried, key=lambda item: item.assessment.model.ledger.recompute_flops(causal=True))

    # --- the search -------------------------------------------------------------------------------------

    def _largest(
        self, target: Target, varied: str, candidate: Callable[[int], Candidate], most: int, end: str
    ) -> Answer:
        """The largest of 1 to `most` that fits."""
        least_not = _first(lambda size: not self._fits(candidate(size)), most)
        if least_not == 1:
            return Answer(target, varied, None, candidate(1), f"nothing fits: {varied} {candidate(1).value} does not")
        if least_not is None:
            return Answer(target, varied, candidate(most), None, end)
        return Answer(target, varied, candidate(least_not - 1), candidate(least_not))

    def _fits(self, candidate: Candidate) -> bool:
        return candidate.assessment.is_at_least(self.accept)

    def _try(self, value: int | str, case: Case) -> Candidate:
        if case not in self.tried:
            self.tried[case] = Candidate(value, Assessment(MemoryModel(case), self.device, self.settings))
        return replace(self.tried[case], value=value)

    def _cluster(self, layout: Layout) -> Cluster:
        """As many machines of the given size as the layout fills, else one."""
        per_node, nodes = self.case.cluster.per_node, self.case.cluster.nodes
        if nodes > 1 and layout.world_size % per_node == 0:
            return replace(self.case.cluster, nodes=layout.world_size // per_node)
        return replace(self.case.cluster, nodes=1, per_node=0)


def _first(holds: Callable[[int], bool], most: int) -> int | None:
    """The first of 1 to `most` of which it holds, if it holds of all after; None if it does not hold of `most`."""
    low, high = 0, 1  # it does not hold of `low`
    while not holds(high):
        if high == most:
            return None
        low, high = high, min(2 * high, most)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high


def _with_degree(layout: Layout, axis: str, degree: int) -> Layout:
    """The layout with another degree of dp or fsdp."""
    return replace(layout, dp=degree) if axis == "dp" else replace(layout, fsdp=degree)


def _others(layout: Layout, axis: str) -> str:
    """The degrees that were left alone."""
    names = [name for name in ("dp", "fsdp", "ep", "tp", "cp", "pp") if name != axis and getattr(layout, name) > 1]
    return (
        " ".join(f"{name} {getattr(layout, name)}" for name in names) + " left as given"
        if names
        else "all else as given"
    )
