"""Layouts side by side as JSON-ready data."""

from __future__ import annotations

from typing import Any

from reports.export import case_mapping
from reports.side_by_side.groups import Choice, Group, SideBySide
from reports.side_by_side.wins import Basis, Win, front, wins


def side_by_side_mapping(found: SideBySide) -> dict[str, Any]:
    """A run's groups: what they have in common, who wins where, every layout predicted, measured and the error."""
    return {
        "run": found.comparison.run.name,
        "suite": found.comparison.run.suite,
        "groups": [_group(group) for group in found.groups],
        "alone": [{"case_id": case.case.case_id, "case": case.case.label} for case in found.alone],
    }


def _group(group: Group) -> dict[str, Any]:
    case, (basis, best) = group.case, front(group)
    spread = group.loss_spread
    return {
        "title": group.title,
        "model": case.model.name,
        "precision": case.workload.precision.value,
        "seq_len": case.workload.seq_len,
        "global_batch": case.global_batch,
        "ranks": list(group.ranks),
        "serves": group.serves,
        "wins": [_win(win) for win in wins(group)],
        "pareto_front": {"basis": basis.value, "layouts": [c.name for c in group.choices if c.name in best]},
        "loss_spread": {"relative": spread.relative, "step": spread.step, "steps": spread.steps} if spread else None,
        "layouts": [_layout(choice) for choice in group.choices],
    }


def _layout(choice: Choice) -> dict[str, Any]:
    predicted = choice.case.speed.predicted
    return {
        "layout": choice.name,
        **case_mapping(choice.case),
        "predicted_parts_seconds": predicted.parts_seconds if predicted else None,
    }


def _win(win: Win) -> dict[str, Any]:
    """Values are seconds, bytes, or for the best trade their product; `ties` are not told from the winner."""
    first = win.winners[0] if win.winners else None
    return {
        "criterion": win.criterion.title,
        "what": win.criterion.what,
        "basis": win.basis.value,
        "layouts_known": win.known,
        "winner": first.name if first else None,
        "measured": win.criterion.value(first.case, Basis.MEASURED) if first else None,
        "predicted": win.criterion.value(first.case, Basis.PREDICTED) if first else None,
        "ties": [choice.name for choice in win.winners[1:]],
        "next": win.next.name if win.next else None,
        "next_has_more": win.margin,
        "lowest_by_prediction": win.promised.name if win.promised else None,
        "prediction_held": win.held,
        "regret": win.regret,
    }
