"""What interrupts a long run and what each interruption costs: failures, checkpoints, recovery, spares."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from suite.parse import SpecError, require, setting, shown

HOUR_S = 3600.0


@dataclass(frozen=True)
class Failures:
    """Devices that fail one apart from the other, each at a constant rate; any of them stops the job.

    Counted: whatever is behind the rate (a device, its host, its links, the program), shared out over the devices.
    Not counted: early deaths and wear, failures that come in groups.
    """

    devices: int = setting(1, "devices of the job")
    per_device_hour: float = setting(0.0, "failures of one device an hour")

    def __post_init__(self) -> None:
        require(self.devices >= 1, f"failures.devices: must be at least 1, got {self.devices}")
        _not_negative("failures", self, "per_device_hour")

    @classmethod
    def of_mtbf(cls, devices: int, hours: float) -> Failures:
        """From the mean time between failures of one device; inf: it never fails."""
        require(hours > 0, f"failures.mtbf_hours: must be positive, got {shown(hours)}")
        return cls(devices, 1 / hours)

    @classmethod
    def of_count(cls, devices: int, count: float, hours: float) -> Failures:
        """From so many failures of a job of so many devices in so many hours."""
        require(count >= 0, f"failures.count: must not be negative, got {shown(count)}")
        require(0 < hours < math.inf, f"failures.hours: must be positive and finite, got {shown(hours)}")
        return cls(devices, count / hours / devices)

    @property
    def per_second(self) -> float:
        """Failures of the job a second: the devices' rates add up."""
        return self.devices * self.per_device_hour / HOUR_S

    @property
    def mtbf_s(self) -> float:
        """Mean seconds between two failures of the job."""
        return 1 / self.per_second if self.per_second else math.inf


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint costs, in seconds.

    blocking_s  by which training is later: all of a blocking one; of an asynchronous one the copy to host memory, and
                what its writing slows down
    writing_s   from there until it can be restarted from, beside training; 0: at once
    """

    blocking_s: float = setting(0.0, "seconds that training waits for a checkpoint")
    writing_s: float = setting(0.0, "seconds until it is written, beside training")

    def __post_init__(self) -> None:
        _not_negative("checkpoint", self, "blocking_s", "writing_s")

    @classmethod
    def blocking(cls, nbytes: float, bytes_per_second: float) -> Checkpoint:
        """Training waits until all of it is written, by the whole job together."""
        return cls(_seconds(nbytes, bytes_per_second, "bytes_per_second"))

    @classmethod
    def asynchronous(cls, nbytes: float, bytes_per_second: float, copied_per_second: float) -> Checkpoint:
        """Training waits for a copy (all ranks together at `copied_per_second`), which is then written beside it."""
        copy = _seconds(nbytes, copied_per_second, "copied_per_second")
        return cls(copy, _seconds(nbytes, bytes_per_second, "bytes_per_second"))


@dataclass(frozen=True)
class Recovery:
    """From a failure until training goes on: seconds to detect it, to reschedule the job (or swap a spare in), and to
    load the checkpoint and warm up.

    Where `repair_s` is given, a failure takes a device away for so long (on average) with probability `replaced`; the
    job goes on with one of `spares`, or waits for the first repair. Without it a replacement is always at hand.
    """

    detect_s: float = setting(0.0, "seconds until a failure is seen")
    reschedule_s: float = setting(0.0, "seconds until the job has its devices again, a spare among them")
    load_s: float = setting(0.0, "seconds to load the checkpoint and be training")
    repair_s: float | None = setting(None, "mean seconds until a failed device is back")
    spares: int = setting(0, "devices (or machines) kept ready beside the job's")
    replaced: float = setting(1.0, "share of the failures after which a device has to be replaced")

    def __post_init__(self) -> None:
        _not_negative("recovery", self, "detect_s", "reschedule_s", "load_s")
        require(self.spares >= 0, f"recovery.spares: must not be negative, got {self.spares}")
        require(0 <= self.replaced <= 1, f"recovery.replaced: a share between 0 and 1, got {shown(self.replaced)}")
        if self.repair_s is not None:
            _not_negative("recovery", self, "repair_s")
            return
        idle = [name for name, usual in (("spares", 0), ("replaced", 1.0)) if getattr(self, name) != usual]
        if idle:
            value = getattr(self, idle[0])
            raise SpecError(f"recovery.{idle[0]}: {value} has no effect without repair_s; say how long a repair takes")

    @property
    def restart_s(self) -> float:
        """Seconds from a failure until training goes on, a replacement being at hand."""
        return self.detect_s + self.reschedule_s + self.load_s


@dataclass(frozen=True)
class Reliability:
    """All that a run's goodput depends on, beside how often it saves."""

    failures: Failures = field(default_factory=Failures)
    checkpoint: Checkpoint = field(default_factory=Checkpoint)
    recovery: Recovery = field(default_factory=Recovery)

    def __post_init__(self) -> None:
        devices, spares = self.failures.devices, self.recovery.spares
        require(spares <= devices, f"recovery.spares: {spares} are more than the job's {devices} devices")

    @property
    def per_second(self) -> float:
        """Failures of the job a second."""
        return self.failures.per_second

    def check_interval(self, interval_s: float) -> None:
        """SpecError for work between two checkpoints that is none, or in which one cannot be written."""
        require(0 < interval_s < math.inf, f"interval: must be positive and finite, got {shown(interval_s)} s")
        writing = self.checkpoint.writing_s - self.checkpoint.blocking_s
        require(
            interval_s >= writing,
            f"interval: {interval_s:g} s is too short: a checkpoint is written for {self.checkpoint.writing_s:g} s"
            f" and the next must not begin before; at least {writing:g} s",
        )


def _seconds(nbytes: float, rate: float, name: str) -> float:
    require(0 <= nbytes < math.inf, f"checkpoint.bytes: must not be negative, got {shown(nbytes)}")
    require(0 < rate < math.inf, f"checkpoint.{name}: must be positive and finite, got {shown(rate)}")
    return nbytes / rate


def _not_negative(noun: str, item: object, *names: str) -> None:
    for name in names:
        value = getattr(item, name)
        require(0 <= value < math.inf, f"{noun}.{name}: must be finite and not negative, got {shown(value)}")
