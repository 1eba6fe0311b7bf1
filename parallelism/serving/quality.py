"""What a cache costs in quality: held-out text's loss, without a cache and token by token through the case's own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from parallelism.batches import batch_of
from parallelism.building import make_trainer
from parallelism.serving.model import as_served
from suite.cache import CacheSpec
from suite.caches.build import build_cache
from suite.caches.core import next_logits, through
from suite.case import Case
from suite.data import load_data, train_windows, validation_windows
from suite.layout import Layout
from suite.models.decoder_module import Decoder
from suite.parse import require
from suite.serving import Serving
from suite.serving_rules import context_tokens
from suite.spec import Cluster
from suite.tasks.base import Examples

#: told what is being done
Heartbeat = Callable[[str], None]


def _unheard(text: str) -> None:
    """Nobody listens."""


def training_case(case: Case) -> Case:
    """A served case's model as one process trains it: its recipe, on texts as long as its prompts with their answers,
    so that no distance is new to it; where the model has a window, on texts of that length, since a window is not
    trained yet and no longer distance is ever seen. Cases that differ in their caches alone share it, and its weights.
    SpecError where that cannot be trained."""
    tokens = min(_text_tokens(case), case.model.window or case.model.max_positions)
    return replace(
        case, layout=Layout(), cluster=Cluster(device=case.cluster.device), serving=Serving(), cache=CacheSpec(),
        workload=replace(case.workload, seq_len=tokens),
    )  # fmt: skip


def trained_model(case: Case, device: torch.device, heartbeat: Heartbeat = _unheard) -> Decoder:
    """A served case's model after every step of its recipe, undivided, its weights in the type that it answers in.
    `heartbeat` is told of every step, lest the case be taken for one that hangs.

    Raises SpecError for a precision that is not trained, or a corpus that cannot be read or is too short."""
    training = training_case(case)
    windows = train_windows(
        load_data(training.recipe, training.model.vocab), training.recipe, training.workload.seq_len
    )
    trainer = make_trainer(training, None, device)
    for step in range(training.recipe.steps):
        ids, labels = windows.global_batch(step, training.global_batch)
        trainer.step(step, batch_of(training, 0, step, Examples(ids, labels), device))
        heartbeat(f"step {step + 1} of {training.recipe.steps} before held-out text")
    trainer.close()
    model = trainer.model
    assert isinstance(model, Decoder)
    return as_served(model, None, replace(case, layout=training.layout, cluster=training.cluster))


def held_out_text(case: Case, device: torch.device) -> tuple[Tensor, Tensor]:
    """Held-out text as ids and their labels, [b, t] each: recipe.validation_batches batches (at least one) of
    micro_batch sequences, as long as prompt and answer, or as the model has positions. SpecError for too short a text.
    """
    recipe = replace(case.recipe, validation_batches=max(1, case.recipe.validation_batches))
    tokens, batch = _text_tokens(case), case.workload.micro_batch
    windows = validation_windows(load_data(recipe, case.model.vocab), recipe, tokens, batch)
    ids, labels = windows.global_batch(0, batch * recipe.validation_batches)
    return torch.from_numpy(ids).to(device), torch.from_numpy(labels).to(device)


def loss_without_cache(model: Decoder, ids: Tensor, labels: Tensor) -> float:
    """Mean cross-entropy of the text, ids and labels [b, t], in nats a token: every sequence in one pass of its own."""
    with torch.no_grad():
        return torch.stack([model(*pair) for pair in zip(ids.split(1), labels.split(1), strict=True)]).mean().item()


def loss_through_cache(
    model: Decoder, case: Case, ids: Tensor, labels: Tensor, heartbeat: Heartbeat = _unheard
) -> float:
    """The same figure with every token read by itself, as a token that was made is: its logits come from a cache of the
    case's kind that holds what came before it, as it holds it, and the token's own entry. The cache is as long as the
    text, whatever room the case has. Raises SpecError where such a text cannot be served, as for one token alone."""
    batch, tokens = ids.shape
    require(tokens >= 2, f"text: {tokens} token a sequence has nothing before it; give at least 2")
    cache = build_cache(_reading_case(case, batch, tokens), ids.device)
    places = torch.arange(tokens, device=ids.device).expand(batch, -1)
    losses = []
    with through(model, cache, case.cache.latent_form), torch.no_grad():
        for token, place, label in zip(ids.split(1, 1), places.split(1, 1), labels.unbind(1), strict=True):
            losses.append(F.cross_entropy(next_logits(model, cache, token, place), label))
            heartbeat(f"token {len(losses)} of {tokens} of held-out text")
    return torch.stack(losses).mean().item()


def _reading_case(case: Case, batch: int, tokens: int) -> Case:
    """The case with a cache for so many sequences of so many tokens."""
    return replace(
        case, workload=replace(case.workload, micro_batch=batch, seq_len=tokens - 1), serving=Serving(new_tokens=1),
        cache=replace(case.cache, cache_tokens=None),
    )  # fmt: skip


def _text_tokens(case: Case) -> int:
    """Tokens of a text that fills the case's cache, as far as the model has positions."""
    return min(context_tokens(case), case.model.max_positions)
