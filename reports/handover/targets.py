"""The targets a case can be handed over to: one line each."""

from __future__ import annotations

from collections.abc import Callable

from reports.handover.accelerate import accelerate
from reports.handover.base import Handover
from reports.handover.deepspeed import deepspeed
from reports.handover.megatron.script import megatron_script
from reports.handover.slurm import slurm
from reports.handover.torchrun import torchrun_script
from reports.handover.torchtitan import torchtitan
from suite.case import Case

#: writers by the name that --to takes. Each raises SpecError for a case that the target cannot train at all
TARGETS: dict[str, Callable[[Case], Handover]] = {
    "deepspeed": deepspeed,
    "accelerate": accelerate,
    "megatron": megatron_script,
    "torchtitan": torchtitan,
    "torchrun": torchrun_script,
    "slurm": slurm,
}
