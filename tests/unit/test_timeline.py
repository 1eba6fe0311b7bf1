"""The timeline of a step: at every moment what the estimate says, nowhere above its peak, thinned without losing it."""

from __future__ import annotations

from itertools import pairwise

import pytest

from memory import timeline
from memory.estimate import MemoryModel
from suite.case import Case, case_from
from suite.record import Component, Moment

pytestmark = pytest.mark.unit

TINY = {
    "family": "decoder", "name": "tiny", "layers": 4, "hidden": 32, "heads": 4, "ffn": 64, "vocab": 64,
    "max_positions": 64,
}  # fmt: skip
LAYOUTS = [
    {},
    {"dp": 2, "recompute": "full"},
    {"fsdp": 2},
    {"fsdp": 2, "reduction": "micro-batch", "reshard_after_forward": False},
    {"dp": 2, "zero": 0, "engine": "deepspeed"},
    {"dp": 2, "zero": 2},
    {"dp": 2, "zero": 3},
    {"tp": 2},
    {"pp": 2},
    {"pp": 2, "schedule": "zbv", "virtual_stages": 2},
    {"pp": 2, "fsdp": 2},
    {"tp": 2, "recompute": "selective-op"},
]


def case_of(layout: dict[str, object], **workload: object) -> Case:
    work = {"seq_len": 32, "micro_batches": 4, **workload}
    return case_from({"model": TINY, "layout": layout, "workload": work})


CASES = [
    *((layout, {}) for layout in LAYOUTS),
    *((layout, {"optimizer": "sgd", "precision": "fp32"}) for layout in LAYOUTS),
    *(({"dp": 2}, {"optimizer": name}) for name in ("adafactor", "adam-8bit", "muon")),
]


@pytest.mark.parametrize("layout, workload", CASES, ids=str)
def test_at_every_moment_it_is_the_estimate(layout: dict[str, object], workload: dict[str, object]) -> None:
    model = MemoryModel(case_of(layout, **workload))
    for rank in range(model.case.layout.world_size):
        line, estimate = timeline.timeline_of(model, rank), model.estimate(rank)
        known = {moment: parts for moment, parts in estimate.by_moment.items() if moment is not Moment.INIT}
        assert line.moments.keys() == known.keys()
        for moment, parts in known.items():
            here = {part: sizes[line.moments[moment]] for part, sizes in line.nbytes.items()}
            assert {part: size for part, size in here.items() if size} == {p: s for p, s in parts.items() if s}, moment
        assert max(line.totals) == max(sum(parts.values()) for parts in known.values())


def test_a_step_begins_and_ends_with_what_is_held() -> None:
    line = timeline.timeline_of(MemoryModel(case_of({"fsdp": 2})))
    assert line.totals[0] == line.totals[-1]
    assert all(earlier <= later for earlier, later in pairwise(line.at))
    assert line.nbytes[Component.ACTIVATIONS][0] == 0


def test_the_phases_cover_the_step_in_order() -> None:
    line = timeline.timeline_of(MemoryModel(case_of({}, micro_batches=2)))
    forward, loss, backward = Moment.FORWARD_PEAK, Moment.LOSS, Moment.BACKWARD_PEAK
    names = [span.window for span in line.spans]
    assert names == [forward, loss, backward, forward, loss, backward, Moment.OPTIMIZER_PEAK]
    ends = [span.until for span in line.spans]
    assert ends == sorted(set(ends))
    assert ends[-1] == line.at[-1]
    assert line.at[line.moments[Moment.AFTER_BACKWARD]] == ends[-2]


def test_gradients_grow_until_there_is_one_for_each_parameter() -> None:
    line = timeline.timeline_of(MemoryModel(case_of({}, micro_batches=1)))
    gradients, after = line.nbytes[Component.GRADIENTS], line.moments[Moment.AFTER_BACKWARD]
    assert gradients[after] == line.nbytes[Component.PARAMETERS][after]  # both fp32
    assert all(earlier <= later for earlier, later in pairwise(gradients[: after + 1]))
    assert len(set(gradients)) > 4  # a block at a time
    assert gradients[-1] == 0


def test_thinning_keeps_the_top_and_the_moments(monkeypatch: pytest.MonkeyPatch) -> None:
    model = MemoryModel(case_of({"pp": 2}))
    monkeypatch.setattr(timeline, "MOST_POINTS", 10**9)
    whole = timeline.timeline_of(model)
    monkeypatch.setattr(timeline, "MOST_POINTS", 10)
    thin = timeline.timeline_of(model)
    assert len(thin.at) <= 10 + len(Moment) + 2 < len(whole.at)
    assert max(thin.totals) == max(whole.totals)
    every = -(-len(whole.at) // 10)
    tops = {max(whole.totals[start : start + every]) for start in range(0, len(whole.at), every)}
    assert tops <= set(thin.totals)
    for moment, place in whole.moments.items():
        assert thin.totals[thin.moments[moment]] == whole.totals[place]
