"""The sentences that the terminal, the page and the pull-request report share: one wording, three renderings."""

from __future__ import annotations

from reports.compare import CaseComparison, Instant, Peak
from reports.ranking_text import ranking_sentence
from reports.run_ranking import run_ranking
from reports.serving_summary import serving_sentences, serving_summary
from reports.summary import ERROR_BAND, RunComparison
from reports.text import plain, plural
from reports.traced import SCALARS, beyond_scalars
from suite.passes import Pass
from suite.stats import relative_error
from suite.units import NOT_KNOWN, bytes_text, count_text, number_text, percent_text

_BAND = percent_text(ERROR_BAND, 0)


def outcome_sentence(comparison: RunComparison) -> str:
    """'11 of 14 cases ran to their end; 1 oom, 1 failed, 1 not run.'"""
    rest = [f"{count} {status}" for status, count in comparison.outcomes.items() if status != "ok"]
    sentence = f"{len(comparison.finished)} of {plural(len(comparison.cases), 'case')} ran to the end"
    return f"{sentence}; {', '.join(rest)}." if rest else f"{sentence}."


def memory_sentence(comparison: RunComparison) -> str:
    """How far the predicted peaks are off: mean, worst and bias."""
    errors, worst = comparison.peak, comparison.worst_peak
    if errors is None or worst is None:
        return "No case has both a predicted and a measured peak, so nothing can be said about the formulas."
    verdict = "every case within" if errors.is_within_band else "not every case within"
    return (
        f"Predicted peak memory is off by {percent_text(errors.mean_absolute, 4)} on average and by"
        f" {percent_text(errors.worst, 4, signed=True)} at worst ({plain(worst.case.label)}), {verdict} {_BAND};"
        f" the mean signed error is {percent_text(errors.bias, 4, signed=True)}."
    )


def state_sentence(comparison: RunComparison) -> str:
    """How many of the state rows are equal to the byte."""
    rows = len(comparison.state_rows)
    if not rows:
        return "Parameters, gradients and optimizer state were not measured."
    return (
        f"Parameters, buffers, gradients and optimizer state: {count_text(comparison.state_exact)} of"
        f" {count_text(rows)} rows equal to the byte."
    )


def trace_sentence(comparison: RunComparison) -> str:
    """How many cases were traced, and how far formulas and traces are apart; empty where none was tried."""
    errors, refused = comparison.trace, sum(comparison.untraced.values())
    later = len(comparison.cases) - len(comparison.traced) - refused
    if errors is None and not refused:
        return ""
    rest = [f"{count_text(count)} {why}" for count, why in ((refused, "cannot be"), (later, "not yet")) if count]
    said = f"Traced on fake tensors: {count_text(len(comparison.traced))} of {plural(len(comparison.cases), 'case')}"
    said += f" ({', '.join(rest)})" if rest else ""
    if errors is None:
        return f"{said}."
    apart = max(comparison.traced_rows, key=lambda row: abs(row.error or 0.0))
    label = next(case.case.label for case in comparison.traced if apart in case.traced)
    assert apart.moment
    return (
        f"{said}; formula against trace off by {percent_text(errors.mean_absolute, 4)} on average and"
        f" {percent_text(errors.worst, 4, signed=True)} at worst ({plain(label)}, rank {apart.rank} at"
        f" {apart.moment.value}) over all moments; {count_text(len(beyond_scalars(comparison.traced_rows)))} of"
        f" {count_text(len(comparison.traced_rows))} totals differ by more than scalars ({bytes_text(SCALARS)})."
    )


def traffic_sentence(comparison: RunComparison) -> str:
    """How many of the rows of bytes sent are equal to the byte; empty where none has both sides."""
    rows = len(comparison.sent_rows)
    if not rows:
        return ""
    return (
        f"Bytes sent in a step, by rank and collective: {count_text(comparison.sent_exact)} of"
        f" {count_text(rows)} rows equal to the byte."
    )


def routing_sentence(comparison: RunComparison) -> str:
    """How many predictions are of a recorded routing, and what the peak furthest from it would have been by the one
    assumed; empty where none is."""
    found = [case for case in comparison.cases if case.result.assumed and case.peak.predicted]
    if not found:
        return ""

    def change(case: CaseComparison) -> float:
        assert case.peak.predicted
        return max(memory.peak_bytes for memory in case.result.assumed) - case.peak.predicted.bytes

    worst = max(found, key=lambda case: abs(change(case)))
    assert worst.peak.predicted
    before = worst.peak.predicted.bytes + change(worst)
    error = relative_error(before, worst.peak.measured.bytes if worst.peak.measured else None)
    return (
        f"Memory and traffic of {plural(len(found), 'case')} are predicted for the routing that the run recorded; by"
        f" the one assumed before it, the peak would have been {bytes_text(before)}, an error of"
        f" {percent_text(error, 4, signed=True)} ({plain(worst.case.label)})."
    )


def time_sentence(comparison: RunComparison) -> str:
    """How far the predicted step times are off, and how many rows are noisy; empty where none is known."""
    errors = comparison.step_time
    if errors is None:
        return "No case has both a predicted and a measured step time."
    noisy = sum(case.speed.is_noisy for case in comparison.cases)
    note = f"; {plural(noisy, 'row')} of steps scattered too much to lean on" if noisy else ""
    return (
        f"Predicted step time is off by {percent_text(errors.median_absolute, 1)} in median,"
        f" {percent_text(errors.mean_absolute, 1)} on average and"
        f" {percent_text(errors.worst, 1, signed=True)} at worst{note}."
    )


def loss_sentence(comparison: RunComparison) -> str:
    """How far loss curves lie apart that should be one."""
    found = comparison.loss_spread
    if found is None:
        return "No two cases were trained on the same global batch, so no loss curves have to coincide."
    return (
        f"Loss curves that should coincide are nowhere further apart than {number_text(found.relative, 2)}"
        " of their value."
    )


def sentences(comparison: RunComparison) -> tuple[str, ...]:
    """The whole summary, a sentence an entry."""
    if summary := serving_summary(comparison):
        return outcome_sentence(comparison), *serving_sentences(summary)
    said = [outcome_sentence(comparison), memory_sentence(comparison), state_sentence(comparison)]
    said += [trace_sentence(comparison), traffic_sentence(comparison), routing_sentence(comparison)]
    if Pass.TRAIN in comparison.run.passes:
        said += [time_sentence(comparison), ranking_sentence(run_ranking(comparison)), loss_sentence(comparison)]
    return tuple(sentence for sentence in said if sentence)


def instant_text(instant: Instant | None) -> str:
    """'backward_peak on rank 0', or n/a."""
    return f"{instant.moment.value} on rank {instant.rank}" if instant else NOT_KNOWN


def instant_bytes(instant: Instant | None) -> str:
    """The bytes of an instant, or n/a."""
    return bytes_text(instant.bytes if instant else None)


def peak_sentence(peak: Peak) -> str:
    """Which way and how far the predicted peak is off; empty where one side is not known."""
    if peak.difference is None:
        return ""
    if peak.difference == 0:
        return "They are equal to the byte."
    way = "too high" if peak.difference > 0 else "too low"
    relative = f" ({percent_text(abs(peak.error))})" if peak.error is not None else ""
    return f"The prediction is {bytes_text(abs(peak.difference))}{relative} {way}."


def moments_text(case: CaseComparison) -> str:
    """The peak's moment; both where prediction and measurement disagree; n/a where neither knows."""
    predicted, measured = case.peak.predicted, case.peak.measured
    if predicted and measured and not case.peak.is_same_moment:
        return f"{predicted.moment.value} / {measured.moment.value}"
    known = measured or predicted
    return known.moment.value if known else NOT_KNOWN
