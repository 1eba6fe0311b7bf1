"""How long the prompts of a served case are where they differ, and how many pages of a paged cache that takes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from suite.parse import require

if TYPE_CHECKING:
    from suite.case import Case


def prompt_lengths(case: Case) -> tuple[int, ...]:
    """Tokens of each of the micro_batch prompts, rising: spread evenly from serving.shortest_prompt to seq_len and
    rounded down; all seq_len where no shortest is given, and a lone prompt. SpecError for a case that is trained."""
    require(case.serves, "serving.new_tokens: missing; give the tokens that are made of each prompt")
    prompts, longest = case.workload.micro_batch, case.workload.seq_len
    shortest = case.serving.shortest_prompt or longest
    if prompts == 1:
        return (longest,)
    return tuple(shortest + (longest - shortest) * row // (prompts - 1) for row in range(prompts))


def pages_for(lengths: Iterable[int], page_tokens: int) -> int:
    """Pages that sequences of so many tokens take when none is shared: the last of each may be partly filled."""
    return sum(-(-length // page_tokens) for length in lengths)
