"""Rows about models that answer: tokens a second of an answer, and seconds of a whole request, by the roofline."""

from __future__ import annotations

from memory.caches.model import cache_terms
from parallelism.simulator.serving_time import ServingTime, serving_time
from reports.published.answers import CannotModel, Prediction
from suite.case import Case, case_from
from suite.published import PublishedRow


def predict_serving(row: PublishedRow) -> Prediction:
    """A request's seconds, or tokens a second of one sequence. CannotModel for another figure; SpecError for a model, a
    device or a layout that is not known."""
    if row.text("precision") == "not 16 bits":
        raise CannotModel("precision: not stated, and its 16-bit weights could not be read so fast")
    assumed = () if row.text("precision") else ("bf16: the number format is not stated",)
    case = _case(row, row.need("new_tokens"))
    middle = _case(row, max(1, row.need("new_tokens") // 2))
    time = serving_time(middle, cache_terms(middle))
    if row.quantity == "request_seconds":
        steps = case.serving.new_tokens or 1
        return Prediction(time.prefill_seconds + (steps - 1) * time.decode_seconds, time.basis, assumed)
    if row.quantity == "decode_tokens_per_second":
        return Prediction(_rate(time, case), time.basis, assumed)
    raise CannotModel(f"{row.quantity}: not a figure that a formula here gives")


def _rate(time: ServingTime, case: Case) -> float:
    """Tokens a second of all sequences, the prompt's time shared by the answer's tokens."""
    steps = case.serving.new_tokens or 1
    seconds = time.prefill_seconds + (steps - 1) * time.decode_seconds
    return case.workload.micro_batch * steps / seconds


def _case(row: PublishedRow, new_tokens: int) -> Case:
    tp = row.count("tp") or 1
    return case_from({
        "model": row.text("model"), "layout": {"tp": tp},
        "workload": {
            "seq_len": row.need("prompt_tokens"), "micro_batch": row.count("batch") or 1,
            "precision": row.text("precision") or "bf16",
        },
        "cluster": {"device": row.text("device")}, "serving": {"new_tokens": new_tokens},
    })  # fmt: skip
