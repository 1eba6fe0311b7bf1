"""The passes of a case: what a run does with it, each on a fresh model."""

from __future__ import annotations

from collections.abc import Collection
from enum import StrEnum

from suite.parse import SpecError, require


class Pass(StrEnum):
    """What is done with a case."""

    TRAIN = "train"  # timed, without probes
    MEMORY = "memory"  # a few steps under the allocator's recorder
    TRAFFIC = "traffic"  # a step with every collective counted
    SERVE = "serve"  # prompts answered: the cache's bytes, what it gives, how long it takes
    TRACE = "trace"  # a few steps on fake tensors, in a process that is none of the case's ranks


#: what ranks run: each of them where nothing else is asked for
ON_RANKS = (Pass.TRAIN, Pass.MEMORY, Pass.TRAFFIC)
#: what ranks run of a case that is served
SERVED = (Pass.SERVE,)


def on_ranks(passes: Collection[Pass]) -> tuple[Pass, ...]:
    """Those of the passes that a case's ranks run, in the order in which they are run."""
    return tuple(each for each in (*ON_RANKS, *SERVED) if each in passes)


def passes_for(serves: bool) -> tuple[Pass, ...]:
    """What ranks run of a case that is served, or of one that is trained, where nothing else is asked for."""
    return SERVED if serves else ON_RANKS


def check_passes(serves: bool, passes: Collection[Pass], which: str = "") -> None:
    """Refuse passes that a case does not have; `which` says which case it is."""
    kind = "served" if serves else "trained"
    for each in passes:
        require(
            (each in SERVED) == serves,
            f"{which}--passes: {each}, but the case is {kind}; its passes: {', '.join(passes_for(serves))}",
        )


def passes_of(text: str) -> tuple[Pass, ...]:
    """Names with commas between them, in the order in which they are run; SpecError for one that is not known."""
    names = [name.strip() for name in text.split(",")]
    unknown = [name for name in names if name not in tuple(Pass)]
    if unknown:
        raise SpecError(f"--passes: {unknown[0]!r} is not known; known: {', '.join(Pass)}")
    return tuple(each for each in Pass if each in names)
