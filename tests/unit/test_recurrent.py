"""GRU and LSTM language models: torch's own layers with the same weights, counts and work by hand, what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from parallelism.simulator.work import Product, Repeated, eager_work
from suite.case import case_from
from suite.layout import Recompute
from suite.models import PRESETS
from suite.models.ledgers import ledger_of
from suite.models.recurrent import Cell, RecurrentSpec
from suite.models.recurrent_module import RecurrentModel
from suite.operators import Ledger
from suite.parse import SpecError
from suite.spec import LossKernel, Workload
from suite.tape import FP32, Backend

pytestmark = pytest.mark.unit

PARTS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
GATES = {Cell.LSTM: 4, Cell.GRU: 3}
CELLS = pytest.mark.parametrize("cell", list(Cell))


def ledger(spec: RecurrentSpec, batch: int = 3, seq_len: int = 8) -> Ledger:
    """The ledger of a short step."""
    workload = Workload(micro_batch=batch, seq_len=seq_len)
    return ledger_of(spec, workload, Recompute(), FP32, Backend.CUDA, 1)


def random_model(cell: Cell, loss: LossKernel = LossKernel.PLAIN) -> RecurrentModel:
    """Two layers, no parameter of which is zero."""
    torch.manual_seed(0)
    model = RecurrentModel(RecurrentSpec(cell=cell, layers=2, hidden=20, vocab=37), loss)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model


def reference(model: RecurrentModel, cell: Cell) -> nn.RNNBase:
    """torch.nn.LSTM or nn.GRU with the model's weights."""
    kind = nn.LSTM if cell is Cell.LSTM else nn.GRU
    layers = kind(model.spec.hidden, model.spec.hidden, model.spec.layers, batch_first=True)
    with torch.no_grad():
        for index, block in model.blocks.items():
            for part in PARTS:
                getattr(layers, f"{part}_l{index}").copy_(block.get_parameter(f"recurrence.{part}"))
    return layers


def close(found: Tensor | None, wanted: Tensor | None) -> bool:
    """Equal within 1e-5 of the largest."""
    assert found is not None
    assert wanted is not None
    return bool((found - wanted).abs().max() <= 1e-5 * wanted.abs().max())


@CELLS
@pytest.mark.parametrize(("batch", "tokens"), [(3, 11), (1, 1)])
def test_outputs_loss_and_gradients_are_those_of_torchs_layers(cell: Cell, batch: int, tokens: int) -> None:
    model = random_model(cell)
    layers = reference(model, cell)
    ids, labels = torch.randint(37, (2, batch, tokens))
    table, head = (module.weight.detach().clone().requires_grad_() for module in (model.embedding, model.head))
    outputs, _ = layers(F.embedding(ids, table))
    wanted = F.cross_entropy((outputs @ head.T).flatten(0, 1), labels.flatten())
    wanted.backward()
    loss = model(ids, labels)
    loss.backward()
    assert close(model.trunk(ids), outputs)
    assert close(loss, wanted)
    assert close(model.embedding.weight.grad, table.grad)
    assert close(model.head.weight.grad, head.grad)
    for index, block in model.blocks.items():
        for part in PARTS:
            found, same = block.get_parameter(f"recurrence.{part}").grad, getattr(layers, f"{part}_l{index}").grad
            if tokens > 1 or part != "weight_hh":
                assert close(found, same), f"{index} {part}"
            else:  # one token has no state before it
                assert found is not None
                assert not found.any()


@CELLS
def test_a_token_depends_on_no_later_one(cell: Cell) -> None:
    model = random_model(cell)
    ids = torch.randint(37, (2, 9))
    other = ids.clone()
    other[:, 5] = (other[:, 5] + 1) % 37
    same = (model(ids) == model(other)).all(dim=2).all(dim=0)
    assert same.tolist() == [True] * 5 + [False] * 4


def test_a_slice_at_a_time_the_loss_is_the_same() -> None:
    ids, labels = torch.randint(37, (2, 2, 9))
    plain, chunked = (random_model(Cell.GRU, loss)(ids, labels) for loss in LossKernel)
    assert close(chunked, plain)


@CELLS
@pytest.mark.parametrize("tied", [False, True])
def test_parameters_are_the_formula_and_the_modules(cell: Cell, tied: bool) -> None:
    spec = RecurrentSpec(cell=cell, layers=3, hidden=20, vocab=37, tied=tied)
    h = 20
    by_hand = 3 * GATES[cell] * (h * h + h * h + 2 * h) + (1 if tied else 2) * 37 * h
    assert ledger(spec).parameters == by_hand
    with torch.device("meta"):
        module = RecurrentModel(spec)
    found = {
        placed.weight_name(weight): weight.values
        for placed in ledger(spec).segments
        for weight in placed.segment.weights
        if not weight.tied_to
    }
    assert found == {name: tuple(parameter.shape) for name, parameter in module.named_parameters()}


def test_zarembas_large_model_has_66_million_parameters() -> None:
    """arXiv:1409.2329, whose models arXiv:1608.05859, table 3, counts: 66 M, and 20 M for the medium one."""
    counts = {name: ledger_of_preset(f"lstm-ptb-{name}").parameters for name in ("medium", "large")}
    assert {name: round(count / 1e6) for name, count in counts.items()} == {"medium": 20, "large": 66}


def ledger_of_preset(name: str) -> Ledger:
    """A recurrent preset's."""
    spec = PRESETS[name]
    assert isinstance(spec, RecurrentSpec)
    return ledger(spec)


@CELLS
def test_flops_are_the_products_of_inputs_states_and_head(cell: Cell) -> None:
    spec = RecurrentSpec(cell=cell, layers=2, hidden=20, vocab=37)
    tokens, rows = 3 * 8, GATES[cell] * 20
    forward = 2 * tokens * (2 * (20 * rows + 20 * rows) + 20 * 37)
    assert ledger(spec).flops() == ledger(spec).flops(causal=True) == 3 * forward


@CELLS
def test_a_devices_work_has_the_ledgers_flops_and_goes_token_by_token(cell: Cell) -> None:
    found = ledger(RecurrentSpec(cell=cell, layers=1, hidden=20, vocab=37))
    block = found.segments[1].segment
    work = eager_work(block.body)
    everything = [*work.forward, *work.inputs, *work.weights]
    steps = [item for item in everything if isinstance(item, Repeated)]
    products = [item for item in everything if isinstance(item, Product)]
    in_steps = sum(
        item.times * kernel.flops for item in steps for kernel in item.kernels if isinstance(kernel, Product)
    )
    assert [item.times for item in steps] == [8, 8]
    assert sum(item.flops for item in products) + in_steps == sum(item.flops.total() for item in block.operators())


def test_the_state_is_the_same_however_long_the_text_is() -> None:
    """LSTM: output and cell, 2 layers of 192; GRU: output alone, 2 of 224."""
    specs = [spec for name in ("lstm-1m", "gru-1m") if isinstance(spec := PRESETS[name], RecurrentSpec)]
    states = {spec.name: spec.state_bytes() for spec in specs}
    assert states == {"lstm-1m": 2 * 2 * 192 * 4, "gru-1m": 2 * 224 * 4}


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"layout": {"tp": 2}}, "layout.tp(2) with model.family(recurrent)"),
    ({"layout": {"pp": 2}}, "layout.pp(2) with model.family(recurrent)"),
    ({"layout": {"cp": 2}}, "layout.cp(2) with model.family(recurrent)"),
    ({"layout": {"recompute": "selective"}}, "layout.recompute(selective) with model.family(recurrent)"),
    ({"layout": {"recompute": "selective-op"}}, "layout.recompute(selective-op) with model.family(recurrent)"),
    ({"workload": {"attention": "eager"}}, "workload.attention(eager) with model.family(recurrent)"),
    ({"workload": {"precision": "fp8"}}, "workload.precision(fp8) with model.family(recurrent)"),
    ({"serving": {"new_tokens": 4}}, "recurrent"),
    ({"model": {"family": "recurrent", "cell": "rnn"}}, "model.cell: 'rnn'"),
    ({"model": {"family": "recurrent", "hidden": 0}}, "model.hidden: must be at least 1, got 0"),
    ({"model": {"family": "recurrent", "heads": 2}}, "model.heads: unknown key"),
    ({"model": {"family": "recurrent", "dropout": 1.0}}, "model.dropout: must be in [0, 1), got 1.0"),
]


@pytest.mark.parametrize(("given", "words"), REFUSED, ids=[words for _, words in REFUSED])
def test_what_recurrent_layers_have_no_place_for_is_refused(given: dict[str, Any], words: str) -> None:
    with pytest.raises(SpecError) as caught:
        case_from({"model": "lstm-1m"} | given)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
