"""The recurrent language model as an nn.Module: what the recurrent ledger describes, operator by operator."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from suite.models.blocks import compute_dtype
from suite.models.dropout import SequenceDropout
from suite.models.loss import LOSSES
from suite.models.recurrent import Cell, RecurrentSpec
from suite.models.recurrent_cells import FUNCTIONS
from suite.spec import LossKernel

FORGET_BIAS = 1.0  # Jozefowicz et al. 2015, section 2.2: gates that start open let gradients through


class Recurrence(nn.Module):
    """One layer, from a state of zeros: torch.nn.LSTM's or nn.GRU's formulas, names and shapes, batch first."""

    def __init__(self, cell: Cell, hidden: int) -> None:
        super().__init__()
        self.cell = cell
        rows = cell.gates * hidden
        self.weight_ih = nn.Parameter(torch.empty(rows, hidden))
        self.weight_hh = nn.Parameter(torch.empty(rows, hidden))
        self.bias_ih = nn.Parameter(torch.empty(rows))
        self.bias_hh = nn.Parameter(torch.empty(rows))

    def forward(self, x: Tensor) -> Tensor:
        """x [b, s, h] -> [b, s, h], all of it in autocast's type where that is on, as torch runs its own layers."""
        kind = compute_dtype(x)
        weights = (self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh)
        out: Tensor = FUNCTIONS[self.cell].apply(x.to(kind), *(weight.to(kind) for weight in weights))
        return out


class RecurrentBlock(nn.Module):
    """A layer; what goes up from it may be dropped out, what goes on to the next token is not."""

    def __init__(self, spec: RecurrentSpec, site: int) -> None:
        super().__init__()
        self.recurrence = Recurrence(spec.cell, spec.hidden)
        self.dropout = SequenceDropout(spec.dropout, site)

    def forward(self, x: Tensor, keys: Tensor | None = None) -> Tensor:
        """x [b, s, h] -> [b, s, h]."""
        return self.dropout(self.recurrence(x), keys)


class RecurrentModel(nn.Module):
    """A recurrent language model. With labels it returns the mean loss in nats a token, else logits [b, s, V]."""

    def __init__(self, spec: RecurrentSpec, loss: LossKernel = LossKernel.PLAIN) -> None:
        super().__init__()
        self.spec = spec
        self.loss = LOSSES[loss]
        self.embedding = nn.Embedding(spec.vocab, spec.hidden)
        self.dropout = SequenceDropout(spec.dropout, site=0)
        self.blocks = nn.ModuleDict({str(index): RecurrentBlock(spec, index + 1) for index in range(spec.layers)})
        self.head = nn.Linear(spec.hidden, spec.vocab, bias=False)
        if spec.tied:
            self.head.weight = self.embedding.weight

    def forward(self, ids: Tensor, labels: Tensor | None = None, keys: Tensor | None = None) -> Tensor:
        """ids [b, s] -> logits [b, s, V]; with labels [b, s], the mean cross-entropy. keys [b]: one random key a
        sequence; without them nothing is dropped out."""
        hidden = self.trunk(ids, keys)
        return self.head(hidden) if labels is None else self.loss(self.head, hidden, labels)

    def trunk(self, ids: Tensor, keys: Tensor | None = None) -> Tensor:
        """The last layer's outputs, [b, s, h]."""
        x = self.dropout(self.embedding(ids), keys)
        for block in self.blocks.values():
            x = block(x, keys)
        return x

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Embedding and head normal of std 1 / sqrt(h); the layers' matrices uniform within 1 / sqrt(h), as torch's
        own; zero biases, but for the LSTM's forget gate."""
        hidden = self.spec.hidden
        bound = 1 / math.sqrt(hidden)
        for name, parameter in self.named_parameters():
            if parameter.dim() < 2:
                parameter.zero_()
                if self.spec.cell is Cell.LSTM and name.endswith("bias_ih"):
                    parameter[hidden : 2 * hidden] = FORGET_BIAS
            elif "recurrence" in name:
                nn.init.uniform_(parameter, -bound, bound)
            else:
                nn.init.normal_(parameter, std=bound)
