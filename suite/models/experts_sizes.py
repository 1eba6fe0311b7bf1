"""A mixture of experts as whole numbers: by what a calibration names the one that it ran. Torch-free."""

from __future__ import annotations

from dataclasses import replace

from suite.models.experts import Balance, Dispatch, Experts, Scoring

_SCORING, _BALANCE = tuple(Scoring), tuple(Balance)
#: a scale that is not 1: any costs the same product
SCALED = 2.0


def sizes_of(spec: Experts, sequences: int, tokens: int, hidden: int) -> tuple[int, ...]:
    """Sequences, tokens of each, width, an expert's width, experts, those chosen, those shared; then the form: scoring,
    normalized, scaled, groups, open groups, balance, and the places that an expert has for a sequence (0: dropless).

    Not counted: the scale and the coefficient of the balance, which change no time.
    """
    room = spec.capacity(tokens) if spec.dispatch is Dispatch.CAPACITY else 0
    form = (_SCORING.index(spec.scoring), int(spec.normalized), int(spec.scale != 1), spec.groups, spec.top_groups)
    sizes = (sequences, tokens, hidden, spec.ffn, spec.count, spec.top_k, spec.shared)
    return (*sizes, *form, _BALANCE.index(spec.balance), room)


def experts_of(sizes: tuple[int, ...]) -> Experts:
    """Experts of these sizes and this form."""
    _, tokens, _, ffn, count, top_k, shared, scoring, normalized, scaled, groups, top_groups, balance, room = sizes
    dropless = Experts(
        count, top_k, ffn, shared, _SCORING[scoring], bool(normalized), SCALED if scaled else 1.0, groups, top_groups,
        _BALANCE[balance],
    )  # fmt: skip
    if not room:
        return dropless
    # half a place less: the factor's own rounding up gives it back whatever the division has lost
    factor = (room - 0.5) * count / (top_k * tokens)
    return replace(dropless, dispatch=Dispatch.CAPACITY, capacity_factor=factor)
