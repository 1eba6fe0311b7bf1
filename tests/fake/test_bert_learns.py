"""BERT learns from the default corpus: its masked tokens cost less than guessing each by its frequency."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from parallelism.batches import batch_of, held_out
from parallelism.building import make_trainer
from suite.case import case_from
from suite.data import case_data, train_windows, validation_windows
from suite.models.base import IGNORED
from suite.tasks.table import task_of

pytestmark = pytest.mark.fake

STEPS, HELD_OUT = 200, 4
CPU = torch.device("cpu")


def test_masked_tokens_cost_less_than_by_their_frequency() -> None:
    """The same held-out tokens, by the model and by their frequency in the training text, in nats a token."""
    case = case_from({
        "model": {"family": "bert", "layers": 2, "hidden": 64, "heads": 4, "ffn": 256, "vocab": 260},
        "workload": {"seq_len": 64, "micro_batch": 8, "precision": "fp32"},
        "recipe": {"steps": STEPS, "learning_rate": 3e-3, "warmup_steps": 12, "tokenizer": "byte",
                   "validation_batches": HELD_OUT},
    })  # fmt: skip
    data, task = case_data(case), task_of(case.model)
    windows = train_windows(data, case.recipe, task.window(case))
    trainer = make_trainer(case, None, CPU)
    for step in range(STEPS):
        trainer.step(step, batch_of(case, 0, step, task.examples(case, windows, step, case.global_batch), CPU))
    held = validation_windows(data, case.recipe, task.window(case), case.global_batch)
    counts = np.bincount(data.train, minlength=data.vocab) + 1
    by_frequency, by_model = [], []
    for index in range(HELD_OUT):
        batch = held_out(case, 0, task.examples(case, held, index, case.global_batch), CPU)
        wanted = batch.labels[0][batch.labels[0] != IGNORED]
        by_frequency.append(-np.log(counts / counts.sum())[wanted.numpy()])
        with torch.no_grad():
            answer = trainer.model(batch.ids[0], **{name: extra[0] for name, extra in batch.extras.items()})
        logits = answer.tokens[batch.labels[0] != IGNORED]
        by_model.append(F.cross_entropy(logits, wanted, reduction="none").numpy())
    assert np.concatenate(by_model).mean() < np.concatenate(by_frequency).mean() - 0.05
