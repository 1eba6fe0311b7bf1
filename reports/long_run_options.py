"""What a user says of a long run: failures, checkpoints, slow ranks, how much work, what a device costs. One noun, its
flags read off its fields."""

from __future__ import annotations

import argparse
import dataclasses
import math
import typing
from dataclasses import dataclass
from typing import Any

from parallelism.simulator.cost import Rates
from parallelism.simulator.failures import HOUR_S, Checkpoint, Failures, Recovery, Reliability
from parallelism.simulator.slow_rank import SlowRank
from suite.parse import SpecError, from_text, require, setting, shown
from suite.units import GIB

DAY_S = 24 * HOUR_S
SEEDS = 20

#: what each flag needs beside it, any one of them, to have an effect
_FAILURE = ("mtbf_hours", "failures_per_1000_device_hours")
_SAVING = ("checkpoint_s", "checkpoint_gib_per_s")
_LENGTH = ("tokens", "days")
_NEEDS: dict[str, tuple[tuple[str, ...], ...]] = {
    **dict.fromkeys(_FAILURE, (_SAVING, ("restart_s",))),
    **dict.fromkeys((*_SAVING, "checkpoint_every_s", "restart_s", "repair_hours"), (_FAILURE,)),
    "checkpoint_writing_s": (("checkpoint_s",),),
    "spares": (("repair_hours",),),
    "seeds": (_FAILURE, _LENGTH),
    **dict.fromkeys(("price_per_hour", "watts", "power_share", "pue", "kg_co2_per_kwh"), (_LENGTH,)),
}
_ONE_OF = (_FAILURE, _SAVING, _LENGTH)


@dataclass(frozen=True)
class LongRunOptions:
    """All of it; None is not given. An option that would have no effect is refused."""

    mtbf_hours: float | None = setting(None, "mean hours between two failures of one device")
    failures_per_1000_device_hours: float | None = setting(None, "failures of 1,000 devices in an hour")
    checkpoint_s: float | None = setting(None, "seconds that training waits for a checkpoint")
    checkpoint_gib_per_s: float | None = setting(
        None, "GiB/s at which all ranks together write parameters and optimizer state, while training waits"
    )
    checkpoint_writing_s: float | None = setting(None, "seconds until a checkpoint is written, beside training [0]")
    checkpoint_every_s: float | None = setting(None, "seconds of training between two checkpoints [the best]")
    restart_s: float | None = setting(None, "seconds from a failure until training goes on: detect, reschedule, load")
    repair_hours: float | None = setting(None, "mean hours until a failed device is back [one is always at hand]")
    spares: int | None = setting(None, "devices kept ready to be swapped in [0]")
    slow: tuple[SlowRank, ...] = setting((), "slow ranks, as RANK:FACTOR,RANK:FACTOR")
    jitter: float | None = setting(None, "standard deviation of a rank's time from step to step, over its mean")
    tokens: float | None = setting(None, "length of the run in tokens")
    days: float | None = setting(None, "length of the run in days, all told")
    price_per_hour: float | None = setting(None, "price of a device for an hour")
    watts: float | None = setting(None, "watts of one device [its datasheet's]")
    power_share: float | None = setting(None, "share of those watts that is drawn on average [1]")
    pue: float | None = setting(None, "the building's energy over the devices' [not counted]")
    kg_co2_per_kwh: float | None = setting(None, "carbon dioxide of a kilowatt-hour")
    seeds: int | None = setting(None, f"seeds of the spread over lived runs [{SEEDS}]")

    def __post_init__(self) -> None:
        given = self.given
        for names in _ONE_OF:
            both = [name for name in names if name in given]
            require(len(both) < 2, f"{flag(both[-1])}: given beside {flag(both[0])}; give one of them" if both else "")
        for name in given:
            value = getattr(self, name)
            for needed in _NEEDS.get(name, ()):
                words = " or ".join(map(flag, needed))
                require(any(item in given for item in needed), f"{flag(name)}: {shown(value)} also needs {words}")
            if isinstance(value, float):
                zero = name in ("checkpoint_s", "checkpoint_writing_s", "restart_s", "repair_hours", "jitter")
                good = value < math.inf and (value >= 0 if zero else value > 0)
                bound = "not negative" if zero else "above zero"
                require(good, f"{flag(name)}: must be finite and {bound}, got {shown(value)}")
        share, pue = self.power_share, self.pue
        require(share is None or share <= 1, f"--power-share: a share of the watts, at most 1, got {share}")
        require(pue is None or pue >= 1, f"--pue: must be at least 1, got {pue}")
        require(self.seeds is None or self.seeds >= 1, f"--seeds: must be at least 1, got {self.seeds}")

    @property
    def given(self) -> tuple[str, ...]:
        """The fields that say something."""
        names = (field.name for field in dataclasses.fields(self))
        return tuple(name for name in names if getattr(self, name) not in (None, ()))

    @property
    def has_failures(self) -> bool:
        """Is a rate of failures given?"""
        return any(name in self.given for name in _FAILURE)

    def reliability(self, devices: int, checkpoint_bytes: int | None) -> Reliability:
        """Failures, checkpoints and recovery of a job of so many devices. SpecError where a checkpoint's bytes are
        needed and not known."""
        if self.mtbf_hours is not None:
            failures = Failures.of_mtbf(devices, self.mtbf_hours)
        else:
            failures = Failures(devices, (self.failures_per_1000_device_hours or 0.0) / 1000)
        repair = None if self.repair_hours is None else self.repair_hours * HOUR_S
        recovery = Recovery(load_s=self.restart_s or 0.0, repair_s=repair, spares=self.spares or 0)
        return Reliability(failures, self._checkpoint(checkpoint_bytes), recovery)

    def rates(self, watts: float | None, source: str) -> Rates:
        """What a device costs, with the datasheet's watts where the user gives none."""
        if self.watts is not None:
            watts, source = self.watts, "--watts"
        idle = [name for name in ("power_share", "pue", "kg_co2_per_kwh") if name in self.given]
        if watts is None and idle:
            raise SpecError(f"{flag(idle[0])}: the device's power is not known ({source}); give --watts")
        share = 1.0 if self.power_share is None else self.power_share
        return Rates(self.price_per_hour, watts, source, share, self.pue, self.kg_co2_per_kwh)

    def _checkpoint(self, nbytes: int | None) -> Checkpoint:
        if self.checkpoint_gib_per_s is None:
            return Checkpoint(self.checkpoint_s or 0.0, self.checkpoint_writing_s or 0.0)
        if nbytes is None:
            raise SpecError("--checkpoint-gib-per-s: DeepSpeed's checkpoint is not counted here; give --checkpoint-s")
        return Checkpoint.blocking(nbytes, self.checkpoint_gib_per_s * GIB)


def add_long_run_flags(parser: argparse.ArgumentParser) -> None:
    """A flag a field, in a group of their own."""
    group = parser.add_argument_group("the long run")
    for field in dataclasses.fields(LongRunOptions):
        metavar = "RANK:FACTOR" if field.name == "slow" else "N" if field.name in ("spares", "seeds") else "X"
        group.add_argument(flag(field.name), metavar=metavar, help=field.metadata["help"].replace("%", "%%"))


def long_run_options(options: argparse.Namespace) -> LongRunOptions:
    """What the flags say. SpecError for text that is no number, and for what cannot be."""
    hints = typing.get_type_hints(LongRunOptions)
    read: dict[str, Any] = {}
    for field in dataclasses.fields(LongRunOptions):
        text = getattr(options, field.name)
        if text is not None and field.name == "slow":
            read["slow"] = tuple(SlowRank.parse(part, "--slow") for part in text.split(","))
        elif text is not None:
            read[field.name] = from_text(text, hints[field.name], flag(field.name))
    return LongRunOptions(**read)


def flag(name: str) -> str:
    """A field's flag."""
    return "--" + name.replace("_", "-")
