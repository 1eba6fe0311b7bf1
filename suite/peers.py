"""Peers: other tools that say how much memory training takes, and what each says of a case. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Peer(StrEnum):
    """A tool whose own numbers stand beside ours. The value is its name on PyPI."""

    DEEPSPEED = "deepspeed"  # its estimators of ZeRO's model states
    ACCELERATE = "accelerate"  # Hugging Face's `accelerate estimate-memory`
    LLM_ANALYSIS = "llm-analysis"


@dataclass(frozen=True)
class Figure:
    """A peer's number, or why it states none. Bytes on one rank; the fullest, where it tells ranks apart."""

    nbytes: float | None = None
    reason: str = ""


@dataclass(frozen=True)
class PeerAnswer:
    """What a peer says of a case: model states (parameters, gradients, optimizer state) and the peak of a step."""

    peer: Peer
    states: Figure
    peak: Figure
    call: str = ""  # what was called, with the arguments that matter
    version: str | None = None


def unanswered(peer: Peer, reason: str, version: str | None = None) -> PeerAnswer:
    """The answer of a peer that states nothing of a case."""
    return PeerAnswer(peer, Figure(None, reason), Figure(None, reason), "", version)
