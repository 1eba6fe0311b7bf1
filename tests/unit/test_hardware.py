"""Devices: figures against datasheets, a source beside each number, and no device taken for another."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import FrozenInstanceError
from pathlib import Path

import psutil
import pytest

from suite.hardware import DEVICES, Device, DeviceKind, Figure, MatmulDtype, device, device_names, matmul_dtype
from suite.hardware.cpu import memory_limit
from suite.hardware.device import tera_rates
from suite.parse import SpecError
from suite.spec import Precision

pytestmark = pytest.mark.unit

ROOT = Path(__file__).resolve().parents[2]
GPUS = list(DEVICES.values())

# name, nominal memory (GB as sold), dense bf16 TFLOP/s, fp32 TFLOP/s, TB/s, W; read off the makers' sheets
SHEETS = [
    ("a100-40gb-pcie", 40, 312.0, 19.5, 1.555, 250),
    ("a100-80gb-pcie", 80, 312.0, 19.5, 1.935, 300),
    ("a100-40gb-sxm", 40, 312.0, 19.5, 1.555, 400),
    ("a100-80gb-sxm", 80, 312.0, 19.5, 2.039, 400),
    ("h100-pcie", 80, 756.0, 51.2, 2.0, 350),
    ("h100-sxm", 80, 989.4, 66.9, 3.35, 700),
    ("h100-96gb-500w", 96, 989.0, None, 2.4, 500),
    ("h200-sxm", 141, 989.5, 67.0, 4.8, 700),
    ("b200", 180, 2250.0, 75.0, 7.672, 1000),
    ("b300", 288, 2250.0, 75.0, 7.7, 1100),
    ("gb200", 186, 2500.0, None, None, 1200),
    ("gb300", 288, 2500.0, 80.0, 8.0, 1400),
    ("mi300x", 192, 1307.4, 163.4, 5.3, 750),
    ("v100-16gb-sxm", 16, None, 15.7, 0.9, 300),
    ("v100-32gb-sxm", 32, None, 15.7, 0.9, 300),
    ("rtx-a6000", 48, 154.8, 38.7, 0.768, 300),
    ("rtx-4090", 24, 165.2, 82.6, 1.008, 450),
    ("rtx-4070-ti-super", 16, None, 44.1, 0.672, 285),
    ("l40s", 48, 362.05, 91.6, 0.864, 350),
]


def figures(item: Device) -> list[Figure]:
    rates = [getattr(group, kind.value) for group in (item.peak_flops_per_second, item.achieved_flops_per_second)
             for kind in MatmulDtype]  # fmt: skip
    return [item.memory_bytes, item.memory_bandwidth_bytes_per_second, item.power_watts, item.context_bytes, *rates]


def in_units(figure: Figure, unit: float) -> float | None:
    return None if figure.value is None else figure.value / unit


@pytest.mark.parametrize(("name", "memory", "bf16", "fp32", "bandwidth", "watts"), SHEETS)
def test_figures_are_those_of_the_datasheet(
    name: str, memory: int, bf16: float | None, fp32: float | None, bandwidth: float | None, watts: float
) -> None:
    item = device(name)
    assert in_units(item.peak("bf16"), 1e12) == pytest.approx(bf16)
    assert in_units(item.peak("fp32"), 1e12) == pytest.approx(fp32)
    assert in_units(item.memory_bandwidth_bytes_per_second, 1e12) == pytest.approx(bandwidth)
    assert item.power_watts.value == watts
    # what the driver gives out: at most the nominal figure read as GiB, at least nine tenths of it read so
    assert item.memory_bytes.value is not None
    assert 0.9 * memory * 2**30 < item.memory_bytes.value <= memory * 2**30


def test_every_device_is_checked_against_a_datasheet() -> None:
    assert {row[0] for row in SHEETS} == set(DEVICES)


@pytest.mark.parametrize("item", GPUS, ids=lambda item: item.name)
def test_peaks_double_with_each_halving_of_the_format(item: Device) -> None:
    """A sparse figure among dense ones would be a factor of two off this."""
    fp16, fp8, bf16 = (item.peak(kind).value for kind in ("fp16", "fp8", "bf16"))
    assert bf16 is None or bf16 == fp16 or item.name == "h100-96gb-500w"
    if fp16 is not None and fp8 is not None:
        assert fp8 / fp16 == pytest.approx(2, rel=0.02)


@pytest.mark.parametrize("item", [*GPUS, device("cpu")], ids=lambda item: item.name)
def test_every_figure_names_its_source(item: Device) -> None:
    for figure in figures(item):
        assert len(figure.source) > 8
        assert figure.url == "" or figure.url.startswith("https://")
    assert item.memory_bytes.value == int(item.memory_bytes.value or 0)


@pytest.mark.parametrize("item", GPUS, ids=lambda item: item.name)
def test_nobody_measured_more_than_the_peak(item: Device) -> None:
    for kind in MatmulDtype:
        achieved, peak = item.achieved(kind).value, item.peak(kind).value
        assert achieved is None or (peak is not None and 0.4 * peak < achieved < peak)


def test_an_unknown_figure_is_none_and_never_the_sister_devices() -> None:
    assert device("a100-80gb-sxm").context_bytes.value == pytest.approx(0.47 * 2**30, abs=1)
    assert device("a100-40gb-sxm").context_bytes.value is None
    assert device("h100-sxm").context_bytes.value is None
    assert device("h100-96gb-500w").peak("fp8").value is None
    assert device("v100-32gb-sxm").peak("bf16").value is None
    assert "no bf16 matrix units" in device("v100-32gb-sxm").peak("bf16").source
    assert device("h200-sxm").achieved("bf16").value is None


@pytest.mark.parametrize(
    ("name", "hints"),
    [
        ("h100", ("h100-sxm", "h100-pcie")),
        ("H200-SXM", ("h200-sxm",)),
        ("a100", ("a100-",)),
        ("gaudi3", ("known: cpu", "mi300x")),
    ],
)
def test_an_unknown_device_is_refused_with_near_names(name: str, hints: tuple[str, ...]) -> None:
    with pytest.raises(SpecError) as refusal:
        device(name)
    message = str(refusal.value)
    assert message.startswith(f"cluster.device: {name!r} is not known")
    assert all(hint in message for hint in hints)
    assert "\n" not in message


def test_the_names_of_the_published_tables_are_known() -> None:
    for alias, name in [
        ("a100-sxm-80gb", "a100-80gb-sxm"),
        ("a100-sxm-40gb", "a100-40gb-sxm"),
        ("v100-sxm-32gb", "v100-32gb-sxm"),
        ("h100-96gb-500w", "h100-96gb-500w"),
        ("rtx-4070-ti-super", "rtx-4070-ti-super"),
        ("gb300", "gb300"),
    ]:
        assert device(alias).name == name


def test_no_name_means_two_devices() -> None:
    names = [name for item in GPUS for name in (item.name, *item.aliases)]
    assert len(names) == len(set(names))
    assert device_names() == ("cpu", *DEVICES)


def test_the_cpu_is_this_machine() -> None:
    cpu = device("cpu")
    assert cpu.kind is DeviceKind.CPU
    assert cpu.memory_bytes.value is not None
    assert 0 < cpu.memory_bytes.value <= psutil.virtual_memory().total
    assert cpu.peak("fp32").value is None
    assert "measured" in cpu.peak("bf16").source
    assert cpu.product


def test_a_control_groups_limit_is_what_there_is(tmp_path: Path) -> None:
    limit = tmp_path / "memory.max"
    limit.write_text("1048576\n")
    assert memory_limit(limit).value == 1048576
    limit.write_text("max\n")
    assert memory_limit(limit).value == psutil.virtual_memory().total
    assert memory_limit(tmp_path / "none").value == psutil.virtual_memory().total


def test_a_device_cannot_be_changed() -> None:
    with pytest.raises(FrozenInstanceError):
        device("h100-sxm").name = "other"  # type: ignore[misc]


def test_a_figure_needs_a_source_and_a_sane_value() -> None:
    with pytest.raises(SpecError, match="no source"):
        Figure(1.0, "")
    with pytest.raises(SpecError, match="not negative, got -1"):
        Figure(-1.0, "somewhere")
    with pytest.raises(SpecError, match="finite"):
        Figure(float("nan"), "somewhere")


def test_rates_of_one_source_tell_unstated_from_absent() -> None:
    rates = tera_rates("a sheet", fp32=19.5, fp8=None)
    assert rates.fp32.value == 19.5e12
    assert rates.fp8.value is None
    assert rates.fp8.source.startswith("the device has no fp8")
    assert rates.of("bf16") == Figure(None, "not stated: a sheet")


def test_a_precision_names_the_format_of_its_matrix_products() -> None:
    assert matmul_dtype(Precision.FP32) is MatmulDtype.FP32
    assert matmul_dtype(Precision.BF16_MIXED) is MatmulDtype.BF16


def test_asking_for_a_device_loads_no_torch() -> None:
    code = (
        "import sys, suite.hardware as h, suite.hardware.matrix_rate;"
        "import parallelism.simulator.on_cpu, parallelism.simulator.simulators;"
        "h.device('cpu'); h.device('b200');"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False, timeout=30).returncode == 0
