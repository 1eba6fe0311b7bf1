"""Made-up layouts of one run: who takes how long and holds how much, so that winners can be told by hand."""

from __future__ import annotations

from reports.compare import CaseResult, Run
from reports.side_by_side.groups import Group, SideBySide, lay_side_by_side
from reports.side_by_side.wins import Win, wins
from reports.summary import compare_run
from suite.cache import CacheDtype, CacheSpec
from suite.case import Case
from suite.collectives import Collective, Message, TrafficEstimate
from suite.layout import Layout, Schedule
from suite.record import CacheTerm, Moment, Quantity, Sample, ServingEstimate
from suite.serving import Serving
from suite.spec import Workload
from tests.unit import report_samples as made

STEADY = [1.0, 1.0, 1.0]  # warm-up


def case(layout: Layout, **work: object) -> Case:
    """Eight sequences a step, however the layout divides them."""
    return made.case(layout=layout, workload=Workload(seq_len=64, micro_batch=8 // layout.data_ranks, **work))  # type: ignore[arg-type]


def result(
    of: Case, seconds: list[float], nbytes: int, *, promised: float = 1.0, said: int | None = None, sent: int = 0
) -> CaseResult:
    """A case that took these steps, held and sent so much, and was promised `promised` seconds and `said` bytes."""
    samples = made.memory_samples({Moment.LOSS: {made.P: nbytes}}) + made.series(Quantity.STEP_TIME, STEADY + seconds)
    samples += made.series(Quantity.LOSS, [4.0, 3.0])
    samples += [Sample(Quantity.BYTES_SENT, sent, 0, collective=Collective.ALL_REDUCE)]
    memory = (made.estimate({Moment.LOSS: {made.P: nbytes if said is None else said}}),)
    message = Message(Collective.ALL_REDUCE, "dp", 2, sent, 1, "gradients", "made", "up")
    return CaseResult(
        of, memory, made.time_estimate(of, promised), made.measured(of, samples), traffic=(TrafficEstimate((message,)),)
    )


def laid(*results: CaseResult) -> SideBySide:
    return lay_side_by_side(compare_run(Run("r", "now", "s", "bench", {}, results)))


DP, FSDP, TP, PP = Layout(dp=2), Layout(fsdp=2), Layout(tp=2), Layout(pp=2, schedule=Schedule.GPIPE)


def four(**more: object) -> Group:
    """dp2 fastest, fsdp2 leanest, tp2 as fast as dp2 within noise, pp2 slow and large."""
    found = laid(
        result(case(DP), [0.10, 0.11, 0.12, 0.13, 0.14], 2000, promised=0.10, sent=100),
        result(case(FSDP), [0.24, 0.25, 0.26, 0.27, 0.28], 1000, promised=0.20, sent=300),
        result(case(TP), [0.11, 0.12, 0.13, 0.14, 0.15], 3000, promised=0.09, sent=100),
        result(case(PP), [0.90, 0.91, 0.92, 0.93, 0.94], 3000, promised=0.95, said=900, sent=200),
    )
    (group,) = found.groups
    return group


def served(dtype: CacheDtype, seconds: float, nbytes: int) -> CaseResult:
    """A served case whose cache holds so much and whose token takes so long; a tenth more was promised."""
    work = Workload(seq_len=32, micro_batch=2)
    of = made.case("llama-1m", workload=work, serving=Serving(new_tokens=3), cache=CacheSpec(cache_dtype=dtype))
    samples = [Sample(Quantity.CACHE, nbytes, 0, component=made.Component.KEYS)]
    samples += made.series(Quantity.DECODE_TIME, [seconds] * 12) + made.series(Quantity.PREFILL_TIME, [0.5] * 6)
    estimate = ServingEstimate((CacheTerm(made.Component.KEYS, nbytes, "f", "s"),), 0.5, seconds * 1.1)
    return CaseResult(of, measurement=made.measured(of, samples), serving=estimate)


def by_title(group: Group) -> dict[str, Win]:
    return {win.criterion.title: win for win in wins(group)}


def named(win: Win) -> list[str]:
    return [choice.name for choice in win.winners]
