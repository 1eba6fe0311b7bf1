"""The ranks of one torchrun: how they meet, agree that they were all given the same, and bring their rows together."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import psutil
import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from suite.case import Case
from suite.layout import Offload
from suite.parse import SpecError
from suite.ranklog import rows_path

#: ranks of one kind that a message names
RANKS_TOLD = 8


@dataclass(frozen=True)
class Place:
    """This rank's place, as torchrun tells it."""

    rank: int
    world: int
    node: int
    nodes: int

    @classmethod
    def from_environment(cls) -> Place:
        """A process that torchrun did not start is rank 0 of 1."""
        names = {"rank": "RANK", "world": "WORLD_SIZE", "node": "GROUP_RANK", "nodes": "GROUP_WORLD_SIZE"}
        alone = {"rank": 0, "world": 1, "node": 0, "nodes": 1}
        return cls(**{field: int(os.environ.get(name, alone[field])) for field, name in names.items()})


@dataclass(frozen=True)
class Facts:
    """What must be the same on every rank of a launch."""

    cases: str
    """ids of its cases, in order"""
    torch: str
    """torch's version"""


def meet(place: Place, facts: Facts | str, timeout: timedelta) -> dist.Store | None:
    """The store that the ranks share, once all of them have said the same; None for a rank alone.

    `facts` may be the reason why this rank cannot take part: it is told to all. Raises SpecError, the same on every
    rank, naming the ranks and nodes that differ, that cannot take part, or that do not come within `timeout`.
    """
    if place.world == 1:
        if isinstance(facts, str):
            raise SpecError(facts)
        return None
    store, _, _ = next(iter(rendezvous("env://", timeout=timeout)))
    said = {"node": place.node} | ({"error": facts} if isinstance(facts, str) else vars(facts))
    store.set(f"facts/{place.rank}", json.dumps(said))
    if place.rank == 0:
        store.set("verdict", _verdict(store, place.world, timeout))
    verdict = _read(store, "verdict", timeout * 2)
    if verdict is None:
        raise SpecError("rank 0: does not say whether all ranks were given the same")
    if verdict:
        raise SpecError(verdict)
    return store


@contextlib.contextmanager
def process_group(place: Place, store: dist.Store | None, case: Case, timeout: timedelta) -> Iterator[None]:
    """The default group for one case, none for a rank alone; a collective that takes longer than `timeout` raises."""
    if store is None:
        yield
        return
    if place.nodes > 1 and "GLOO_SOCKET_IFNAME" not in os.environ and (name := _interface()):
        os.environ["GLOO_SOCKET_IFNAME"] = name
    dist.init_process_group(
        _backend(case),
        store=dist.PrefixStore(case.case_id, store),
        rank=place.rank,
        world_size=place.world,
        timeout=timeout,
    )
    yield
    gc.collect()  # a model's cycles hold groups: they go while there is an interpreter, and before the next case
    dist.destroy_process_group()  # not after a failure: it would wait for ranks that are gone


def _backend(case: Case) -> str:
    """gloo on the CPU, NCCL on CUDA; both where FSDP2's gradients are in host memory, whose norm is reduced there."""
    if case.cluster.device == "cpu":
        return "gloo"
    return "cpu:gloo,cuda:nccl" if case.layout.offload is Offload.PARAMETERS else "nccl"


def gather_rows(place: Place, folder: Path) -> None:
    """Bring every rank's rows into rank 0's `folder`, so that no file system need be shared; a shared one has them."""
    mine = rows_path(folder, place.rank).read_text(encoding="ascii")
    gathered: list[str] | None = [""] * place.world if place.rank == 0 else None
    dist.gather_object(mine, gathered)
    for rank, rows in enumerate(gathered or []):
        path = rows_path(folder, rank)
        if not path.exists() or path.read_text(encoding="ascii") != rows:
            path.write_text(rows, encoding="ascii")


def _verdict(store: dist.Store, world: int, timeout: timedelta) -> str:
    """What is wrong with the ranks' facts, in one line; empty where nothing is. Every rank's are waited for."""
    said: dict[int, Mapping[str, object]] = {}
    left = timeout
    for rank in range(world):
        text = _read(store, f"facts/{rank}", left)
        if text is None:
            left = timedelta(milliseconds=10)  # the rest have had their time
            continue
        said[rank] = json.loads(text)
    if missing := [rank for rank in range(world) if rank not in said]:
        return f"{_ranks(missing)}: nothing heard within {timeout.total_seconds():g} s of the start"
    for rank, facts in said.items():
        if "error" in facts:
            return f"rank {rank} (node {facts['node']}): {facts['error']}"
    for name in ("cases", "torch"):
        if len(kinds := {facts[name] for facts in said.values()}) > 1:
            return _difference(name, {str(kind): _holders(said, name, kind) for kind in kinds})
    return ""


def _holders(said: Mapping[int, Mapping[str, object]], name: str, kind: object) -> str:
    """The ranks, with their nodes, whose fact this is."""
    ranks = [rank for rank, facts in said.items() if facts[name] == kind]
    nodes = sorted({str(said[rank]["node"]) for rank in ranks})
    return f"{_ranks(ranks)} (node{'s' if len(nodes) > 1 else ''} {', '.join(nodes[:RANKS_TOLD])})"


def _difference(name: str, holders: Mapping[str, str]) -> str:
    told = "; ".join(f"{who} {kind}" for kind, who in sorted(holders.items(), key=lambda pair: pair[1]))
    what = "give every machine the same cases" if name == "cases" else "install the same on every machine"
    return f"{name}: not the same on every rank: {told}; {what}"


def _ranks(ranks: Sequence[int]) -> str:
    shown = ", ".join(map(str, ranks[:RANKS_TOLD])) + (", ..." if len(ranks) > RANKS_TOLD else "")
    return f"rank{'s' if len(ranks) > 1 else ''} {shown}"


def _read(store: dist.Store, key: str, timeout: timedelta) -> str | None:
    """A key's text, None where it is not there in time."""
    try:
        store.wait([key], timeout)
    except dist.DistError:
        return None
    return bytes(store.get(key)).decode()


def _interface() -> str | None:
    """The network interface that leads to rank 0, for gloo: a host's name may stand for another, or for none."""
    address = (os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]))
    family, kind, _, _, where = socket.getaddrinfo(*address, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind) as probe:
        probe.connect(where)  # sends nothing; the kernel chooses the way
        mine = probe.getsockname()[0]
    for name, addresses in psutil.net_if_addrs().items():
        if any(address.address.partition("%")[0] == mine for address in addresses):
            return name
    return None


def facts_of(cases: Sequence[Case]) -> Facts:
    """What this rank would run, and with what."""
    return Facts(" ".join(case.case_id for case in cases), torch.__version__)
