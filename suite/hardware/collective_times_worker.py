"""What `suite.hardware.collective_calibration` starts: reads one JSON request on standard input, prints one answer.

Ranks are forked from a process that has imported torch and started no threads, and meet in a file. A reading is a loop
of work and calls less a loop of the work alone, which every rank runs just before it.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from suite.collectives import Collective
from suite.environment import available_cores, others_cpu_seconds
from suite.hardware.collective_times import IN_A_ROW, Exchange, Form
from suite.hardware.matrix_rate_worker import collect

#: readings of each exchange, and the calls of one
READINGS, FEWEST_CALLS, MOST_CALLS = 7, 1, 60
#: seconds of work between two calls, as long as it takes alone: some operators of a small model
BETWEEN_S = 600e-6
#: side of the work's square matrices; operators and rounds of its timing
SIDE, CHAIN = 64, 10
FP32_BYTES = 4

Call = Callable[[], object]


def main() -> int:
    """Measure every exchange of the request."""
    import torch

    torch.set_num_threads(1)  # a fork after threads have been started may hang
    request = json.load(sys.stdin)
    exchanges = [exchange_from(row) for row in request["exchanges"]]
    start, others_before = time.monotonic(), others_cpu_seconds()
    seconds: dict[Exchange, list[float]] = {}
    for world in sorted({exchange.world for exchange in exchanges}):
        own = [exchange for exchange in exchanges if exchange.world == world]
        results = forked(world, measure, (own, request["slot_seconds"]))
        for index, exchange in enumerate(own):
            seconds[exchange] = [reading for result in results for reading in result[index]]
    others = (others_cpu_seconds() - others_before) / (time.monotonic() - start)
    rows = [seconds[exchange] for exchange in exchanges]
    print(json.dumps({"rows": rows, "between_seconds": BETWEEN_S, "other_cores": max(0.0, others)}))
    return 0


def exchange_from(row: Sequence[Any]) -> Exchange:
    """An exchange from its five fields."""
    collective, form, *sizes = row
    return Exchange(Collective(collective), Form(form), *sizes)


def forked(ranks: int, work: Callable[..., Any], arguments: tuple[Any, ...]) -> list[Any]:
    """What `work(*arguments)` returns on each of so many ranks of a gloo process group, in no order."""
    context = multiprocessing.get_context("fork")
    with tempfile.TemporaryDirectory() as folder:
        children, receivers = [], []
        for rank in range(ranks):
            receiver, sender = context.Pipe(duplex=False)
            given = (sender, rank, ranks, str(Path(folder) / "store"), work, arguments)
            child = context.Process(target=run_rank, args=given, daemon=True)
            child.start()
            sender.close()
            children.append(child)
            receivers.append(receiver)
        results = collect(receivers)
        for child in children:
            child.join()
    return results


def run_rank(
    sender: Connection[Any, Any],
    rank: int,
    ranks: int,
    store: str,
    work: Callable[..., Any],
    arguments: tuple[Any, ...],
) -> None:
    """One rank: meet the others, work, send what came of it, or what went wrong in a line."""
    import torch
    import torch.distributed as dist

    torch.set_num_threads(max(1, available_cores() // ranks))
    try:
        dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=ranks)
        result = work(*arguments)
        dist.barrier()
        sender.send(result)
    except Exception as error:  # whatever it is, the parent tells it in one line
        sender.send(f"{type(error).__name__}: {error}".splitlines()[0])
    sender.close()
    os._exit(0)  # gloo's threads may outlive the interpreter, which would then abort


def measure(exchanges: Sequence[Exchange], slot_seconds: float) -> list[list[float]]:
    """This rank's readings of each exchange, taken in turns, so that a busy spell spoils few of each."""
    groups = {size: own_group(size) for size in sorted({exchange.ranks for exchange in exchanges})}
    calls = [call_of(exchange, groups[exchange.ranks]) for exchange in exchanges]
    work = work_between(BETWEEN_S)
    betweens = [(lambda: None) if exchange.collective in IN_A_ROW else work for exchange in exchanges]
    pairs = list(zip(calls, betweens, strict=True))
    counts = [agreed_count(call, between, slot_seconds / READINGS) for call, between in pairs]
    taken: list[list[float]] = [[] for _ in calls]
    for _ in range(READINGS):
        for (call, between), count, into in zip(pairs, counts, taken, strict=True):
            into.append(reading(call, between, count))
    return taken


def reading(call: Call, between: Call, count: int) -> float:
    """Seconds that a call adds to the work between two of them."""
    alone = loop(between, lambda: None, count)
    return loop(between, call, count) - alone


def loop(between: Call, call: Call, count: int) -> float:
    """Seconds of one round; all ranks begin together, and the last one's end is the end: ranks that share cores do not
    get through the same work at the same time."""
    import torch.distributed as dist

    dist.barrier()
    start = time.perf_counter()
    for _ in range(count):
        between()
        call()
    dist.barrier()
    return (time.perf_counter() - start) / count


def agreed_count(call: Call, between: Call, seconds: float) -> int:
    """Calls of a reading that fills about so many seconds, the same on every rank: the first one's choice."""
    import torch
    import torch.distributed as dist

    loop(between, call, 2)  # the first call of a group connects its ranks
    took = loop(between, call, FEWEST_CALLS)
    count = torch.tensor([min(MOST_CALLS, max(FEWEST_CALLS, int(seconds / took)))])
    dist.broadcast(count, 0)
    return int(count)


def work_between(seconds: float) -> Call:
    """A small model's operators, forward and backward, that take about so long on a core of their own; the same number
    on every rank."""
    import torch
    import torch.distributed as dist
    from torch import nn

    x = torch.randn(4 * SIDE, SIDE, requires_grad=True)
    pair = nn.Sequential(nn.RMSNorm(SIDE), nn.Linear(SIDE, SIDE, bias=False))

    def operators(count: int) -> None:
        y = x
        for _ in range(count):
            y = y + pair(y)
        y.sum().backward()

    loop(lambda: operators(CHAIN), lambda: None, CHAIN)
    crowd = max(1.0, dist.get_world_size() / available_cores())
    alone = loop(lambda: operators(CHAIN), lambda: None, CHAIN) / crowd
    count = torch.tensor([max(1, round(seconds * CHAIN / alone))])
    dist.broadcast(count, 0)
    return lambda: operators(int(count))


def own_group(size: int) -> Any:
    """The group of this rank among groups of neighbours."""
    import torch.distributed as dist

    own, _ = dist.new_subgroups(size)
    return own


def call_of(exchange: Exchange, group: Any) -> Call:
    """One call as the strategies make it, on fp32 tensors that are there before."""
    import torch

    elements = max(1, exchange.payload_bytes // FP32_BYTES)
    padded = -(-elements // exchange.ranks) * exchange.ranks  # parts of one length
    whole, part = torch.zeros(padded), torch.zeros(padded // exchange.ranks)
    match exchange.form:
        case Form.DIRECT:
            return _direct(exchange.collective, group, whole[:elements], whole, part)
        case Form.FUNCTIONAL:
            return _functional(exchange.collective, group, whole, part)
        case Form.RING:
            return _ring(group, [torch.zeros(elements) for _ in range(4)])


def _direct(collective: Collective, group: Any, tensor: Any, whole: Any, part: Any) -> Call:
    import torch
    import torch.distributed as dist

    first = dist.get_global_rank(group, 0)
    other = torch.empty_like(whole)
    parts = list(whole.chunk(group.size())) if group.rank() == 0 else None
    match collective:
        case Collective.ALL_REDUCE:
            return lambda: dist.all_reduce(tensor, group=group)
        case Collective.ALL_GATHER:
            return lambda: dist.all_gather_into_tensor(whole, part, group=group)
        case Collective.REDUCE_SCATTER:
            return lambda: dist.reduce_scatter_tensor(part, whole, group=group)
        case Collective.ALL_TO_ALL:
            return lambda: dist.all_to_all_single(other, whole, group=group)
        case Collective.BROADCAST:
            return lambda: dist.broadcast(tensor, first, group=group)
        case Collective.REDUCE:
            return lambda: dist.reduce(tensor, first, group=group)
        case Collective.GATHER:
            return lambda: dist.gather(part, parts, first, group=group)
        case Collective.SCATTER:
            return lambda: dist.scatter(part, parts, first, group=group)
        case Collective.SEND:
            return _back_and_forth(group, tensor)


def _functional(collective: Collective, group: Any, whole: Any, part: Any) -> Call:
    """As in parallelism/tensor/regions.py, where the whole is copied into order: after a gather, before a scatter."""
    import torch

    operators, ranks, name = torch.ops._c10d_functional, group.size(), group.group_name

    def gathered() -> None:
        operators.wait_tensor(operators.all_gather_into_tensor(part, ranks, name)).clone()

    def scattered() -> None:
        operators.wait_tensor(operators.reduce_scatter_tensor(whole.clone(), "sum", ranks, name))

    match collective:
        case Collective.ALL_GATHER:
            return gathered
        case Collective.REDUCE_SCATTER:
            return scattered
    raise ValueError(f"{collective}: no strategy calls it by its functional operator")


def _back_and_forth(group: Any, tensor: Any) -> Call:
    """To the next rank, or from the one before, in turns: what one message adds to the two ranks that it joins."""
    import torch.distributed as dist

    ranks = dist.get_process_group_ranks(group)
    place = group.rank()
    peer = ranks[place ^ 1] if place ^ 1 < len(ranks) else None
    sends = [place % 2 == 0]

    def once() -> None:
        if peer is not None:
            work = dist.isend(tensor, peer, group=group) if sends[0] else dist.irecv(tensor, peer, group=group)
            assert work is not None
            work.wait()
        sends[0] = not sends[0]

    return once


def _ring(group: Any, tensors: Sequence[Any]) -> Call:
    """What parallelism/context/ring.py does: two tensors on, two in, in one batch."""
    import torch.distributed as dist

    ranks, rank = group.size(), group.rank()

    def once() -> None:
        pairs: Iterable[tuple[Any, Any, int]] = (
            (dist.isend, tensors[:2], rank + 1),
            (dist.irecv, tensors[2:], rank - 1),
        )
        messages = [
            dist.P2POp(way, tensor, group=group, tag=tag, group_peer=peer % ranks)
            for way, moved, peer in pairs
            for tag, tensor in enumerate(moved)
        ]
        for work in dist.batch_isend_irecv(messages):
            work.wait()

    return once


if __name__ == "__main__":
    sys.exit(main())
