"""What a plan is asked for: a model and its work, a cluster, what is fixed, and what makes a layout better."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

from memory.verdict import Verdict
from suite.case import Case
from suite.hardware import Device, device
from suite.parse import require
from suite.spec import Cluster

#: GPUs of a machine where nothing is said: what they are sold in
PER_NODE = 8


class Objective(StrEnum):
    """What a better layout has less of, for the same tokens."""

    TIME = "time"  # seconds a step
    COST = "cost"  # GPU-seconds a step: each GPU is paid for while the step lasts
    ENERGY = "energy"  # joules a step at the devices' power limit


@dataclass(frozen=True)
class Asked:
    """A question. `base` has the model, the workload, the recipe and the device, of one rank; its layout is not looked
    at. `fixed` gives settings of the layout, and micro_batch, that every answer has."""

    base: Case
    nodes: int
    per_node: int
    global_batch: int
    fixed: Mapping[str, Any] = field(default_factory=dict)
    objective: Objective = Objective.TIME
    accept: Verdict = Verdict.FITS
    best: int = 10

    def __post_init__(self) -> None:
        require(self.best >= 1, f"--best: must be at least 1, got {self.best}")
        require(self.global_batch >= 1, f"--global-batch: must be at least 1, got {self.global_batch}")

    @property
    def gpus(self) -> int:
        """Devices in all."""
        return self.nodes * self.per_node

    @property
    def device(self) -> Device:
        """What they are."""
        return device(self.base.cluster.device)

    @property
    def cluster(self) -> Cluster:
        """The cluster of an answer."""
        return replace(self.base.cluster, nodes=self.nodes, per_node=self.per_node)

    def on(self, nodes: int, per_node: int) -> Asked:
        """The same question of a smaller or larger cluster."""
        return replace(self, nodes=nodes, per_node=per_node)

    def weight(self, seconds: float) -> float:
        """What the objective makes of a step's seconds on these devices: seconds, GPU-seconds or joules.

        Counted for energy: every device at its power limit (the datasheet's) for the whole step, which none exceeds.
        Not counted: hosts, switches, cooling; that devices that wait draw less.
        """
        match self.objective:
            case Objective.TIME:
                return seconds
            case Objective.COST:
                return seconds * self.gpus
            case Objective.ENERGY:
                watts = self.device.power_watts.value
                require(
                    watts is not None,
                    f"--objective: energy needs the device's power, and {self.device.name} has none"
                    f" ({self.device.power_watts.source}); take time or cost",
                )
                assert watts is not None
                return seconds * self.gpus * watts
