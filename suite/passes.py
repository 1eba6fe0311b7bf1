"""The passes of a case: what a run measures, each on a fresh model."""

from __future__ import annotations

from enum import StrEnum

from suite.parse import SpecError


class Pass(StrEnum):
    """What is done with a case."""

    TRAIN = "train"  # timed, without probes
    MEMORY = "memory"  # a few steps under the allocator's recorder
    TRAFFIC = "traffic"  # a step with every collective counted


def passes_of(text: str) -> tuple[Pass, ...]:
    """Names with commas between them, in the order in which they are run; SpecError for one that is not known."""
    names = [name.strip() for name in text.split(",")]
    unknown = [name for name in names if name not in tuple(Pass)]
    if unknown:
        raise SpecError(f"--passes: {unknown[0]!r} is not known; known: {', '.join(Pass)}")
    return tuple(each for each in Pass if each in names)
