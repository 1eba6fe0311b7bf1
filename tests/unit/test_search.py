"""A search's answers are those of each case alone, and those of a step that is walked event by event."""

from __future__ import annotations

from itertools import accumulate, product
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from memory import scripts
from memory.estimate import MemoryModel, representative_ranks
from memory.pipeline_words import length_of, table_of, word_of, written
from memory.search import Search
from suite.case import Case, case_from
from suite.layout import Schedule
from suite.parse import SpecError
from suite.share import share_of

pytestmark = pytest.mark.unit

MODEL = {"layers": 9, "hidden": 16, "heads": 4, "ffn": 24, "vocab": 37, "max_positions": 32}
#: shared by every example, so that an answer that is kept too long is found
SEARCH = Search()

PIPELINES = [
    ("1f1b", 1),
    ("gpipe", 1),
    ("interleaved-1f1b", 2),
    ("interleaved-zero-bubble", 2),
    ("zbv", 2),
    ("dualpipev", 2),
]
MODELS = st.fixed_dictionaries({
    "layers": st.integers(1, 13), "kv_heads": st.sampled_from([1, 4]), "tied": st.booleans(),
    "position": st.sampled_from(["rope", "learned"]), "norm": st.sampled_from(["rmsnorm", "layernorm"]),
})  # fmt: skip
LAYOUTS = st.fixed_dictionaries({
    "dp": st.sampled_from([1, 2, 3]), "tp": st.sampled_from([1, 2]), "cp": st.sampled_from([1, 1, 2]),
    "recompute": st.sampled_from(["none", "selective", "full", "every-2", "every-3"]),
    "bucket_mib": st.just(0),
})  # fmt: skip
SHARDED = st.fixed_dictionaries({
    "fsdp": st.sampled_from([2, 3, 8]), "reshard_after_forward": st.sampled_from([True, False, 2]),
    "forward_prefetch": st.integers(0, 3), "backward_prefetch": st.integers(0, 3),
    "reduce_type": st.sampled_from(["fp32", "bf16"]),
})  # fmt: skip
WORK = st.fixed_dictionaries({
    "micro_batch": st.integers(1, 2), "micro_batches": st.sampled_from([1, 2, 3, 4, 8, 12, 16]),
    "seq_len": st.sampled_from([16, 32]), "precision": st.sampled_from(["fp32", "bf16-mixed"]),
    "loss": st.sampled_from(["plain", "chunked"]), "optimizer": st.sampled_from(["adamw", "sgd"]),
})  # fmt: skip


def drawn(model: dict[str, Any], layout: dict[str, Any], work: dict[str, Any], device: str) -> Case:
    try:
        return case_from({"model": MODEL | model, "layout": layout, "workload": work, "cluster": {"device": device}})
    except SpecError:
        assume(False)
        raise


@settings(max_examples=120, deadline=None)
@given(
    model=MODELS, layout=LAYOUTS, sharded=st.none() | SHARDED, pipeline=st.none() | st.sampled_from(PIPELINES),
    pp=st.integers(2, 4), work=WORK, device=st.sampled_from(["cpu", "h100-sxm"]),
)  # fmt: skip
def test_a_search_gives_what_each_case_gives_alone(
    model: dict[str, Any], layout: dict[str, Any], sharded: dict[str, Any] | None, pipeline: tuple[str, int] | None,
    pp: int, work: dict[str, Any], device: str,
) -> None:  # fmt: skip
    """To the byte, and as the terms of the fullest rank add up."""
    stages = {} if pipeline is None else {"pp": pp, "schedule": pipeline[0], "virtual_stages": pipeline[1]}
    if pipeline is not None:
        work = work | {"micro_batches": pp * work["micro_batches"]}
    case = drawn(model, layout | (sharded or {}) | stages, work, device)
    alone = MemoryModel(case)
    peaks = {rank: alone.peak_bytes(rank) for rank in representative_ranks(case.layout)}
    fullest = max(peaks, key=peaks.__getitem__)
    assert SEARCH.peak_bytes(case) == peaks[fullest] == alone.estimate(fullest).peak_bytes


@settings(max_examples=40, deadline=None)
@given(model=MODELS, layout=LAYOUTS, sharded=SHARDED, work=WORK, pp=st.sampled_from([1, 1, 2]))
def test_what_is_written_once_repeats_to_the_byte(
    model: dict[str, Any], layout: dict[str, Any], sharded: dict[str, Any], work: dict[str, Any], pp: int
) -> None:
    """Blocks folded or each gathered for itself: the same events; and their levels are those of the folded step."""
    pipeline = {"pp": pp, "schedule": "gpipe"} if pp > 1 else {}
    case = drawn(model, layout | sharded | pipeline, work, "h100-sxm")
    folded = MemoryModel(case).step(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scripts, "repeating_of", lambda form: [])
        whole = MemoryModel(case).step(0)
    assert [[event.nbytes for event in each.phase.events] for each in folded.stretches] == [
        [event.nbytes for event in each.phase.events] for each in whole.stretches
    ]
    levels = list(accumulate((event.nbytes for each in whole.stretches for event in each.phase.events), initial=0))
    assert (folded.highest, folded.after_backward) == (max(levels), levels[-1])


@pytest.mark.parametrize("schedule", Schedule)
@pytest.mark.parametrize("pp", [2, 3, 8])
def test_a_schedule_of_many_micro_batches_is_one_of_few_with_a_stretch_put_in(schedule: Schedule, pp: int) -> None:
    """Whatever letters leave: the highest level and the last one of the table are those of the word written out."""
    sizes = np.random.default_rng(0)
    stages = schedule.stages_a_rank[0]
    for count, reshards in product(range(pp * stages, max(26, 4 * pp + 1)), (True, False)):
        layout = {
            "pp": pp,
            "schedule": schedule,
            "virtual_stages": stages,
            "fsdp": 2,
            "reshard_after_forward": reshards,
        }
        try:
            case = case_from({"model": MODEL, "layout": layout, "workload": {"seq_len": 16, "micro_batches": count}})
        except SpecError:
            continue
        pipeline = SEARCH.model(case).pipeline(share_of(case.layout, 0))
        length = length_of(pipeline)
        if length.written == count:
            continue
        for place in range(pp):
            word, whole = word_of(pipeline, place, length), table_of(written(pipeline, place, count))
            order = [word.letters.index(letter) for letter in whole.letters]
            assert len(order) == len(word.letters)
            counts, end = (of + (length.turns - 1) * more for of, more in [
                (word.counts, word.more), (word.end, word.end_more)])  # fmt: skip
            for _ in range(3):
                nets, own = sizes.integers(-50, 50, len(order)), sizes.integers(0, 99, len(order))
                of_whole = (whole.counts @ nets + own[whole.own]).max(), whole.end @ nets
                back = np.argsort(order)
                of_word = (counts @ nets[back] + own[back][word.own]).max(), end @ nets[back]
                assert of_word == of_whole, (count, place)


CHANGES: list[dict[str, dict[str, Any]]] = [
    {}, *({"layout": {name: value}} for name, value in [
        ("dp", 8), ("tp", 2), ("cp", 2), ("fsdp", 4), ("fsdp", 3), ("recompute", "full"), ("recompute", "selective"),
        ("reshard_after_forward", False), ("forward_prefetch", 2), ("backward_prefetch", 0), ("reduce_type", "bf16"),
        ("offload", "parameters"), ("schedule", "gpipe"), ("stage_split", "even"), ("sequence_parallel", False),
        ("reduction", "micro-batch"), ("bucket_mib", 1), ("zero", 1),
    ]),
    *({"workload": {name: value}} for name, value in [
        ("seq_len", 16), ("micro_batch", 2), ("micro_batches", 12), ("precision", "fp32"), ("attention", "eager"),
        ("loss", "chunked"), ("optimizer", "sgd"),
    ]),
    {"model": {"hidden": 32}}, {"model": {"tied": True}}, {"cluster": {"device": "cpu"}},
    {"recipe": {"weight_decay": 0.0}},
]  # fmt: skip


@pytest.mark.parametrize("base", [
    {"dp": 2, "fsdp": 8}, {"dp": 2, "fsdp": 8, "pp": 2}, {"dp": 9, "engine": "torch"}, {"dp": 5, "pp": 2},
])  # fmt: skip
def test_nothing_is_kept_under_too_short_a_key(base: dict[str, Any]) -> None:
    """One setting changed at a time, and every two: a search that has seen the others answers as one that has not."""
    search = Search()
    for index, first in enumerate(CHANGES):
        for second in CHANGES[index:]:
            parts: dict[str, Any] = {
                "layout": {**base}, "workload": {"seq_len": 32, "micro_batches": 8, "optimizer": "sgd"},
                "model": {**MODEL}, "cluster": {"device": "h100-sxm"}, "recipe": {},
            }  # fmt: skip
            for change in (first, second):
                for part, values in change.items():
                    parts[part] |= values
            if second in ({}, first) or index in (0, 1, 4, 20):
                try:
                    case = case_from(parts)
                except SpecError:
                    continue
                ranks = representative_ranks(case.layout)
                assert search.peak_bytes(case) == max(map(MemoryModel(case).peak_bytes, ranks)), parts
