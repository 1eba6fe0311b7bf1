"""What `parallelism.peers.asking` starts for each peer: {"peer": ..., "cases": [...]} on standard input, a list of its
answers on standard output. Whatever a peer prints goes to standard error."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from importlib import import_module

from suite.case import Case, case_from
from suite.parse import SpecError, to_mapping
from suite.peers import Peer, PeerAnswer, unanswered

#: characters of a crash that a row repeats
LONGEST = 160
MODULES = {
    Peer.DEEPSPEED: "parallelism.peers.deepspeed_states",
    Peer.ACCELERATE: "parallelism.peers.accelerate_training",
    Peer.LLM_ANALYSIS: "parallelism.peers.llm_analysis_training",
}


def answers(peer: Peer, cases: list[Case]) -> list[PeerAnswer]:
    """The peer's answer to each case, in order; one that crashes on a case says so in one line."""
    answer: Callable[[Case], PeerAnswer] = import_module(MODULES[peer]).answer
    return [_guarded(answer, peer, case) for case in cases]


def _guarded(answer: Callable[[Case], PeerAnswer], peer: Peer, case: Case) -> PeerAnswer:
    try:
        return answer(case)
    except SpecError as error:
        return unanswered(peer, str(error))
    except Exception as error:  # anything may come out of another tool
        lines = str(error).splitlines() or [""]
        return unanswered(peer, f"crashed: {type(error).__name__}: {lines[0][:LONGEST]}")


def main() -> int:
    """Read the request, answer it."""
    request = json.load(sys.stdin)
    out = os.dup(1)
    os.dup2(2, 1)  # a peer that prints must not spoil the answer
    found = answers(Peer(request["peer"]), [case_from(mapping) for mapping in request["cases"]])
    with open(out, "w", encoding="utf-8") as stream:
        json.dump(to_mapping(found), stream)
    return 0


if __name__ == "__main__":
    sys.exit(main())
