"""What every layout with a grain and a pipe takes at the least, in seconds and bytes: what need not be looked at whole.

A bound counts what no schedule, shard or overlap can take away. It is below the estimate, never above; a search that
leaves out what is bounded to be slower, or larger, than it may be finds what an exhaustive one would.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import TYPE_CHECKING, Any, NamedTuple

from parallelism.pipeline.strategy import joins_weights
from parallelism.schedules.stages import block_counts, stages_of_rank
from parallelism.simulator.many import ROUNDS_KEPT, kept_of
from reports.plan.exchanged import Exchanged, exchanged
from reports.plan.instants import Flying, instants_of, pipeline_of
from reports.plan.paths import StageTimes, longest_path
from reports.plan.space import Grain, Pipe, Space, Spread
from reports.plan.work import Engine, Prices, Work, Works, engine_of
from suite.case import Case
from suite.formats import Formats, formats
from suite.layout import ContextMethod, Layout, Recompute, Reduction, Schedule
from suite.layout import Engine as LayoutEngine
from suite.memo import Memo
from suite.spec import OptimizerKind

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Numbers = NDArray[np.float64]
else:
    Numbers = Any

#: moments of an optimizer that are as large as the parameters
MOMENTS = {OptimizerKind.ADAMW: 2, OptimizerKind.SGD: 1, OptimizerKind.MUON: 1}
#: stages of a rank whose parameters torch's schedules of several leave gathered at a time (`max_active_stages` of
#: torch.distributed.pipelining)
ACTIVE = 3
#: rounds of `pp` micro-batches from which on the fill is all that the longest path has beside a rank's own passes
FEW_ROUNDS = 2
#: parameters whose copies are priced at once, so that the start of a kernel does not count
MANY = 2**30
_REPLICATED = Spread(2, 1, 0, LayoutEngine.AUTO, True, Reduction.STEP)
_SHARDED = Spread(1, 2, 0, LayoutEngine.AUTO, False, Reduction.STEP)
#: of each engine, without a pipeline and with one, what copies least
LEAST_COPIED = {
    (Engine.REPLICATED, True): _REPLICATED,
    (Engine.REPLICATED, False): _REPLICATED,
    (Engine.SHARDED, True): _SHARDED._replace(reduction=Reduction.MICRO_BATCH),
    (Engine.SHARDED, False): _SHARDED,
}


class Least(NamedTuple):
    """Seconds of a step at the least, and how many of them compute loses beside messages."""

    seconds: float
    slowed: float


@dataclass(frozen=True)
class Piped:
    """What is known of all layouts with one grain, engine and pipe."""

    fill: Numbers
    """[ranks]: seconds before a rank's first pass and after its last"""
    through: float
    """seconds of a micro-batch's way through all stages and back"""
    passes: Numbers
    """[ranks]: seconds of all passes, and of the fill"""
    parameters_of: Numbers
    """[ranks]"""
    before_reductions: float
    """seconds of a step before the first rank has a gradient to reduce"""

    @property
    def seconds(self) -> float:
        """Of a step at the least, however its parameters are spread."""
        return max(float(self.passes.max()), self.through)


@dataclass(frozen=True)
class Bounds:
    """Bounds for the layouts of a space. Without prices every bound of time is 0."""

    space: Space
    prices: Prices | None
    memo: Memo = field(default_factory=Memo, compare=False, repr=False)

    @property
    def works(self) -> Works:
        """The work of a micro-batch."""
        return self.memo.once("works", lambda: Works(self.space, self.prices, self.memo))

    # --- families ---------------------------------------------------------------------------------------

    def least_state(self, grain: Grain, pp: int, engine: Engine) -> float:
        """Bytes that the fullest rank holds between steps at least: its share of parameters and moments, were every
        rank's alike and as much sharded as the engine can."""
        whole, of = self.works.parameters(), self._formats(engine)
        replicas = self.space.asked.gpus // (grain.tp * pp)
        parts = grain.ep if engine is Engine.REPLICATED else replicas
        return whole / (grain.tp * pp) * (of.parameters.nbytes / parts + self._moment_bytes(of) / replicas)

    def least_bytes(self, grain: Grain, pp: int, engine: Engine) -> float:
        """Bytes of the fullest rank at least: what it holds between steps, and what one micro-batch keeps on it once
        it has been through all of its blocks."""
        return self.least_state(grain, pp, engine) + self.works.of(grain, engine).kept[-1] / pp

    def busy_seconds(self, grain: Grain, pp: int, micro_batches: int, engine: Engine) -> float:
        """Of the busiest rank at least: the work of a step shared evenly over the pipeline's ranks, with the least that
        is copied."""
        seconds = self.works.of(grain, engine).whole[-1]
        if self.prices is not None and engine is not Engine.DEEPSPEED:
            spread = LEAST_COPIED[engine, pp == 1]
            seconds += self.works.parameters() / (grain.tp * grain.ep) * self._copied_seconds(spread, micro_batches)
        return micro_batches * seconds / pp

    def piped(self, grain: Grain, pipe: Pipe, engine: Engine) -> Piped:
        """What is known once the pipe is.

        Seconds: a rank's own passes; the forward passes of earlier stages, which the first micro-batch goes through,
        and, where its last pass is of its first stage, their backward passes, which the last one goes through; a
        micro-batch's way through all stages. Not counted: sends, the update, the host, idle time in between.
        """
        import numpy as np

        work, edges = self.works.of(grain, engine), self._edges(grain, pipe, engine)
        ranks, count = self._stages(pipe), pipe.micro_batches
        forward, whole = np.diff(np.take(work.forward, edges)), np.diff(np.take(work.whole, edges))
        joins, _ = self._joins(grain, pipe)
        # where a rank's last pass is of its first stage, earlier stages wait for its gradient
        filling = work.whole if joins and not pipe.schedule.is_v else work.forward
        fill = np.take(filling, edges)[ranks[:, 0]]
        held, own = np.diff(np.take(work.parameters, edges)), ranks[0]
        last = own[-1]  # the first stage whose gradients are whole
        return Piped(
            fill=fill,
            through=float((work.whole if joins else work.passed)[-1]),
            passes=fill + count * whole[ranks].sum(axis=1),
            parameters_of=held[ranks].sum(axis=1),
            before_reductions=float(count * forward[own].sum() + (count - 1) * (whole[last] - forward[last])),
        )

    def flying(self, grain: Grain, pipe: Pipe, engine: Engine) -> Flying:
        """What the first rank's micro-batches in flight keep, and their stages."""
        import numpy as np

        work, edges = self.works.of(grain, engine), self._edges(grain, pipe, engine)
        own = self._stages(pipe)[0]
        kept, parameters = (np.diff(np.take(each, edges))[own] for each in (work.kept, work.parameters))
        flying, done, used = self._instants(pipe)
        # of those that ran, the smallest
        ran = np.sort(np.where((flying > 0) | done | used, parameters, np.inf), axis=1)[:, :ACTIVE]
        stay = np.where(np.isinf(ran), 0.0, ran).sum(axis=1)
        return Flying(float(parameters.sum()), flying @ kept, done @ parameters, used @ parameters, stay)

    # --- layouts ----------------------------------------------------------------------------------------

    def longest(self, grain: Grain, pipe: Pipe, engine: Engine) -> float:
        """Seconds of a chain of passes that wait for each other: the longest there is, or nearly.

        Only where it comes to more than the fill: with few micro-batches, or where the model goes down the ranks and
        up again. Not of long steps, which a search cuts short.
        """
        import numpy as np

        most = ROUNDS_KEPT if pipe.schedule.is_v else FEW_ROUNDS
        if pipe.pp == 1 or self.prices is None or pipe.micro_batches >= most * pipe.pp:
            return 0.0
        work, edges = self.works.of(grain, engine), self._edges(grain, pipe, engine)
        forward, passed, whole = (np.diff(np.take(each, edges)) for each in (work.forward, work.passed, work.whole))
        first, last = self._joins(grain, pipe)
        weights = np.zeros_like(whole) if first else whole - passed
        if last:
            weights[-1] = 0
        times = StageTimes(forward, whole - forward - weights, weights)
        key = "path", pipe, first, last
        path = self.memo.once(key, lambda: longest_path(pipeline_of(pipe), pipe.micro_batches, times))
        return path.seconds(times)

    def seconds(self, grain: Grain, pipe: Pipe, spread: Spread, piped: Piped) -> Least:
        """Of a step: the larger of its passes and its messages.

        Passes: with the copies that sharding and accumulating make in each, slower beside messages. Messages: all
        parameters of an average rank are gathered, and their gradients reduced after the passes that make them; both
        share a link. Not counted: each message's latency, for they go as one; copies and messages of DeepSpeed.
        """
        import numpy as np

        if self.prices is None or engine_of(spread) is Engine.DEEPSPEED:
            return Least(piped.seconds, 0.0)
        copied = pipe.micro_batches * self._copied_seconds(spread, pipe.micro_batches)
        own = piped.passes + copied * piped.parameters_of
        gather, reduce = self._exchanged(grain, pipe.pp, spread)
        before, gathers, reductions = piped.before_reductions, 1.0, 1
        if pipe.pp == 1:
            gathers = pipe.micro_batches * (1 + (self.works.share_of_blocks if spread.reshard_after_forward else 0))
            if spread.reduction is Reduction.MICRO_BATCH:
                before, reductions = before / pipe.micro_batches, pipe.micro_batches
        messages = gathers * gather + reductions * reduce
        share = 1 - 1 / self._slowdown(engine_of(spread))
        if grain.ep > 1 and pipe.pp > 1:
            share = 0.0  # a rank's messages are not as its parameters, of which it has experts and others
        # messages while a rank waits for its first pass, or is through with its last, slow nothing down
        of_ranks = piped.parameters_of / piped.parameters_of.mean()
        beside = np.maximum(0.0, np.minimum(1.0, of_ranks) * messages - piped.fill)
        passes = float((own + share * beside).max())
        return Least(max(passes, piped.through, messages, before + reductions * reduce), share * messages)

    def nbytes(self, grain: Grain, spread: Spread, flying: Flying, micro_batches: int) -> float:
        """Bytes of the first pipeline rank at its fullest.

        Counted: parameters, the moments of AdamW, SGD and Muon, activations of what is in flight, gradients that wait
        for the end of the step, parameters that stay gathered. Not counted: what a pass needs while it runs, buffers,
        padding.
        """
        engine = engine_of(spread)
        of, replicas = self._formats(engine), spread.dp * grain.cp
        shards = spread.fsdp * grain.ep * grain.cp if engine is Engine.SHARDED else 1
        held = of.parameters.nbytes / (replicas if spread.zero == 3 else shards)
        held += self._moment_bytes(of) / (replicas if spread.zero else shards)
        waits = spread.reduction is Reduction.STEP and engine is not Engine.DEEPSPEED
        each = (of.reduced.nbytes if engine is Engine.SHARDED else of.gradients.nbytes) if waits else 0
        gathered = 0.0 if engine is not Engine.SHARDED else flying.used if spread.reshard_after_forward else flying.stay
        passing = flying.activations + each * flying.whole_gradients + of.numerics.compute.nbytes * gathered
        return held * flying.parameters + float(passing.max())

    # --- parts ------------------------------------------------------------------------------------------

    def _joins(self, grain: Grain, pipe: Pipe) -> tuple[bool, bool]:
        """Are the gradients of weights computed with those of inputs: in the first stage, in the last?"""
        if not pipe.schedule.splits_backward:
            return True, True
        key = "joins", grain.recompute, pipe.schedule, pipe.pp * pipe.virtual_stages

        def joins() -> tuple[bool, bool]:
            case = self._piped_case(replace(pipeline_of(pipe), recompute=grain.recompute), pipe.micro_batches)
            return joins_weights(case, 0), joins_weights(case, case.layout.stages - 1)

        return self.memo.once(key, joins)

    def _formats(self, engine: Engine) -> Formats:
        plain, precision = Grain(1, 1, ContextMethod.RING, 1, Recompute()), self.space.asked.base.workload.precision
        return self.memo.once(("formats", engine), lambda: formats(precision, self.works.layout(plain, engine)))

    def _moment_bytes(self, of: Formats) -> int:
        return MOMENTS.get(self.space.asked.base.workload.optimizer, 0) * of.optimizer.nbytes

    def _copied_seconds(self, spread: Spread, micro_batches: int) -> float:
        """Of a parameter and a micro-batch: what is copied out of gathers and into reductions, and added up."""
        engine, is_each = engine_of(spread), spread.reduction is Reduction.MICRO_BATCH
        key = "copied", engine, spread.reshard_after_forward, is_each, micro_batches
        return self.memo.once(key, lambda: self._copied(engine, spread, is_each, micro_batches))

    def _slowdown(self, engine: Engine) -> float:
        assert self.prices is not None
        prices, grain = self.prices, self.space.first_grain
        return self.memo.once("slowdown", lambda: prices.slowdown(self.works.case(grain, engine)))

    def _copied(self, engine: Engine, spread: Spread, is_each: bool, micro_batches: int) -> float:
        assert self.prices is not None
        of, nbytes = self._formats(engine), 0.0
        if engine is Engine.SHARDED:
            compute = of.numerics.weights.nbytes
            nbytes += 2 * compute * (2 if spread.reshard_after_forward else 1) + compute + of.reduced.nbytes
        if not (engine is Engine.SHARDED and is_each):
            nbytes += 3 * of.gradients.nbytes * (micro_batches - 1) / micro_batches
        case = self.works.case(self.space.first_grain, engine)
        return self.prices.moved_seconds(case, nbytes * MANY) / MANY if nbytes else 0.0

    def _exchanged(self, grain: Grain, pp: int, spread: Spread) -> Exchanged:
        key = "exchanged", grain.tp, grain.cp, grain.ep, pp, spread.dp, spread.fsdp, spread.zero
        return self.memo.once(key, lambda: self._exchange(grain, pp, spread))

    def _exchange(self, grain: Grain, pp: int, spread: Spread) -> Exchanged:
        assert self.prices is not None
        engine = engine_of(spread)
        layout = Layout(pp=pp, dp=spread.dp, fsdp=spread.fsdp, ep=grain.ep, cp=grain.cp, tp=grain.tp)
        price = self.prices.message_seconds(self.works.case(grain, engine), layout)
        return exchanged(layout, self.works.parameters(), self.works.experts, self._formats(engine), price)

    def _stages(self, pipe: Pipe) -> Any:
        """[ranks, stages of each]: in forward order."""
        import numpy as np

        key = "ranks", pipe.pp, pipe.schedule, pipe.virtual_stages

        def stages() -> Any:
            layout = pipeline_of(pipe)
            return np.array([stages_of_rank(layout, place) for place in range(pipe.pp)])

        return self.memo.once(key, stages)

    def _edges(self, grain: Grain, pipe: Pipe, engine: Engine) -> list[int]:
        """Where each stage starts among the segments, and where the last ends."""
        work = self.works.of(grain, engine)
        if pipe.pp == 1:
            return [0, len(work.whole) - 1]
        key = "edges", grain.recompute, pipe.pp * pipe.virtual_stages, len(work.whole)
        return self.memo.once(key, lambda: self._stage_edges(grain, pipe, work))

    def _stage_edges(self, grain: Grain, pipe: Pipe, work: Work) -> list[int]:
        layout = replace(pipeline_of(pipe), recompute=grain.recompute)
        if "stage_split" in self.space.others:
            layout = replace(layout, stage_split=self.space.others["stage_split"])
        case = self._piped_case(layout, pipe.micro_batches)
        edges = [work.first_block + end for end in accumulate(block_counts(case), initial=0)]
        return [0, *edges[1:-1], len(work.whole) - 1]

    def _piped_case(self, layout: Layout, micro_batches: int) -> Case:
        """With a pipeline and nothing else."""
        base = self.space.asked.base
        workload = replace(base.workload, micro_batches=micro_batches)
        return replace(base, layout=layout, workload=workload, cluster=replace(base.cluster, nodes=1, per_node=0))

    def _instants(self, pipe: Pipe) -> tuple[Any, Any, Any]:
        """Of the first rank: how many micro-batches are in flight in each of its stages, which of them have gradients
        that wait, and which is just through with a backward pass, at instants that none other is above: [instants,
        stages] each."""
        count = pipe.micro_batches
        kept = count if pipe.schedule is Schedule.GPIPE else kept_of(count, pipe.pp)
        key = "instants", pipe.pp, pipe.schedule, pipe.virtual_stages, kept

        def instants() -> tuple[Any, Any, Any]:
            import numpy as np

            flying, done, used = np.split(instants_of(pipe, kept), 3, axis=1)
            return flying, done > 0, used > 0

        return self.memo.once(key, instants)
