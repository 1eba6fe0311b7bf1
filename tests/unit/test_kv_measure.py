"""`kv --measure`: which passes are timed, and what is refused before anything is. No process is started here."""

from __future__ import annotations

import pytest

from reports.kv import measured
from run_all import main
from suite.case import Case
from suite.hardware.calibration import Calibration, Machine

pytestmark = pytest.mark.unit


def test_the_case_every_choice_and_a_few_batches_are_measured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[Case] = []

    def measure(cases: tuple[Case, ...]) -> Calibration:
        asked.extend(cases)
        return Calibration(Machine("a processor", 2, "2.13", "active"))

    monkeypatch.setattr(measured, "calibrate_serving", measure)
    assert main(["kv", "--model", "llama-1m", "--context", "64", "--measure", "--compare", "mqa,int8"]) == 0
    assert [(case.model.kv_heads, str(case.cache), case.workload.micro_batch) for case in asked] == [
        (2, "full", 1), (1, "full", 1), (2, "int8", 1), (2, "full", 4), (2, "full", 16),
    ]  # fmt: skip
    assert "was not measured" in capsys.readouterr().out  # the calibration is empty


@pytest.mark.parametrize(
    ("words", "refusal"),
    [
        (("--model", "llama-1m", "--device", "h100-sxm"), "--measure: measures this machine's cpu, and the case is of"),
        (("--model", "gpt3-175b"), "more than half of a rank's memory here; ask about a smaller model, batch or"),
        (("--model", "llama-1m", "--pp", "2"), "its passes are not timed on a cpu yet"),
    ],
)
def test_what_cannot_be_measured_is_refused_in_one_line(
    capsys: pytest.CaptureFixture[str], words: tuple[str, ...], refusal: str
) -> None:
    assert main(["kv", *words, "--measure"]) == 2
    out, error = capsys.readouterr()
    assert (out, error.count("\n")) == ("", 1)
    assert refusal in error
