"""Held-out losses of a launch's served cases: those that differ in their caches alone share one trained model."""

from __future__ import annotations

from dataclasses import replace

import torch

from parallelism.serving.quality import (
    Heartbeat,
    held_out_text,
    loss_through_cache,
    loss_without_cache,
    trained_model,
    training_case,
)  # fmt: skip
from suite.case import Case
from suite.layout import Layout
from suite.models.decoder_module import Decoder
from suite.record import Quantity
from suite.spec import Cluster


class Losses:
    """Keeps the model that was trained last: cases of one model follow each other in a launch."""

    def __init__(self) -> None:
        self._latest: tuple[Case, Decoder] | None = None

    def of(self, case: Case, device: torch.device, heartbeat: Heartbeat) -> dict[Quantity, float]:
        """Nats a token of recipe.validation_batches batches without a cache and through the case's, by one process
        whatever the layout; `heartbeat` hears of every step and token. SpecError for what cannot be trained."""
        alone = replace(case, layout=Layout(), cluster=Cluster(device=case.cluster.device))
        model, text = self._trained(alone, device, heartbeat), held_out_text(alone, device)
        return {
            Quantity.EXACT_LOSS: loss_without_cache(model, *text),
            Quantity.CACHED_LOSS: loss_through_cache(model, alone, *text, heartbeat),
        }

    def _trained(self, case: Case, device: torch.device, heartbeat: Heartbeat) -> Decoder:
        training = training_case(case)
        if self._latest is None or self._latest[0] != training:
            self._latest = training, trained_model(case, device, heartbeat)
        return self._latest[1]
