"""How long the prompts of a served case are: a batch whose lengths differ, as its `serving.shortest_prompt` has it."""

from __future__ import annotations

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
