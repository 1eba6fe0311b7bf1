"""Does it fit? The borders of the verdicts, to the byte, and what a rank may use."""

from __future__ import annotations

from dataclasses import replace

import pytest

from memory.verdict import Verdict, available_bytes, reserved_upper_bytes, verdict_of
from suite.case import Case, case_from
from suite.hardware import device
from suite.hardware.device import Figure

pytestmark = pytest.mark.unit


def case(dp: int = 1, name: str = "cpu") -> Case:
    return case_from({"model": "gpt-1m", "layout": {"dp": dp}, "cluster": {"device": name}})


@pytest.mark.parametrize(
    "peak, verdict",
    [
        (0, Verdict.FITS),
        (799, Verdict.FITS),
        (800, Verdict.FITS),  # 800 / 0.8 = 1000: just what is there
        (801, Verdict.TIGHT),
        (1000, Verdict.TIGHT),
        (1001, Verdict.OOM),
    ],
)
def test_the_borders_of_a_thousand_bytes(peak: int, verdict: Verdict) -> None:
    assert verdict_of(peak, 1000) is verdict


@pytest.mark.parametrize(
    "peak, bound", [(0, 0), (1, 2), (4, 5), (5, 7), (800, 1000), (801, 1002), (10**30, 125 * 10**28)]
)
def test_the_bound_of_what_is_reserved_is_the_next_whole_byte(peak: int, bound: int) -> None:
    assert reserved_upper_bytes(peak) == bound


def test_nothing_is_said_of_a_device_whose_memory_is_not_known() -> None:
    assert verdict_of(10**15, None) is Verdict.UNKNOWN
    unknown = replace(device("h100-sxm"), memory_bytes=Figure(None, "no source found"))
    assert available_bytes(case(name="h100-sxm"), unknown) is None


def test_a_gpu_gives_its_memory_less_its_context() -> None:
    h100 = device("h100-sxm")
    total = h100.memory_bytes.value
    assert total is not None
    bare = replace(h100, context_bytes=Figure(None, "no source found"))
    assert available_bytes(case(name="h100-sxm"), bare) == total
    with_context = replace(h100, context_bytes=Figure(5e8, "made up"))
    assert available_bytes(case(name="h100-sxm"), with_context) == total - 500_000_000


def test_the_ranks_of_a_cpu_share_its_memory() -> None:
    machine = replace(device("cpu"), memory_bytes=Figure(10_000_001, "made up"))
    assert available_bytes(case(), machine) == 10_000_001
    assert available_bytes(case(dp=4), machine) == 2_500_000  # whole bytes: what is left over is nobody's


def test_more_ranks_on_a_cpu_turn_the_same_peak_from_fits_to_oom() -> None:
    machine = replace(device("cpu"), memory_bytes=Figure(1000, "made up"))
    verdicts = [verdict_of(300, available_bytes(case(dp=dp), machine)) for dp in (1, 2, 3, 4)]
    assert verdicts == [Verdict.FITS, Verdict.FITS, Verdict.TIGHT, Verdict.OOM]
