"""What is said of a long run: flags to figures to lines, by hand; and its drawing."""

from __future__ import annotations

import argparse
import json
import math
import re
from xml.etree import ElementTree

import pytest

from reports.figure_goodput import goodput_chart
from reports.long_run import SimulatedStep, checkpoint_bytes, long_run_mapping
from reports.long_run_options import LongRunOptions, add_long_run_flags, long_run_options
from reports.long_run_text import long_run_lines
from suite.case import Case, case_from
from suite.parse import SpecError, from_mapping, to_mapping

pytestmark = pytest.mark.unit


def case(**layout: int) -> Case:
    made = {"model": "llama3-8b", "layout": {"dp": 8, **layout}, "workload": {"seq_len": 4096, "micro_batches": 4}}
    return case_from({**made, "cluster": {"device": "h100-sxm"}})


TOKENS = 8 * 4 * 4096  # a step
STEP = SimulatedStep(10.0, lambda factors: 10 * max(factors))
FAILING = ("--mtbf-hours", "800", "--checkpoint-s", "20", "--restart-s", "300")  # one in 100 h


def options(*words: str) -> LongRunOptions:
    parser = argparse.ArgumentParser()
    add_long_run_flags(parser)
    return long_run_options(parser.parse_args(words))


def answer(*words: str) -> dict[str, object]:
    found = long_run_mapping(options(*words), case(), STEP)
    assert found is not None
    json.dumps(found, allow_nan=False)
    return found


def test_nothing_said_is_nothing_answered() -> None:
    assert long_run_mapping(options(), case(), STEP) is None
    assert long_run_lines(None) == []


def test_options_survive_json() -> None:
    said = options(*FAILING, "--slow", "1:1.5,3:1.1", "--tokens", "1e9", "--repair-hours", "24", "--spares", "2")
    assert from_mapping(LongRunOptions, to_mapping(said), "long_run") == said


def test_tokens_become_steps_hours_and_a_bill() -> None:
    """1,000 steps of 10 s on 8 devices, nothing failing; a last step is whole."""
    run = answer("--tokens", str(TOKENS * 1000), "--price-per-hour", "2")["run"]
    assert isinstance(run, dict)
    assert (run["steps"], run["wall_seconds"], run["goodput"]) == (1000, 10_000, 1)
    assert run["device_hours"] == pytest.approx(8 * 10_000 / 3600)
    assert run["price"] == pytest.approx(2 * 8 * 10_000 / 3600)
    assert run["energy_joules"] == 700 * 8 * 10_000
    assert (run["carbon_kg"], run["failures"]) == (None, None)
    one_more = answer("--tokens", str(TOKENS * 1000 + 1))["run"]
    assert isinstance(one_more, dict)
    assert one_more["steps"] == 1001


def test_goodput_makes_a_run_longer_and_spares_are_paid_for() -> None:
    words = (*FAILING, "--tokens", str(TOKENS * 100_000), "--repair-hours", "1", "--spares", "2")
    found = answer(*words)
    run, failures = found["run"], found["failures"]
    assert isinstance(run, dict)
    assert isinstance(failures, dict)
    assert failures["mtbf_seconds"] == pytest.approx(100 * 3600)
    assert failures["interval_steps"] == round(failures["interval_seconds"] / 10)
    assert failures["interval_seconds"] == pytest.approx(math.sqrt(2 * 20 * 360_000), rel=0.01)  # Young's
    assert run["wall_seconds"] == pytest.approx(1e6 / failures["goodput"])
    assert run["device_hours"] == pytest.approx(10 * run["wall_seconds"] / 3600)
    load = 3600 / 360_000  # repairs of an hour, a failure in 100: Erlang's B for 3 of it
    assert failures["shares"]["waiting"] == pytest.approx(
        load**3 / 6 / sum(load**k / math.factorial(k) for k in range(4))
    )
    assert run["failures"] == pytest.approx(run["wall_seconds"] / 360_000, rel=1e-3)
    spread = failures["goodput_over_seeds"]
    assert spread["seeds"] == 20
    assert spread["p5"] < failures["goodput"] < spread["p95"]


def test_days_are_all_told() -> None:
    found = answer(*FAILING, "--days", "30", "--checkpoint-every-s", "3600")
    run, failures = found["run"], found["failures"]
    assert isinstance(run, dict)
    assert isinstance(failures, dict)
    assert run["wall_seconds"] == 30 * 86400
    assert run["steps"] == int(30 * 86400 * failures["goodput"] / 10)
    assert failures["intervals"]["given"]["goodput"] == failures["goodput"] < failures["intervals"]["best"]["goodput"]


def test_both_rates_are_one_thing() -> None:
    by_rate = ("--failures-per-1000-device-hours", "1.25", *FAILING[2:])
    assert answer(*by_rate)["failures"] == answer(*FAILING)["failures"]


def test_a_slow_rank_makes_every_step_longer() -> None:
    found = answer("--slow", "3:1.2", "--tokens", str(TOKENS))
    stragglers, run = found["stragglers"], found["run"]
    assert isinstance(stragglers, dict)
    assert isinstance(run, dict)
    assert stragglers["slowdown"] == pytest.approx(1.2)
    assert run["wall_seconds"] == pytest.approx(12)
    jitter = answer("--jitter", "0.05")["stragglers"]
    assert isinstance(jitter, dict)
    assert jitter["slowdown"] == pytest.approx(1 + 0.05 * 1.4236, rel=0.01)  # the largest of 8 normal numbers
    assert jitter["step_seconds_spread"] is None
    piped = long_run_mapping(options("--jitter", "0.05"), case(pp=2, dp=4), STEP)
    assert piped is not None
    assert piped["stragglers"]["step_seconds_spread"]["seeds"] == 16


def test_a_checkpoint_is_parameters_and_optimizer_state_once() -> None:
    """fp32 weights and two fp32 moments, whatever the layout; AdamW's 4-byte steps are few."""
    parameters = 8_030_261_248
    whole = checkpoint_bytes(case())
    assert whole == checkpoint_bytes(case(dp=1, tp=8)) == checkpoint_bytes(case(dp=1, fsdp=4, pp=2))
    assert whole is not None
    assert 0 <= whole - 12 * parameters < 4 * 1000
    assert checkpoint_bytes(case(zero=1)) is None
    failures = answer("--mtbf-hours", "800", "--checkpoint-gib-per-s", "10", "--restart-s", "60")["failures"]
    assert isinstance(failures, dict)
    assert failures["reliability"]["checkpoint"]["blocking_s"] == pytest.approx(whole / (10 * 2**30))


def test_lines_say_what_was_found() -> None:
    words = (*FAILING, "--days", "30", "--slow", "3:1.2", "--price-per-hour", "2", "--checkpoint-every-s", "600")
    lines = long_run_lines(answer(*words))
    assert len(lines) == 7
    said = "\n".join(lines)
    for words_said in (
        "1.2 times 10.00 s (ranks 3:1.2)",
        "failures: one in 100.0 h among 8 devices; a checkpoint takes 20.00 s, a restart 5.0 min",
        "saving every 10.0 min (50 steps)",
        "over 20 seeds:",
        "Young 1974 63.2 min",
        "the run: 30.0 days",
        "5,760 device-hours of 8 devices",
        "price 11,520.00; carbon dioxide n/a; energy 4.03 MWh, the devices alone, at 100 % of 700 W a device: NVIDIA",
    ):
        assert words_said in said
    unknown = long_run_lines(long_run_mapping(options("--days", "1"), case_from({"model": "llama-1m"}), STEP))
    assert "price n/a; carbon dioxide n/a; energy n/a, no power being known" in unknown[-1]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--mtbf-hours 5", "--mtbf-hours: 5.0 also needs --checkpoint-s or --checkpoint-gib-per-s"),
        ("--mtbf-hours 5 --checkpoint-s 1", "--mtbf-hours: 5.0 also needs --restart-s"),
        ("--mtbf-hours 0 --checkpoint-s 1 --restart-s 1", "--mtbf-hours: must be finite and above zero, got 0.0"),
        ("--mtbf-hours -2 --checkpoint-s 1 --restart-s 1", "--mtbf-hours: must be finite and above zero, got -2.0"),
        ("--mtbf-hours x", "--mtbf-hours: expected a number, got 'x'"),
        ("--restart-s 5", "--restart-s: 5.0 also needs --mtbf-hours or --failures-per-1000-device-hours"),
        ("--spares 3", "--spares: 3 also needs --repair-hours"),
        ("--price-per-hour 3", "--price-per-hour: 3.0 also needs --tokens or --days"),
        ("--tokens 1e9 --days 3", "--days: given beside --tokens; give one of them"),
        ("--tokens nan", "--tokens: must be finite and above zero, got nan"),
        ("--days 1 --power-share 1.5", "--power-share: a share of the watts, at most 1, got 1.5"),
        ("--days 1 --pue 0.5", "--pue: must be at least 1, got 0.5"),
        ("--slow 9:2", "slow: rank 9 is not among the 8 of the layout"),
        ("--slow 1", "--slow: '1' is not RANK:FACTOR, as in 17:1.1"),
        ("--jitter -1", "--jitter: must be finite and not negative, got -1.0"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(words: str, said: str) -> None:
    with pytest.raises(SpecError) as refusal:
        long_run_mapping(options(*words.split()), case(), STEP)
    assert said in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--days 1 --checkpoint-every-s 1e6", "--checkpoint-every-s: 1e+06 s are longer than the run of 86400 s"),
        ("--days 1 --seeds 0", "--seeds: must be at least 1, got 0"),
        ("--repair-hours 1 --spares 9", "recovery.spares: 9 are more than the job's 8 devices"),
        ("--checkpoint-writing-s 900 --checkpoint-every-s 100", "interval: 100 s is too short"),
    ],
)
def test_what_does_not_fit_the_run_is_refused(words: str, said: str) -> None:
    with pytest.raises(SpecError, match=re.escape(said)):
        answer(*FAILING, *words.split())


def test_slow_ranks_need_a_simulated_step() -> None:
    with pytest.raises(SpecError, match="--jitter: this step was not simulated queue by queue"):
        long_run_mapping(options("--jitter", "0.1"), case(), SimulatedStep(10.0))


def test_the_drawing_marks_every_interval_where_it_is() -> None:
    failures = answer(*FAILING, "--checkpoint-every-s", "7200")["failures"]
    assert isinstance(failures, dict)
    chart = goodput_chart(failures, 30 * 86400, 5, "goodput")
    assert chart == goodput_chart(failures, 30 * 86400, 5, "goodput")
    root = ElementTree.fromstring(chart.svg)
    titles = [element.text or "" for element in root.iter("title")]
    for name, item in (("best", "best"), ("Young 1974", "young"), ("Daly 2006", "daly"), ("given", "given")):
        found = failures["intervals"][item]
        assert any(text.startswith(f"{name}: ") and f"{found['goodput'] * 100:.3f} %" in text for text in titles)
    assert "5 lived runs, 5 to 95 %" in titles
    places = {
        element[0].text.split(":")[0]: next(element.iter("use")).get("x")
        for element in root.iter("g")
        if len(element) and element[0].tag == "title" and ":" in (element[0].text or "")
    }
    assert float(places["given"]) > float(places["Young 1974"]) >= float(places["best"])
    assert "100.0 h" in chart.caption
