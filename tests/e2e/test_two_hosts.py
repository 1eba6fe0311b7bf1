"""Two hosts joined by a slow link train for real: one `bench` on each, or one plain torchrun on each."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from suite.case import Case, case_from
from suite.environment import ROOT
from suite.ranklog import read_rank
from suite.record import Component, Moment, Outcome, Quantity
from suite.store import EstimateRow, MeasurementRow, RunRow, RunStore
from tests.e2e.commands import command, processes, variables
from tests.e2e.namespaces import BITS_A_SECOND, Host, NoRight, two_hosts

pytestmark = pytest.mark.e2e

STEPS = 4
#: layouts that are trained over the link, FSDP2 first; half of the ranks on each host
LAYOUTS: tuple[dict[str, int], ...] = ({"fsdp": 2}, {"pp": 2}, {"dp": 2, "fsdp": 2})
PORT = 29_400


def case_of(layout: dict[str, int], nodes: int = 2, **recipe: Any) -> Case:
    """Four sequences a step on any layout."""
    micro_batches = layout.get("pp", 1)
    data_ranks = layout.get("dp", 1) * layout.get("fsdp", 1)
    batch = {"micro_batch": 4 // data_ranks // micro_batches, "micro_batches": micro_batches}
    return case_from(
        {
            "model": "gpt-1m",
            "layout": layout,
            "workload": {"seq_len": 32, "precision": "fp32"} | batch,
            "cluster": {"nodes": nodes},
            "recipe": {"steps": STEPS, "warmup_steps": 1, "tokenizer": "byte"} | recipe,
        }
    )


@pytest.fixture(scope="module")
def hosts() -> Iterator[tuple[Host, Host]]:
    try:
        with two_hosts() as pair:
            yield pair
    except NoRight as missing:
        pytest.skip(f"no network namespaces here: {missing}")


def on_each(hosts: tuple[Host, Host], words: list[list[str]]) -> list[subprocess.CompletedProcess[str]]:
    """Run a command on each host at once."""
    pipe, environment = subprocess.PIPE, variables(OMP_NUM_THREADS="1")
    started = [
        subprocess.Popen(host.inside(*line), stdout=pipe, stderr=pipe, text=True, env=environment, cwd=ROOT)
        for host, line in zip(hosts, words, strict=True)
    ]
    try:
        ended = [(process, *process.communicate(timeout=200)) for process in started]
    finally:
        for process in started:
            process.kill()
    return [subprocess.CompletedProcess(process.args, process.returncode, out, err) for process, out, err in ended]


def test_a_bench_on_each_host(hosts: tuple[Host, Host], tmp_path: Path) -> None:
    alone, shared = case_of({}, nodes=1), [case_of(layout) for layout in LAYOUTS]
    cases = [alone, *shared]
    store = RunStore.create(tmp_path)  # begun already, without rates: going on with it starts at once
    store.append(RunRow("2026-08-02", "mine", tuple(case.to_mapping() for case in cases)))
    sent = [host.bytes_sent() for host in hosts]

    line = command("bench", "--resume", str(store.folder), "--rdzv", f"{hosts[0].address}:{PORT}", "--json")
    recorder, follower = on_each(hosts, [line, line])

    assert recorder.returncode == 0, recorder.stderr
    assert follower.returncode == 0, follower.stderr
    assert [case["outcome"] for case in json.loads(recorder.stdout)["cases"]] == ["ok"] * len(cases)
    assert f"node 1 of 2: runs its part; {hosts[0].address}:{PORT} records" in follower.stderr
    parts = json.loads(follower.stdout)["parts"]
    halves = [list(range(case.layout.world_size // 2, case.layout.world_size)) for case in shared]
    assert parts == [
        {"case_id": case.case_id, "ranks": half, "code": 0} for case, half in zip(shared, halves, strict=True)
    ]
    found = {row.measurement.case_id: row.measurement for row in store.rows(MeasurementRow)}
    assert len(store.rows(EstimateRow)) == len(cases)
    for case in shared:
        measurement = found[case.case_id]
        assert (measurement.outcome, measurement.ranks) == (Outcome.OK, tuple(range(case.layout.world_size)))
        for rank in measurement.ranks:
            assert len(measurement.values(Quantity.STEP_TIME, rank=rank)) == STEPS
            assert measurement.values(Quantity.MEMORY, rank=rank, component=Component.PARAMETERS, moment=Moment.INIT)
        single = found[alone.case_id].values(Quantity.LOSS)
        assert measurement.values(Quantity.LOSS) == pytest.approx(single, rel=1e-5)
    # Each host gathers the other's half of every weight, and reduces its half of every gradient, in every step.
    [parameters] = set(found[alone.case_id].values(Quantity.MEMORY, component=Component.PARAMETERS, moment=Moment.INIT))
    least = STEPS * parameters
    assert min(host.bytes_sent() - before for host, before in zip(hosts, sent, strict=True)) > least
    # the link is as slow as it is made: unshaped, a step takes a third of this
    assert min(found[shared[0].case_id].values(Quantity.STEP_TIME)) > parameters * 8 / BITS_A_SECOND
    assert processes(tmp_path) == []


def test_a_plain_torchrun_on_each_host(hosts: tuple[Host, Host], tmp_path: Path) -> None:
    cases = [case_of(LAYOUTS[0], steps=steps) for steps in (2, 3)]
    given = tmp_path / "cases.json"
    given.write_text(json.dumps([case.to_mapping() for case in cases]))
    folders = [tmp_path / host.name for host in hosts]
    where = ("--rdzv-backend", "c10d", "--rdzv-endpoint", f"{hosts[0].address}:{PORT + 1}")
    lines = []
    for host, folder in zip(hosts, folders, strict=True):
        names = ("--local-addr", host.address, "--rdzv-conf", f"is_host={int(host is hosts[0])}")
        worker = ("-m", "parallelism.worker", str(given), "--out", str(folder))
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1"]
        lines.append([*torchrun, *where, *names, *worker])
    for done in on_each(hosts, lines):
        assert done.returncode == 0, done.stderr
    for case in cases:
        for rank in (0, 1):  # the rows of both are where rank 0 is
            log = read_rank(folders[0] / case.case_id, rank)
            times = [sample for sample in log.samples if sample.quantity is Quantity.STEP_TIME]
            assert (len(times), log.done, log.fault) == (case.recipe.steps, True, "")
        assert [path.name for path in (folders[1] / case.case_id).iterdir()] == ["rank-1.jsonl"]
