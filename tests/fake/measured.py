"""The memory pass of a case in this process, on random tokens, beside its estimate."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from unittest.mock import patch

import torch

from memory.estimate import MemoryModel
from parallelism.batches import Batch, batch_of
from parallelism.building import make_trainer
from parallelism.expert.recording import Recording
from parallelism.memory_pass import cpu_memory
from parallelism.mesh import build_mesh
from parallelism.serving.bytes import weighed
from parallelism.training import Trainer
from suite.caches.build import build_cache
from suite.caches.core import next_logits, through
from suite.case import Case
from suite.data import made_up_examples
from suite.models.decoder_module import Decoder
from suite.received import Routing
from suite.record import STATE, Component, Moment, Sample

CPU = torch.device("cpu")
#: A loss's scalars, a norm a parameter, AdamW's few: allocated, and not modelled.
SCALARS = 1024
#: the moments that are levels, not the highest instants of a phase
LEVELS = (Moment.INIT, Moment.AFTER_FORWARD, Moment.AFTER_BACKWARD, Moment.STEADY)
#: where gradients come into being: what counts as one already is the measurement's choice
GROWING = (Moment.FORWARD_PEAK, Moment.BACKWARD_PEAK)


@dataclass(frozen=True)
class Beside:
    """Bytes by moment and component (None: the total) on one rank, predicted and measured."""

    predicted: dict[tuple[Moment, Component | None], int]
    measured: dict[tuple[Moment, Component | None], int]

    def off(self, key: tuple[Moment, Component | None]) -> int:
        """Predicted less measured."""
        return self.predicted.get(key, 0) - self.measured.get(key, 0)

    def states_off(self) -> list[str]:
        """State rows that are not equal to the byte."""
        keys = [(moment, component) for moment in Moment for component in STATE]
        settled = [key for key in keys if not (key[1] is Component.GRADIENTS and key[0] in GROWING)]
        return [f"{key}: {self.off(key):+}" for key in settled if self.off(key)]

    def totals_off(self, allowed: int = SCALARS) -> list[str]:
        """Moments whose total is off by more than `allowed` bytes."""
        return [
            f"{moment}: {self.off((moment, None)):+}" for moment in Moment if abs(self.off((moment, None))) > allowed
        ]

    def components_off(self, moments: Iterable[Moment] = LEVELS, allowed: int = SCALARS) -> list[str]:
        """Components of these moments that are off by more than `allowed` bytes."""
        keys = [(moment, component) for moment in moments for component in Component]
        return [f"{key}: {self.off(key):+}" for key in keys if abs(self.off(key)) > allowed]

    def peak_error(self) -> float:
        """Predicted over measured bytes of the largest moment, less 1."""
        predicted, measured = (
            max(nbytes for (_, component), nbytes in table.items() if component is None)
            for table in (self.predicted, self.measured)
        )
        return predicted / measured - 1


def measure(case: Case, rank: int = 0) -> Beside:
    """Measure a case's memory on this rank, in an initialised process group if it has several, and predict it: with
    expert parallelism, for the rows that this rank's experts received in each micro-batch of the last step."""
    torch.manual_seed(0)
    mesh = build_mesh(case.layout, "cpu")

    def make(*, mark: Callable[[str], None]) -> Trainer:
        return make_trainer(case, mesh, torch.device("cpu"), mark)

    def batch(step: int) -> Batch:
        examples = made_up_examples(case, step, case.global_batch)
        return batch_of(case, rank, step, examples, torch.device("cpu"))

    with Recording(case) as recording:
        samples = cpu_memory(recording.of(make), batch, rank, lambda text: None)
    received = {rank: recording.rows} if recording.rows else {}
    # a forked rank has one thread, whatever the machine would give a worker
    with patch("memory.estimate.threads_of", lambda case: torch.get_num_threads()):
        return Beside(_predicted(case, rank, received), _measured(samples))


def _measured(samples: list[Sample]) -> dict[tuple[Moment, Component | None], int]:
    return {(item.moment, item.component): int(item.value) for item in samples if item.moment}


def _predicted(case: Case, rank: int, received: Routing) -> dict[tuple[Moment, Component | None], int]:
    memory = MemoryModel(case, received=received).estimate(rank)
    table: dict[tuple[Moment, Component | None], int] = {}
    for moment, row in memory.by_moment.items():
        table[moment, None] = memory.total_bytes(moment)
        table |= {(moment, component): nbytes for component, nbytes in row.items()}
    return table


def allocated_for_cache(case: Case, model: Decoder, ids: torch.Tensor) -> int:
    """Bytes that the allocator handed out for what the case's cache holds once it has read these tokens, [b, s]."""
    with weighed(CPU) as found:
        cache = build_cache(case, CPU)
        with through(model, cache, case.cache.latent_form), torch.no_grad():
            next_logits(model, cache, ids, torch.arange(ids.shape[1]).expand(len(ids), -1))
        found.see(cache.held())
    return sum(found.nbytes.values())
