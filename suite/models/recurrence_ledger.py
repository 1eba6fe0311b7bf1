"""A recurrent layer on a Tape: what suite/models/recurrent_cells.py runs, one kernel over all tokens."""

from __future__ import annotations

from suite.models.recurrent import Cell
from suite.operators import Array, Flops, Kernel, OperatorKind, Weight
from suite.tape import Tape

#: the kernel that goes from token to token; its first two writes are the output and the gates
RECURRENCE = "recurrence"
#: [b, h] that the way back through the tokens needs beside the gates' gradients; the GRU also G of them (its product)
BACKWARD_STATES = {Cell.LSTM: 4, Cell.GRU: 3 + 3}


def recurrence(tape: Tape, name: str, x: Array, cell: Cell) -> Array:
    """Keeps x (its cast copy), the gates, [b, s, h] once more (cells, or the state's part of the candidate), the
    output; and where autocast is on, copies of both matrices, which are made for this layer alone.

    Counted: one product of all tokens with the input's matrix, one product a token with the state's, and the same
    twice over backward.
    """
    weights = _weights(tape, name, x, cell)
    kernels: list[Kernel] = []
    read_x, *read = (_cast(tape, item, kernels) for item in (x, *weights))
    kind = tape.numerics.compute
    out = Array(f"{name} output", x.shape, kind)
    gates = Array(f"{name} gates", (*x.shape[:-1], weights[0].shape[0]), kind)
    beside = Array(f"{name} cells" if cell is Cell.LSTM else f"{name} candidates", x.shape, kind)
    gradients = (read_x, *read)
    copies = tuple(item for item in read[:2] if item not in weights)
    forward_scratch, backward_scratch = _scratch(tape, cell, out, gates, gradients)
    kernels.append(
        Kernel(
            RECURRENCE, gradients, (out, gates, beside), (read_x, *copies, gates, beside, out), gradients,
            forward_scratch=forward_scratch, backward_scratch=backward_scratch,
        )
    )  # fmt: skip
    forward = 2 * (gates.elements * x.shape[-1].value + gates.elements * out.shape[-1].value)
    tape.operator(name, OperatorKind.MATMUL, kernels, weights, Flops(forward, 2 * forward))
    return out


def _weights(tape: Tape, name: str, x: Array, cell: Cell) -> tuple[Weight, ...]:
    width = x.shape[-1]
    rows = width.times(cell.gates)
    shapes = {"weight_ih": (rows, width), "weight_hh": (rows, width), "bias_ih": (rows,), "bias_hh": (rows,)}
    return tuple(tape.weight(f"{name}.{part}", shape) for part, shape in shapes.items())


def _cast(tape: Tape, array: Array, kernels: list[Kernel]) -> Array:
    """The layer casts by itself, so autocast's cache knows nothing of it."""
    if array.dtype is tape.numerics.compute:
        return array
    is_weight = isinstance(array, Weight)
    name = f"{tape.numerics.compute.label} copies of weights" if is_weight else "recurrence input"
    copy = Array(name, array.shape, tape.numerics.compute)
    kernels.append(Kernel("cast", (array,), (copy,), gradients=(array,)))
    return copy


def _scratch(tape: Tape, cell: Cell, out: Array, gates: Array, gradients: tuple[Array, ...]) -> tuple[int, int]:
    """Beyond what is written: forward, a token's product and the zeros before the first; backward, the gates'
    gradients, and beside them the outputs one token on, when all gradients are there but, or the token's own tensors,
    when none is."""
    batch, seq, width = out.values
    token = batch * width * out.dtype.nbytes
    forward = (cell.gates + 1) * token
    through = gates.nbytes + BACKWARD_STATES[cell] * token
    after = gates.nbytes + out.nbytes
    made = sum(array.nbytes for array in gradients)
    if not tape.packs_products:
        return forward, max(after, through - made)
    work, rows = tape.workspace, cell.gates * width
    forward = max(forward + work.product(batch, width, rows), work.product(batch * seq, width, rows) - 2 * out.nbytes)
    through += work.input_gradient(batch, width, rows)
    of_input = gates.nbytes + work.input_gradient(batch * seq, width, rows) - (made - out.nbytes)
    after += work.weight_gradient(batch * seq, rows)
    return forward, max(after, through - made, of_input)
