"""A training step on a pipeline rank: its score, played by its stages."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property

from memory.events import Chain, Event, Label, Phase, phase_of
from memory.pipeline_beats import Freed, Part
from memory.pipeline_buffers import BUFFER
from memory.pipeline_finish import finishing
from memory.pipeline_score import Letter, Score, score_of
from memory.scripts import Form, form_of
from memory.sharded_stage import ShardedStage, Sharding, StageGathering, held_after_forward
from memory.stage_passes import Doing, Plain, PlainStage, Progress, StagePasses
from memory.stage_walk import StageWalk
from memory.step import StepWalk, Stretch, reduced_gradients
from memory.units import Exchange, exchange_of, shards_of
from parallelism.pipeline.strategy import joins_weights, stream_bytes
from parallelism.schedules.ledgers import ledger_of_stages
from parallelism.schedules.stages import Stage, head_is_copied, stages_of, stages_of_rank
from suite.case import Case
from suite.memo import Memo
from suite.operators import Ledger
from suite.tape import Backend, Numerics


def walk_pipeline(pipeline: Pipeline, pp_rank: int) -> StepWalk:
    """One step of a pipeline rank."""
    score = pipeline.score(pp_rank)
    stretches = []
    for note in score.notes:
        phase = Phase() if note.letter is None else pipeline.phase(note.letter, pp_rank)
        stretches.append(Stretch(phase, note.window, note.level))
    return StepWalk(tuple([stretches[number] for number in score.order]))


#: stages of one model that are alike: the same segments between the same ends
StageKind = tuple[bool, bool, tuple[int, ...]]


@dataclass(frozen=True)
class Pipeline:
    """The pipeline of a case whose ranks have a ledger's share of the model."""

    case: Case
    ledger: Ledger
    numerics: Numerics
    backend: Backend
    memo: Memo
    found: dict[int, StagePasses] = field(default_factory=dict, compare=False, repr=False)  # passes of each stage

    def score(self, pp_rank: int) -> Score:
        """What a rank does."""
        layout = self.case.layout
        count = self.case.workload.micro_batches
        return score_of(layout, count, pp_rank, self.joined, self.start, self.memo)

    def phase(self, letter: Letter, pp_rank: int) -> Phase | Chain:
        """What a letter allocates."""
        if isinstance(letter.what, Doing):
            assert letter.progress is not None
            body, loss = self.passes(letter.stage).passes(letter.what, letter.progress)
            return loss if letter.part is Part.LOSS else body
        if letter.what is Freed.BUFFER:
            return phase_of([Event(-stream_bytes(self.case), BUFFER)])
        if letter.what is Part.FINISH:
            return self.finish(pp_rank)
        walk = self.passes(letter.stage).walk
        label = walk.output if letter.what is Freed.OUTPUT else walk.input_gradient
        return phase_of([Event(-label.unit, label)])

    def finish(self, pp_rank: int) -> Phase:
        """What comes and goes when the schedule is over."""
        return finishing(self.case, self.ledger, self.own(pp_rank), pp_rank)

    # --- stages -----------------------------------------------------------------------------------------

    def own(self, pp_rank: int) -> Ledger:
        """The ledger of a rank's stages; ranks whose stages are alike have one."""
        mine = stages_of_rank(self.case.layout, pp_rank)
        kinds = tuple(self.kinds[index] for index in mine)
        key = "own", self.memo.name(self.ledger), self.is_copied, kinds
        return self.memo.once(key, lambda: self._part(tuple(self.stages[index] for index in mine)))

    def _part(self, stages: tuple[Stage, ...]) -> Ledger:
        return ledger_of_stages(self.case, self.ledger, stages)

    def _kind(self, stage: Stage) -> StageKind:
        form = self._form
        start = form.blocks.start + stage.blocks.start
        return stage.has_embedding, stage.has_head, form.pattern[start : start + len(stage.blocks)]

    def passes(self, stage: int) -> StagePasses:
        """The passes of a stage, or of one that is alike."""
        if stage not in self.found:
            key = "passes", self.alike, self.kinds[stage]
            self.found[stage] = self.memo.once(key, lambda: self._passes(self.stages[stage]))
        return self.found[stage]

    def _passes(self, stage: Stage) -> StagePasses:
        """A head that is the embedding's own tensor has made its gradient before it."""
        shares = self.case.model.tied and not self.is_copied
        found = frozenset({"embedding.weight"} if shares and stage.has_embedding else ())
        gradients = self.gathering.gradients if self.gathering is not None else None
        key = "stage walk", self.memo.name(self.ledger), self.is_copied, found, gradients, self.kinds[stage.index]
        walk = self.memo.once(key, lambda: self._walk(stage, found, gradients))
        return PlainStage(walk) if self.gathering is None else ShardedStage(walk, self.gathering, self.memo)

    def _walk(self, stage: Stage, found: frozenset[str], gradients: Label | None) -> StageWalk:
        return StageWalk(self._part((stage,)), stage, found, gradients, self.memo)

    @cached_property
    def stages(self) -> tuple[Stage, ...]:
        """Every stage of the model."""
        case, layout, memo = self.case, self.case.layout, self.memo
        split = layout.pp, layout.virtual_stages, layout.stage_split
        work = replace(case.workload, micro_batches=1)
        # a balanced split weighs the blocks of the whole model, however they are shared
        of_case = "stages", case.model, work, layout.recompute, split
        key = "stages of ledger", memo.name(self.ledger), split
        return memo.once(key, lambda: memo.once(of_case, lambda: stages_of(case)))

    @cached_property
    def kinds(self) -> tuple[StageKind, ...]:
        """What each stage is alike to."""
        key = "kinds", self.memo.name(self.stages), self.memo.name(self._form)
        return self.memo.once(key, lambda: self.memo.same(tuple(map(self._kind, self.stages))))

    @cached_property
    def _form(self) -> Form:
        kinds = [placed.segment for placed in self.ledger.segments]
        return self.memo.once(
            ("form", self.memo.name(self.ledger)), lambda: self.memo.same(form_of(self.ledger, kinds))
        )

    # --- facts ------------------------------------------------------------------------------------------

    @cached_property
    def alike(self) -> int:
        """A short key for all that stages of one kind depend on."""
        return self.memo.name(self.memo.same(("stages", self.memo.name(self.ledger), self.is_copied, self.gathering)))

    @cached_property
    def is_copied(self) -> bool:
        """Is a tied head a parameter of its own?"""
        return head_is_copied(self.case)

    @cached_property
    def joined(self) -> frozenset[int]:
        """Stages whose weights' gradients are computed with their inputs'."""
        if not self.case.layout.schedule.splits_backward:
            return frozenset()
        return frozenset(stage.index for stage in self.stages if joins_weights(self.case, stage.index))

    @cached_property
    def exchange(self) -> Exchange:
        """How units are gathered and reduced, where they are."""
        return exchange_of(self.case, self.numerics, self.backend)

    @cached_property
    def start(self) -> Progress:
        """What a stage's first pass finds."""
        if self.case.layout.fsdp == 1:
            return Plain()
        return Sharding(held_after_forward(self.case.layout), self.exchange.converts)

    @cached_property
    def gathering(self) -> StageGathering | None:
        """How FSDP2 gathers and reduces, if it is used."""
        layout = self.case.layout
        if layout.fsdp == 1:
            return None
        gradients = reduced_gradients(self.numerics)
        depths = layout.forward_prefetch, layout.backward_prefetch
        return StageGathering(self.exchange, gradients, *depths, shards_of(layout))
