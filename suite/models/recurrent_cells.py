"""LSTM and GRU over whole sequences, each a custom function whose derivative is written out.

All tokens' inputs are projected by one product, then one token after the other adds the state's. Backward goes through
the tokens once for the gradients of the gates; those of the matrices are one product each, over all tokens (the
scheme of arXiv:1604.01946, sections 3.1 and 3.3). Formulas and the order of gates are torch.nn.LSTM's and nn.GRU's.
Everything is computed in its inputs' type. What is kept: the input, the gates, and [b, s, h] once (GRU: the state's
part of the candidate; LSTM: the cells) beside the output.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from suite.models.recurrent import Cell

_sigmoid_backward = torch.ops.aten.sigmoid_backward.grad_input
_tanh_backward = torch.ops.aten.tanh_backward.grad_input

#: input [b, s, i], weight_ih [G h, i], weight_hh [G h, h], bias_ih [G h], bias_hh [G h]
Given = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


class LstmFunction(Function):
    """c = f c' + i g and y = o tanh(c), where i, f, o are sigmoids and g the tanh of W x + b + U y' + d."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_ih: Tensor, weight_hh: Tensor, bias_ih: Tensor, bias_hh: Tensor) -> Tensor:
        """x [b, s, i] -> [b, s, h]."""
        gates, cells, out = _start(x, weight_ih, weight_hh, bias_ih)
        none = x.new_zeros(len(x), out.shape[2])
        product = x.new_empty(len(x), gates.shape[2])
        for t in _tokens(x):
            state, cell = (out[:, t - 1], cells[:, t - 1]) if t else (none, none)
            torch.addmm(bias_hh, state, weight_hh.t(), out=product)
            step = gates[:, t].add_(product)
            i, f, g, o = step.chunk(4, 1)
            i.sigmoid_(), f.sigmoid_(), g.tanh_(), o.sigmoid_()
            torch.mul(i, g, out=cells[:, t]).addcmul_(f, cell)
            torch.tanh(cells[:, t], out=out[:, t]).mul_(o)
        ctx.save_for_backward(x, weight_ih, weight_hh, gates, cells, out)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, given: Tensor) -> Given:  # type: ignore[override]
        """Gradients of all that forward takes."""
        x, weight_ih, weight_hh, gates, cells, out = ctx.saved_tensors
        grads = torch.empty_like(gates)
        LstmFunction._through_tokens(given, weight_hh, gates, cells, grads)
        dx, *of_input = _of_input(grads, x, weight_ih)
        return _ordered(dx, of_input, _of_state(grads, out))

    @staticmethod
    def _through_tokens(given: Tensor, weight_hh: Tensor, gates: Tensor, cells: Tensor, grads: Tensor) -> None:
        """Fill the gates' gradients, before their non-linearities."""
        dy, dc = torch.zeros_like(given[:, 0]), torch.zeros_like(given[:, 0])
        squashed, passed = torch.empty_like(dy), torch.empty_like(dy)
        for t in reversed(_tokens(given)):
            i, f, g, o = gates[:, t].chunk(4, 1)
            di, df, dg, do = grads[:, t].chunk(4, 1)
            dy.add_(given[:, t])
            torch.tanh(cells[:, t], out=squashed)
            torch.mul(dy, o, out=passed)
            dc.add_(_tanh_backward(passed, squashed, grad_input=passed))
            _sigmoid_backward(torch.mul(dy, squashed, out=do), o, grad_input=do)
            _sigmoid_backward(torch.mul(dc, g, out=di), i, grad_input=di)
            _tanh_backward(torch.mul(dc, i, out=dg), g, grad_input=dg)
            if t:
                _sigmoid_backward(torch.mul(dc, cells[:, t - 1], out=df), f, grad_input=df)
            else:
                df.zero_()
            dc.mul_(f)
            torch.mm(grads[:, t], weight_hh, out=dy)


class GruFunction(Function):
    """y = n + z (y' - n), where r, z are sigmoids of W x + b + U y' + d and n = tanh(W x + b + r (U y' + d))."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_ih: Tensor, weight_hh: Tensor, bias_ih: Tensor, bias_hh: Tensor) -> Tensor:
        """x [b, s, i] -> [b, s, h]."""
        gates, inner, out = _start(x, weight_ih, weight_hh, bias_ih)
        width = out.shape[2]
        none = x.new_zeros(len(x), width)
        product = x.new_empty(len(x), gates.shape[2])
        for t in _tokens(x):
            state = out[:, t - 1] if t else none
            torch.addmm(bias_hh, state, weight_hh.t(), out=product)
            step = gates[:, t]
            step[:, : 2 * width].add_(product[:, : 2 * width]).sigmoid_()
            inner[:, t] = product[:, 2 * width :]
            r, z, n = step.chunk(3, 1)
            n.addcmul_(r, inner[:, t]).tanh_()
            torch.lerp(n, state, z, out=out[:, t])
        ctx.save_for_backward(x, weight_ih, weight_hh, gates, inner, out)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, given: Tensor) -> Given:  # type: ignore[override]
        """Gradients of all that forward takes."""
        x, weight_ih, weight_hh, gates, inner, out = ctx.saved_tensors
        grads = torch.empty_like(gates)
        width = out.shape[2]
        GruFunction._through_tokens(given, weight_hh, gates, inner, out, grads)
        dx, *of_input = _of_input(grads, x, weight_ih)
        grads[..., 2 * width :].mul_(gates[..., :width])  # the state's part of n goes through r
        return _ordered(dx, of_input, _of_state(grads, out))

    @staticmethod
    def _through_tokens(
        given: Tensor, weight_hh: Tensor, gates: Tensor, inner: Tensor, out: Tensor, grads: Tensor
    ) -> None:
        """Fill the gates' gradients, before their non-linearities."""
        dy, kept = torch.zeros_like(given[:, 0]), torch.empty_like(given[:, 0])
        none, product = torch.zeros_like(kept), torch.empty_like(grads[:, 0])
        for t in reversed(_tokens(given)):
            r, z, n = gates[:, t].chunk(3, 1)
            dr, dz, dn = grads[:, t].chunk(3, 1)
            dy.add_(given[:, t])
            torch.sub(out[:, t - 1] if t else none, n, out=dz).mul_(dy)
            _sigmoid_backward(dz, z, grad_input=dz)
            torch.mul(dy, z, out=kept)
            _tanh_backward(torch.sub(dy, kept, out=dn), n, grad_input=dn)
            _sigmoid_backward(torch.mul(dn, inner[:, t], out=dr), r, grad_input=dr)
            product.copy_(grads[:, t]).chunk(3, 1)[2].mul_(r)
            torch.addmm(kept, product, weight_hh, out=dy)


def _tokens(x: Tensor) -> range:
    """Places of x's tokens, [b, s, h]. Of tensors without data, as a trace's, the first alone: every token's kernels
    write into the same room."""
    return range(min(1, x.shape[1]) if isinstance(x, FakeTensor) else x.shape[1])


def _start(x: Tensor, weight_ih: Tensor, weight_hh: Tensor, bias_ih: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """All tokens' inputs to the gates [b, s, G h]; room for [b, s, h] twice."""
    gates = F.linear(x, weight_ih, bias_ih)
    shape = (*x.shape[:2], weight_hh.shape[1])
    return gates, x.new_empty(shape), x.new_empty(shape)


def _of_input(grads: Tensor, x: Tensor, weight_ih: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of the input, of its matrix and of its bias."""
    rows = grads.flatten(0, 1)
    return (rows @ weight_ih).view_as(x), rows.t() @ x.flatten(0, 1), rows.sum(0)


def _of_state(grads: Tensor, out: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of the state's matrix and of its bias: what a token adds is read from the output before it."""
    rows = grads.flatten(0, 1)
    before = torch.empty_like(out)
    before[:, 0] = 0
    before[:, 1:] = out[:, :-1]
    return rows.t() @ before.flatten(0, 1), rows.sum(0)


def _ordered(dx: Tensor, of_input: list[Tensor], of_state: tuple[Tensor, Tensor]) -> Given:
    return dx, of_input[0], of_state[0], of_input[1], of_state[1]


FUNCTIONS: dict[Cell, type[Function]] = {Cell.LSTM: LstmFunction, Cell.GRU: GruFunction}
