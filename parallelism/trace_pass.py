"""The trace pass of a rank: the memory pass on fake tensors in a fake world. Nothing is computed or sent."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.device_mesh import DeviceMesh
from torch.utils._python_dispatch import _disable_current_modes

from parallelism.batches import Batch
from parallelism.building import make_trainer
from parallelism.fake_world import answer_reductions, fake_world, stand_ins
from parallelism.memory_pass import sighted_steps
from parallelism.mesh import build_mesh
from parallelism.training import Trainer
from suite.case import Case
from suite.data import made_up_examples
from suite.fake_storages import Scratch, nothing, track_storages
from suite.memory_probe import Sightings, cpu_samples
from suite.record import Sample
from suite.tasks.base import Rows

#: what tokens are
INTEGERS = torch.int64
#: makes the trainer that is traced: of a case, its mesh, a device, and who is told each phase's start
Builder = Callable[[Case, DeviceMesh | None, torch.device, Callable[[str], None]], Trainer]


@dataclass(frozen=True)
class TracedMemory:
    """MEMORY samples of a rank as the measured pass gives them; and the same without what kernels need in passing."""

    samples: tuple[Sample, ...]
    without_workspace: tuple[Sample, ...]


def trace_memory(case: Case, rank: int, scratch: Scratch = nothing, build: Builder = make_trainer) -> TracedMemory:
    """The memory of a rank at every moment of a steady step, by component: MEMORY_STEPS steps on fake CPU tensors.

    `scratch` says what kernels need in passing, `build` makes the trainer. Raises RuntimeError in a process that has a
    process group.
    """
    sightings = Sightings()
    with fake_world(rank, case.layout.world_size):
        mesh = build_mesh(case.layout, "cpu")
        with FakeTensorMode(allow_non_fake_inputs=True), stand_ins():
            batch = _batch(case)

            def make(*, mark: Callable[[str], None]) -> Trainer:
                trainer = build(case, mesh, torch.device("cpu"), mark)
                answer_reductions(trainer.model)
                return trainer

            with track_storages(scratch) as tracker:
                sightings.address = tracker.address
                trainer = sighted_steps(make, lambda step: batch, sightings, tracker.mark, lambda text: None)
            trainer.close()
            del trainer
    traces = (tracker.recorded(), tracker.recorded(with_scratch=False))
    return TracedMemory(*(tuple(cpu_samples(trace, sightings, rank)) for trace in traces))


def _batch(case: Case) -> Batch:
    """A rank's batch, made unheard, as a data loader's: fake tokens; keys for dropout, which the host reads, real."""
    workload = case.workload
    rows = (workload.micro_batches, workload.micro_batch)
    with _disable_current_modes():
        examples = made_up_examples(case, 0, rows[0] * rows[1])
        keys = torch.zeros(rows, dtype=torch.int64) if case.model.dropout else None

    def fake(array: Rows, cut: int = 1) -> Tensor:
        return torch.empty((*rows, array.shape[1] // cut, *array.shape[2:]) if array.ndim > 1 else rows, dtype=INTEGERS)

    return Batch(
        fake(examples.ids, case.layout.cp),
        fake(examples.labels, case.layout.cp),
        keys,
        {name: fake(array) for name, array in examples.extras.items()},
        () if examples.answers is None else (1.0,) * rows[0],
    )
