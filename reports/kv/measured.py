"""`kv --measure`: the parts of the asked passes timed on this machine now: what times on the cpu rest on."""

from __future__ import annotations

from dataclasses import replace

from memory.published_inference import fullest_rank, inference_of, resized
from reports.calibrate_serving import ServingCalibrationError, calibrate_serving, can_calibrate_serving
from reports.kv.options import Asked
from suite.case import Case
from suite.hardware import device
from suite.parse import SpecError, require
from suite.units import bytes_text

#: batches that are timed beside the case's own, for the figure of tokens a second; those between are interpolated
BATCHES = (1, 4, 16)
#: of a rank's part of this machine's memory that the timed parts may take: weights and caches are really there
MOST_SHARE = 0.5


def measured(asked: Asked) -> Asked:
    """The same question with a calibration of this machine at its shapes. SpecError for a case that is not of the cpu
    or too large to be held here, and where measuring fails."""
    case = asked.case
    require(
        case.cluster.device == "cpu",
        f"--measure: measures this machine's cpu, and the case is of {case.cluster.device}; leave one of them out",
    )
    require(asked.calibration is None, "--measure: given beside --calibration; give one of them")
    own = [case, *(choice.of(case) for choice in asked.choices)]
    more = [resized(case, batch, asked.context, asked.step_tokens) for batch in BATCHES if batch != asked.batch]
    for each in own:
        _require_room(each)
        require(can_calibrate_serving(each), f"--measure: {each.label}: its passes are not timed on a cpu yet")
    wanted = dict.fromkeys([*own, *(each for each in more if _has_room(each))])
    try:
        return replace(asked, calibration=calibrate_serving(tuple(wanted)))
    except ServingCalibrationError as error:
        raise SpecError(f"--measure: {error}") from None


def _require_room(case: Case) -> None:
    peak = fullest_rank(inference_of(case))[1]
    require(
        _has_room(case),
        f"--measure: {case.label} takes {bytes_text(peak)}, more than half of a rank's memory here; ask about a smaller"
        " model, batch or context",
    )


def _has_room(case: Case) -> bool:
    total = device("cpu").memory_bytes.value
    return total is None or fullest_rank(inference_of(case))[1] <= MOST_SHARE * total / case.cluster.per_node
