"""Asks every peer about cases, each in a process of its own: a peer that dies takes nothing with it. Torch-free."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from suite.case import Case
from suite.child import ChildError, ask
from suite.environment import package_version
from suite.parse import from_mapping
from suite.peers import Peer, PeerAnswer, unanswered
from suite.store import PeersRow, RunRow, RunStore

MODULE = "parallelism.peers"
TIMEOUT_S = 300.0
#: a peer may look its models up on a hub; ours are given to it
OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
#: what installs a peer that is missing; llm-analysis asks for packages older than ours, and needs none of them here
INSTALL = {
    Peer.DEEPSPEED: "pip install deepspeed",
    Peer.ACCELERATE: "pip install 'shardscope[peers]'",
    Peer.LLM_ANALYSIS: "pip install 'shardscope[peers]' && pip install --no-deps llm-analysis",
}


def ask_peers(cases: Sequence[Case], timeout_s: float = TIMEOUT_S) -> dict[str, tuple[PeerAnswer, ...]]:
    """What every peer says of each case, by case id. A peer that is missing or dies has its reason in each answer."""
    columns = [_ask(peer, cases, timeout_s) for peer in Peer]
    return {case.case_id: tuple(column[place] for column in columns) for place, case in enumerate(cases)}


def record_answers(store: RunStore, cases: Sequence[Case], tell: Callable[[str], None]) -> None:
    """Ask about the cases of a run that wants it and has no answers to them yet, and write the answers down."""
    wanted = any(row.peers for row in store.rows(RunRow))
    done = {store.case_of(row).case_id for row in store.rows(PeersRow)} if wanted else set()
    left = [case for case in cases if case.case_id not in done]
    if not (wanted and left):
        return
    tell(f"asking {', '.join(Peer)} ...")
    for case, answers in zip(left, ask_peers(left).values(), strict=True):
        store.append(PeersRow(case.case_id, case.to_mapping(), answers))


def _ask(peer: Peer, cases: Sequence[Case], timeout_s: float) -> list[PeerAnswer]:
    version = package_version(peer)
    if version is None:
        return [unanswered(peer, f"not installed; {INSTALL[peer]}") for _ in cases]
    request = {"peer": peer.value, "cases": [case.to_mapping() for case in cases]}
    try:
        found = [from_mapping(PeerAnswer, row, peer) for row in ask(MODULE, request, timeout_s, OFFLINE)]
    except ChildError as error:
        return [unanswered(peer, f"crashed: {error}", version) for _ in cases]
    return [replace(answer, version=version) for answer in found]
