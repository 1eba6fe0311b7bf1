"""Which phase of a step an allocation belongs to, by the stack that the snapshot recorded with it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from suite.record import Moment

_OPTIMIZER = ("/optim/", "\\optim\\")
_BACKWARD = ("backward", "unpack_hook")  # the second: what checkpointing runs again
_LOSS = ("cross_entropy", "nll_loss", "log_softmax")


def moment_of(event: Mapping[str, Any] | None) -> Moment | None:
    """The phase whose peak the event is part of; None where it has no stack, or none that tells.

    torch/optim's files and clipping are the optimizer; autograd's engine (C++ frames) or a Python function called
    backward the backward pass; a cross entropy the loss; the call of a module's forward, without these, the forward
    pass. Backward work that autograd runs on its own thread has no Python frames: then nothing tells.
    """
    frames = [] if event is None else event.get("frames") or []
    if not isinstance(frames, list | tuple):
        return None
    names = [str(frame.get("name", "")) for frame in frames if isinstance(frame, Mapping)]
    files = [str(frame.get("filename", "")) for frame in frames if isinstance(frame, Mapping)]
    if any(mark in file for file in files for mark in _OPTIMIZER) or any("clip_grad" in name for name in names):
        return Moment.OPTIMIZER_PEAK
    if any("autograd::Engine" in name or name in _BACKWARD for name in names):
        return Moment.BACKWARD_PEAK
    if any(mark in name for name in names for mark in _LOSS):
        return Moment.LOSS
    return Moment.FORWARD_PEAK if "forward" in names else None
