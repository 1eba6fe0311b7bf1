"""A worker that trains nothing: it writes rows, and ends in the way that its case's recipe.data names.

`behaviour@rank` misbehaves on that rank while the others wait for it, as ranks in a collective do. Torch-free.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from suite.case import Case, case_from
from suite.environment import environment
from suite.ranklog import FailureKind, RankWriter
from suite.record import Component, Moment, Quantity, Sample

FOREVER_S = 600


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("case", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--timeout", type=float)
    parser.add_argument("--rows", default="gathered")
    parser.add_argument("--passes")
    options = parser.parse_args()
    data = json.loads(options.case.read_text())
    for item in data if isinstance(data, list) else [data]:
        case = case_from(item)
        folder = options.out / case.case_id if isinstance(data, list) else options.out
        writer = write_rows(case, folder)
        BEHAVIOURS[case.recipe.data.partition("@")[0]](writer, folder)
        writer.done()
        if isinstance(data, list):  # ranks end a case together
            wait_for_the_others(folder, case.layout.world_size, "done")
        print(f"rank {writer.rank} has finished", file=sys.stderr)


def write_rows(case: Case, folder: Path) -> RankWriter:
    """Some rows; on a rank that does not misbehave while another does, the last that it does."""
    rank = int(os.environ["RANK"])
    writer = RankWriter(folder, rank)
    if rank == 0:
        threads = os.environ["OMP_NUM_THREADS"]
        writer.environment({**environment(), "threads": threads, "torch": "torch" in sys.modules})
    for step in range(case.recipe.steps):
        writer.heartbeat(f"step {step}")
        writer.sample(Sample(Quantity.STEP_TIME, 0.25 + step, rank, step))
    writer.sample(Sample(Quantity.MEMORY, 1e6, rank, 0, Component.PARAMETERS, Moment.INIT))
    where = case.recipe.data.partition("@")[2]
    if where and int(where) != rank:
        time.sleep(FOREVER_S)
    if where:
        wait_for_the_others(folder, case.layout.world_size)
    return writer


def wait_for_the_others(folder: Path, ranks: int, word: str = "memory_bytes") -> None:
    """Until every rank has written that: what goes wrong then ends ranks that have something to lose. Rows of another
    machine are not here to be seen."""
    if os.environ.get("GROUP_WORLD_SIZE", "1") != "1":
        return
    deadline = time.monotonic() + 60
    paths = [folder / f"rank-{rank}.jsonl" for rank in range(ranks)]
    while not all(path.exists() and word in path.read_text() for path in paths):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def ok(writer: RankWriter, folder: Path) -> None:
    """Nothing goes wrong."""


def error(writer: RankWriter, folder: Path) -> None:
    """Python ends with a long traceback, and leaves a child of its own behind."""
    detach(folder)
    deep(30)


def deep(depth: int) -> None:
    if depth:
        deep(depth - 1)
    raise ValueError("the weights\nare upside down")


def oom(writer: RankWriter, folder: Path) -> None:
    """An allocation fails, and the rank says so before it ends."""
    try:
        bytearray(1 << 62)
    except MemoryError:
        writer.failure(FailureKind.OOM, f"out of memory: asked for {1 << 62} bytes")
        sys.exit(1)


def kill(writer: RankWriter, folder: Path) -> None:
    """Killed while it writes a row."""
    with (folder / f"rank-{writer.rank}.jsonl").open("a") as file:
        file.write('{"sample": {"quant')
    os.kill(os.getpid(), signal.SIGKILL)


def hang(writer: RankWriter, folder: Path) -> None:
    """Waits for ever, deaf to SIGTERM, with a child in a session of its own."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    detach(folder)
    time.sleep(FOREVER_S)


def hang_once(writer: RankWriter, folder: Path) -> None:
    """Hangs when it is run for the first time in a folder."""
    mark = folder / f"hung-{writer.rank}"
    if not mark.exists():
        mark.touch()
        hang(writer, folder)


def slow(writer: RankWriter, folder: Path) -> None:
    """Always a next step, never the last."""
    for step in range(FOREVER_S * 5):
        writer.heartbeat(f"slow step {step}")
        time.sleep(0.2)


def detach(folder: Path) -> None:
    """Start a process that leaves this one's session and ignores SIGTERM; write down who it is."""
    code = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
    child = subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
    (folder / f"detached-{child.pid}").touch()


BEHAVIOURS = {
    "": ok,
    "ok": ok,
    "error": error,
    "oom": oom,
    "kill": kill,
    "hang": hang,
    "hang-once": hang_once,
    "slow": slow,
}

if __name__ == "__main__":
    main()
