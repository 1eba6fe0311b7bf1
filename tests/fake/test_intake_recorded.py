"""What torch itself records on this machine, taken in: a profile, its memory timelines, its page of a snapshot."""

from __future__ import annotations

import gzip
import json
import warnings
from pathlib import Path

import pytest
import torch
from torch.cuda._memory_viz import profile_plot
from torch.profiler import ProfilerActivity, profile

from memory.estimate import MemoryModel
from reports.intake.kineto import read_traces
from reports.intake.memory_timeline import read_timelines
from reports.intake.packed import read_documents
from reports.intake.snapshot import read_snapshots
from suite.case import Case, case_from
from suite.models.decoder import DecoderSpec
from suite.models.decoder_module import Decoder
from suite.parse import to_mapping
from suite.record import Component, Moment, Quantity

pytestmark = pytest.mark.fake
STEPS = 6
BATCH, LENGTH = 2, 32


@pytest.fixture(scope="module")
def case() -> Case:
    spec = DecoderSpec(layers=2, hidden=32, heads=4, ffn=64, vocab=256, max_positions=64)
    workload = {
        "seq_len": LENGTH, "micro_batch": BATCH, "precision": "fp32", "optimizer": "adamw", "optimizer_kernel": "fused",
    }  # fmt: skip
    return case_from({"model": to_mapping(spec), "workload": workload, "cluster": {"device": "cpu"}})


def recorded(case: Case, steps: int, stacks: bool) -> profile:
    """A profile of a few steps, the model made inside."""
    torch.manual_seed(0)
    with profile(
        activities=[ProfilerActivity.CPU], profile_memory=True, record_shapes=stacks, with_stack=stacks
    ) as found:
        model = Decoder(case.model)
        optimizer = torch.optim.AdamW(model.parameters(), fused=True)
        for _ in range(steps):
            tokens = torch.randint(0, 256, (BATCH, LENGTH + 1))
            loss = model(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous())
            del tokens
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            del loss
            found.step()
    return found


@pytest.fixture(scope="module")
def trace(case: Case, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A trace of STEPS steps."""
    path = tmp_path_factory.mktemp("trace") / "trace.json.gz"
    recorded(case, STEPS, stacks=False).export_chrome_trace(str(path))
    return str(path)


@pytest.fixture(scope="module")
def folder(case: Case, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of two steps, the second with the optimizer's state, the memory timeline in its two forms, and torch's page."""
    where = tmp_path_factory.mktemp("recorded")
    found = recorded(case, 2, stacks=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        found.export_memory_timeline(str(where / "timeline.json.gz"), "cpu")
        found.export_memory_timeline(str(where / "timeline.raw.json.gz"), "cpu")
    (where / "page.html").write_text(profile_plot(found))
    return where


def known_before(trace: str) -> int:
    """Bytes that torch's profiler counts from the start: those alive that earlier profiles of this process, other
    tests' among them, saw allocated."""
    events = json.loads(gzip.decompress(Path(trace).read_bytes()))["traceEvents"]
    first = min((event for event in events if event["name"] == "[memory]"), key=lambda event: event["ts"])
    return int(first["args"]["Total Allocated"] - first["args"]["Bytes"])


def test_the_trace_s_peak_is_the_estimate_s(case: Case, trace: str) -> None:
    reading, before = read_traces(read_documents(trace)), known_before(trace)
    found = {sample.moment: sample.value for sample in reading.samples if sample.quantity is Quantity.MEMORY}
    estimate = MemoryModel(case).estimate(0)
    for moment in (Moment.BACKWARD_PEAK, Moment.OPTIMIZER_PEAK, Moment.LOSS):
        assert found[moment] - before == pytest.approx(estimate.total_bytes(moment), rel=0.01)
    assert reading.least_bytes[0] >= estimate.by_moment[Moment.STEADY][Component.PARAMETERS]


def test_the_trace_s_parts_sum_to_a_step_that_was(trace: str) -> None:
    reading = read_traces(read_documents(trace))
    times = [sample.value for sample in reading.samples if sample.quantity is Quantity.STEP_TIME]
    assert len(times) == STEPS - 1 - 2  # between the optimizer's steps, less those numbered 1 and 2
    assert sum(reading.parts_seconds.values()) in [pytest.approx(value) for value in times]
    assert reading.parts_seconds["compute"] > 0


def test_both_forms_of_the_timeline_peak_alike_and_hold_the_parameters(case: Case, folder: Path) -> None:
    estimate = MemoryModel(case).estimate(0)
    whole = read_timelines(read_documents(str(folder / "timeline.json.gz")))
    raw = read_timelines(read_documents(str(folder / "timeline.raw.json.gz")))
    assert whole.samples[0].value == pytest.approx(raw.samples[0].value, rel=0.02)
    found = {sample.component: sample.value for sample in whole.samples}
    assert found[None] == sum(value for component, value in found.items() if component)
    assert found[None] == pytest.approx(estimate.peak_bytes, rel=0.05)
    assert found[Component.PARAMETERS] == estimate.by_moment[Moment.STEADY][Component.PARAMETERS]


def test_torch_s_own_page_is_read_without_pickle(case: Case, folder: Path) -> None:
    (document,) = read_documents(str(folder / "page.html"))
    assert set(document.data) == {"device_traces", "segments"}
    (sample, *_) = read_snapshots([document]).samples
    timeline = read_timelines(read_documents(str(folder / "timeline.raw.json.gz"))).samples[0]
    assert sample.value == pytest.approx(timeline.value, rel=0.02)
    again = folder / "again.json"
    again.write_text(json.dumps(document.data))
    assert read_documents(str(again))[0].data == document.data
