"""A mixture of experts in the operator ledger: what experts_module.py and routing.py run, kernel by kernel.

Dropless, a rank's experts compute top_k rows of each of its tokens whatever the routing; with capacity, every place of
every expert, empty ones too. So without expert parallelism nothing here depends on the routing.
"""

from __future__ import annotations

from dataclasses import dataclass

from suite.models.experts import Balance, Dispatch, Experts, Scoring
from suite.operators import Array, DType, Flops, Kernel, OperatorKind, Size, Split, Weight
from suite.tape import ONE, Tape, parts_of
from suite.tape_attention import release
from suite.tape_exchange import Load, combine, dispatch
from suite.tape_tensor import enter, leave

POINTWISE = OperatorKind.POINTWISE
FP32, INT64 = DType.FP32, DType.INT64
INT32_BYTES = 4
BALANCED = Load()


@dataclass(frozen=True)
class _Mixture:
    """The tape, and the letters of the formulas with their values on this rank."""

    tape: Tape
    spec: Experts
    b: Size
    s: Size
    h: Size
    f: Size  # a routed expert's width here
    shared: Size  # the shared experts' together
    load: Load  # with expert parallelism

    @property
    def experts(self) -> Size:
        return Size("E", self.spec.count)

    @property
    def chosen(self) -> tuple[Size, ...]:
        """An entry for each token and expert that it goes to."""
        return self.b, self.s, Size("k", self.spec.top_k)

    @property
    def scored(self) -> tuple[Size, ...]:
        """An entry for each token and expert."""
        return self.b, self.s, self.experts

    @property
    def choices(self) -> int:
        return self.b.value * self.s.value * self.spec.top_k

    @property
    def rows(self) -> Size:
        """Rows that the experts compute."""
        if self.spec.dispatch is Dispatch.DROPLESS:
            return Size("b*s*k", self.choices)
        return Size("E*b*C", self.spec.count * self.b.value * self.spec.capacity(self.s.value))

    @property
    def own(self) -> Size:
        """Experts on this rank."""
        ep = self.tape.share.ep
        return self.experts if ep == 1 else Size("E/ep", self.spec.count // ep)

    def array(self, name: str, shape: tuple[Size, ...], kind: DType) -> Array:
        return Array(f"mlp: {name}", shape, kind)

    def run(self, name: str, *kernels: Kernel, weights: tuple[Weight, ...] = (), flops: Flops | None = None) -> None:
        self.tape.operator(f"mlp.{name}", POINTWISE, kernels, weights, flops)


def mixture(tape: Tape, x: Array, spec: Experts, seq: Size, part: Size, load: Load = BALANCED) -> Array:
    """x [b, s/t, h] of the stream -> the same: routed to experts, of each of which this rank has f/t channels. With
    expert parallelism it has E/ep experts, whose rows come from all ranks, as `load` has it."""
    t = "" if tape.share.tp == 1 else "/t"
    whole = enter(tape, "mlp", x, seq)
    m = _Mixture(
        tape, spec, whole.shape[0], whole.shape[1], whole.shape[2],
        Size(f"f{t}", tape.share.rows(spec.ffn)), Size(f"f_s{t}", tape.share.rows(spec.shared * spec.ffn)), load,
    )  # fmt: skip
    y = leave(tape, "mlp", _mixed(m, whole), part)
    release(tape, "mlp returns", x, whole)
    return y


def _mixed(m: _Mixture, x: Array) -> Array:
    tokens = m.array("tokens", x.shape, x.dtype)
    m.run("tokens", _view(x, tokens))
    weights, chosen = _route(m, tokens)
    places = _dispatch(m, chosen)
    narrow = _in(m, "tokens", tokens, m.tape.numerics.compute)
    rows = m.array("rows of experts", (m.rows, m.h), narrow.dtype)
    m.run("gather", Kernel("index_select", (narrow, places[0]), (rows,), (places[0],), (narrow,)))
    outputs = _experts(m, rows, places[2]) if m.tape.share.ep == 1 else _exchanged(m, rows, places[2])
    y = _combine(m, outputs, weights, places, narrow)
    if m.spec.shared:
        y = _with_shared(m, y, narrow)
    load = places[3] if m.spec.dispatch is Dispatch.CAPACITY else places[2]
    m.run("counted", Kernel("count", (y, load), holds=(load,)))
    release(m.tape, "mlp.mixture returns", tokens, narrow, weights, chosen, *places)
    return y


def _view(x: Array, y: Array) -> Kernel:
    return Kernel("view", (x,), (y,), passes=(x,), is_view=True, through_view=True)


def _in(m: _Mixture, name: str, x: Array, kind: DType) -> Array:
    """x in that type: itself, or a cast."""
    if x.dtype is kind:
        return x
    y = m.array(f"{name} in {kind.label}", x.shape, kind)
    m.run(f"{name} cast", Kernel("cast", (x,), (y,), gradients=(x,)))
    return y


# --- routing ---------------------------------------------------------------------------------------------------------


def _route(m: _Mixture, tokens: Array) -> tuple[Array, Array]:
    """Scores in fp32; the weights and numbers of the chosen experts, [b, s, k] each."""
    scores = _scores(m, tokens)
    chosen = m.array("chosen experts", m.chosen, INT64)
    m.run("router.choose", Kernel("topk", (scores,), (chosen,), forward_scratch=_choosing(m, scores)))
    if m.spec.balance is Balance.AUXILIARY:
        _balance(m, scores, chosen)
    return _weights(m, scores, chosen), chosen


def _scores(m: _Mixture, tokens: Array) -> Array:
    tape = m.tape
    wide = _in(m, "router input", tokens, FP32)
    weight = tape.weight("mlp.router.weight", (m.experts, m.h))
    read: Array = weight
    kernels = []
    if weight.dtype is not FP32:
        read = m.array("router weight in fp32", weight.shape, FP32)
        kernels.append(Kernel("cast", (weight,), (read,), gradients=(weight,)))
    logits, scores = m.array("router logits", m.scored, FP32), m.array("router scores", m.scored, FP32)
    saves = (wide,) if read is weight else (wide, read)
    kernels.append(Kernel("linear", (wide, read), (logits,), saves, (read, wide)))
    flops = 2 * logits.elements * m.h.value
    tape.operator("mlp.router", OperatorKind.MATMUL, kernels, (weight,), Flops(flops, 2 * flops))
    m.run("router.score", Kernel(m.spec.scoring.value, (logits,), (scores,), (scores,), (logits,)))
    return scores


def _choosing(m: _Mixture, scores: Array) -> int:
    """What choosing makes in passing: the chosen scores; scores with biases; scores but for closed groups', and which
    groups are closed."""
    rows = m.b.value * m.s.value
    nbytes = m.choices * FP32.nbytes
    if m.spec.balance is Balance.BIAS:
        nbytes += scores.nbytes
    if m.spec.groups > 1:
        nbytes += scores.nbytes + rows * (m.spec.groups + m.spec.top_groups * INT64.nbytes)
    return nbytes


def _balance(m: _Mixture, scores: Array, chosen: Array) -> None:
    """The balance loss: counts of each sequence, shares of the scores and their mean over a sequence."""
    each = (m.b, m.experts)
    load, often = m.array("loads", each, INT64), m.array("loads, scaled", each, FP32)
    mean, loss = m.array("mean shares", each, FP32), m.array("balance loss", (), FP32)
    m.run(
        "balance.loads", Kernel("scatter_add", (chosen,), (load,)),
        Kernel("cast", (load,), (often,), forward_scratch=often.nbytes),
    )  # fmt: skip
    shares = scores if m.spec.scoring is Scoring.SOFTMAX else _over_sum(m, "shares", scores)
    m.run(
        "balance", Kernel("mean", (shares,), (mean,), gradients=(shares,)),
        Kernel("mul", (mean, often), (loss,), (often,), (mean,), forward_scratch=often.nbytes),
    )  # fmt: skip
    release(m.tape, "mlp.balance returns", load, often, shares, mean)


def _over_sum(m: _Mixture, name: str, x: Array) -> Array:
    """x over its sum along the last dimension, and a tiny number."""
    row = (*x.shape[:-1], ONE)
    total, sums = m.array(f"sum of {name}", row, FP32), m.array(f"sum of {name}, and a little", row, FP32)
    y = m.array(f"{name}, normalized", x.shape, FP32)
    m.run(
        f"{name} normalized", Kernel("sum", (x,), (total,), passes=(x,), through_view=True),
        Kernel("add", (total,), (sums,), passes=(total,)),
        Kernel("div", (x, sums), (y,), (x, sums), (x, sums), backward_scratch=2 * x.nbytes),
    )  # fmt: skip
    return y


def _weights(m: _Mixture, scores: Array, chosen: Array) -> Array:
    weights = m.array("weights", m.chosen, FP32)
    m.run("router.weights", Kernel("gather", (scores, chosen), (weights,), (chosen,), (scores,)))
    if m.spec.normalized:
        weights = _over_sum(m, "weights", weights)
    if m.spec.scale != 1:
        scaled = m.array("weights, scaled", m.chosen, FP32)
        m.run("router.scale", Kernel("mul", (weights,), (scaled,), gradients=(weights,)))
        weights = scaled
    return weights


# --- rows ------------------------------------------------------------------------------------------------------------


def _dispatch(m: _Mixture, chosen: Array) -> tuple[Array, ...]:
    """For every row its token and its place among the choices; rows an expert; with capacity which places are taken."""
    one = (m.rows,)
    tokens, choices = m.array("tokens of rows", one, INT64), m.array("choices of rows", one, INT64)
    counts = m.array("rows an expert", (m.experts,), INT64)
    filled = m.array("taken places", one, DType.BOOL)
    sort = Kernel("sort", (chosen,), (choices,), forward_scratch=2 * m.choices * INT64.nbytes)
    if m.spec.dispatch is Dispatch.CAPACITY:
        # sorting keys and order; the queues' places and slots; the slots' choices with one for the dropped
        sort = Kernel("sort", (chosen,), (choices,), forward_scratch=6 * m.choices * INT64.nbytes)
    divide = Kernel("floor_divide", (choices,), (tokens,))
    if m.spec.dispatch is Dispatch.DROPLESS:
        m.run("places", sort, divide, Kernel("scatter_add", (chosen,), (counts,)))
        return tokens, choices, counts
    load = m.array("tokens an expert", (m.experts,), INT64)
    compare = Kernel("ge", (choices,), (filled,), forward_scratch=choices.nbytes)
    m.run("places", sort, compare, divide, Kernel("scatter_add", (chosen,), (counts, load)))
    return tokens, choices, counts, load, filled


def _exchanged(m: _Mixture, rows: Array, counts: Array) -> Array:
    """The experts' outputs where their ranks have computed them."""
    given = dispatch(m.tape, rows, counts, m.load.received(m.rows.value, m.tape.share))
    return combine(m.tape, _experts(m, given.rows, given.counts), given, rows)


def _experts(m: _Mixture, rows: Array, counts: Array) -> Array:
    """The experts' MLPs: three grouped products."""
    ends = m.array("ends of experts' rows", (Size("E/2", -(-m.own.value * INT32_BYTES // INT64.nbytes)),), INT64)
    m.run("experts.ends", Kernel("cumsum", (counts,), (ends,)))
    gate = m.tape.silu("mlp.experts.silu", _grouped(m, "gate", rows, (m.f, m.h), Split.COLUMN, ends))
    wide = m.tape.mul("mlp.experts.mul", gate, _grouped(m, "up", rows, (m.f, m.h), Split.COLUMN, ends))
    y = _grouped(m, "down", wide, (m.h, m.f), Split.ROW, ends)
    release(m.tape, "mlp.experts returns", rows, wide, ends)
    return y


def _grouped(m: _Mixture, name: str, x: Array, shape: tuple[Size, Size], split: Split, ends: Array) -> Array:
    """x W^T of every expert's rows. Keeps x, and autocast's copy of the experts' matrices, made here at every use."""
    tape = m.tape
    weight = tape.weight(f"mlp.experts.{name}", (m.own, *shape), split, is_expert=True)
    kernels = parts_of((weight,))
    read: Array = weight
    if weight.dtype is not x.dtype:
        read = Array(f"{x.dtype.label} copies of weights", weight.shape, x.dtype)
        kernels.append(Kernel("cast", (weight,), (read,), gradients=(weight,)))
    y = m.array(f"experts' {name}", (x.shape[0], shape[0]), x.dtype)
    saves = (x, ends) if read is weight else (x, ends, read)
    sizes = m.own.value, x.shape[0].value, shape[1].value, shape[0].value
    packed = (tape.workspace.grouped_product(*sizes), tape.workspace.grouped_product_backward(*sizes))
    ahead, back = packed if tape.packs_products else (0, 0)
    kernels.append(
        Kernel("grouped_mm", (x, read, ends), (y,), saves, (read, x), forward_scratch=ahead, backward_scratch=back)
    )
    forward = 2 * x.shape[0].value * shape[0].value * shape[1].value
    tape.operator(f"mlp.experts.{name}", OperatorKind.MATMUL, kernels, (weight,), Flops(forward, 2 * forward))
    return y


def _combine(m: _Mixture, outputs: Array, weights: Array, places: tuple[Array, ...], like: Array) -> Array:
    """Each token's weighted sum of its rows' outputs."""
    tokens, choices, *rest = places
    mine = m.array("weights of rows", (m.rows,), FP32)
    m.run("weights of rows", Kernel("index_select", (weights, choices), (mine,), (choices,), (weights,)))
    if m.spec.dispatch is Dispatch.CAPACITY:
        taken = m.array("weights of taken places", (m.rows,), FP32)
        m.run("weights of places", Kernel("mul", (mine, rest[2]), (taken,), (rest[2],), (mine,)))
        mine = taken
    narrow = _in(m, "weights of rows", mine, outputs.dtype)
    y = m.array("routed output", like.shape, outputs.dtype)
    m.run(
        "combine",
        Kernel(
            "combine", (outputs, narrow, tokens), (y,), (outputs, narrow, tokens), (outputs, narrow),
            forward_scratch=outputs.nbytes, backward_scratch=outputs.nbytes, saves_last=True,
        ),
    )  # fmt: skip
    release(m.tape, "mlp.combine returns", weights, mine, outputs)
    return y


def _with_shared(m: _Mixture, y: Array, tokens: Array) -> Array:
    """The shared experts' output added: one MLP."""
    tape, whole = m.tape, m.array("tokens of shared experts", tokens.shape, tokens.dtype)
    m.run("shared.tokens", _view(tokens, whole))
    gate = tape.silu("mlp.shared.silu", tape.linear("mlp.shared.gate", whole, m.shared, False, Split.COLUMN))
    wide = tape.mul("mlp.shared.mul", gate, tape.linear("mlp.shared.up", whole, m.shared, False, Split.COLUMN))
    return tape.add("mlp.shared.add", y, tape.linear("mlp.shared.down", wide, m.h, False, Split.ROW))
