"""A block of Megatron-LM's GPT and Llama models, kernel by kernel, as one rank runs it on one micro-batch.

Sources: megatron/model/transformer.py and megatron/core/transformer of Megatron-LM for what is a kernel of its own
(fused: scale + mask + softmax, bias + GELU or SwiGLU, bias + dropout + residual); arXiv:1909.08053, section 3, for the
two all-reduces of each pass, arXiv:2205.05198, section 4.2, for what sequence parallelism makes of them.
"""

from __future__ import annotations

from functools import cache

from parallelism.megatron.run import AttentionCore
from parallelism.simulator.megatron.shape import Shape
from parallelism.simulator.megatron.work import Kernel, Layer, Operator, Work, elementwise, matrix
from suite.collectives import Call, Collective

E = 2  # bytes of an activation or a 16-bit weight
#: heads times sequences that the fused softmax takes (megatron/model/fused_softmax.py, is_kernel_available)
FUSED_SOFTMAX_MULTIPLE = 4


@cache
def block_layer(shape: Shape) -> Layer:
    """Attention and MLP, each behind a norm and added to the stream."""
    core = attention_core(shape)
    joint = shape.q + 2 * shape.kv
    wide = shape.ffn * (2 if shape.gated else 1)
    operators = (
        norm("attention norm", shape),
        column_linear("attention.qkv", shape, joint, shape.qkv_biased, adds_bias=shape.qkv_biased),
        *core,
        row_linear("attention.proj", shape, shape.q),
        residual("attention residual", shape),
        norm("mlp norm", shape),
        column_linear("mlp.up", shape, wide, shape.biased),
        activation(shape),
        row_linear("mlp.down", shape, shape.ffn),
        residual("mlp residual", shape),
    )
    return Layer("block", operators, core)


def norm(name: str, shape: Shape) -> Operator:
    """LayerNorm or RMSNorm as one kernel; backward one for the input, one for the vectors' partial sums and one that
    adds them up."""
    stream = E * shape.stream * shape.hidden
    return Operator(
        name,
        Work((elementwise(name, stream, stream),)),
        Work((elementwise(name, stream, stream, stream),)),
        Work((elementwise(name, stream, stream), elementwise(f"{name}, sums", 0.0))),
    )


def column_linear(name: str, shape: Shape, width: int, biased: bool, adds_bias: bool = False) -> Operator:
    """Divided by its outputs: whole tokens come in, a part of the width goes out. Its input's gradient is a sum over
    the ranks; under sequence parallelism its input is gathered, and again for the weights' gradient."""
    tokens, hidden = shape.tokens, shape.hidden
    out = E * tokens * width
    bias = (elementwise(f"{name}, bias", out, out),) if adds_bias else ()
    bias_gradient = (elementwise(f"{name}, bias", out),) if biased else ()
    whole = E * tokens * hidden
    return Operator(
        name,
        Work((matrix(name, tokens, width, hidden), *bias), enter(shape, whole)),
        Work((matrix(name, tokens, hidden, width),), leave(shape, whole)),
        Work((*weight_gradient(name, shape, width, hidden), *bias_gradient), regather(shape, whole)),
    )


def row_linear(name: str, shape: Shape, width: int) -> Operator:
    """Divided by its inputs: each rank has a part of the sum. Its bias is added later."""
    tokens, hidden = shape.tokens, shape.hidden
    whole = E * tokens * hidden
    return Operator(
        name,
        Work((matrix(name, tokens, hidden, width),), leave(shape, whole)),
        Work((matrix(name, tokens, width, hidden),), enter(shape, whole)),
        Work(weight_gradient(name, shape, hidden, width)),
    )


def weight_gradient(name: str, shape: Shape, rows: int, columns: int) -> tuple[Kernel, ...]:
    """The product, and its addition to the gradient of the micro-batches before unless the product does that."""
    product = matrix(name, rows, columns, shape.tokens)
    if shape.fused_gradients:
        return (product,)
    size = rows * columns
    return product, elementwise(f"{name}, accumulation", E * size, 2.0 * shape.gradient_bytes * size)


def residual(name: str, shape: Shape) -> Operator:
    """Bias, dropout and the stream, fused; backward: the mask, the bias's sums, and the sum of both ways."""
    stream = E * shape.stream * shape.hidden
    mask = shape.stream * shape.hidden if shape.dropout else 0
    dropped = (elementwise(f"{name}, dropout", stream, mask, stream),) if shape.dropout else ()
    bias = (elementwise(f"{name}, bias", stream),) if shape.biased else ()
    return Operator(
        name,
        Work((elementwise(name, stream, stream, mask, stream),)),
        Work((*dropped, elementwise(name, stream, stream, stream))),
        Work(bias),
    )


def activation(shape: Shape) -> Operator:
    """Bias and GELU, or SwiGLU, as one kernel each way."""
    narrow = E * shape.tokens * shape.ffn
    wide = narrow * (2 if shape.gated else 1)
    name = "swiglu" if shape.gated else "gelu"
    return Operator(name, Work((elementwise(name, wide, narrow),)), Work((elementwise(name, narrow, wide, wide),)))


def attention_core(shape: Shape) -> tuple[Operator, ...]:
    """From queries, keys and values to the context, rotation included."""
    rotation = (_rotation(shape),) if shape.rotary else ()
    core = _fused(shape) if shape.attention is AttentionCore.FUSED else _unfused(shape)
    return (*rotation, *core)


def _rotation(shape: Shape) -> Operator:
    turned = 2.0 * E * shape.tokens * (shape.q + shape.kv)
    work = Work((elementwise("rotation", turned),))
    return Operator("rotation", work, work)


def _fused(shape: Shape) -> tuple[Operator, ...]:
    """Flash attention: 4 s n q FLOPs forward and 10 backward, half of them for a causal mask (arXiv:2205.14135)."""
    flops = 4.0 * shape.seq * shape.tokens * shape.q / 2
    arrays = E * shape.tokens * (2 * shape.q + 2 * shape.kv)
    forward = Kernel("attention", arrays, flops=flops)
    backward = Kernel("attention", 2.0 * arrays, flops=2.5 * flops)
    return (Operator("attention", Work((forward,)), Work((backward,))),)


def _unfused(shape: Shape) -> tuple[Operator, ...]:
    """Batched products around a softmax over stored scores; dropout is a kernel of its own."""
    seq, dim = shape.seq // shape.cp, shape.head_dim
    batch = shape.heads * shape.tokens // seq
    scores = float(E * batch * seq * shape.seq)
    context = E * shape.tokens * shape.q
    joint = E * shape.tokens * (shape.q + 2 * shape.kv)

    def product(name: str, m: int, n: int, k: int) -> Kernel:
        return matrix(name, m, n, k, batch)

    score = Operator(
        "scores",
        Work((product("scores", seq, shape.seq, dim),)),
        Work((product("queries", seq, dim, shape.seq), product("keys", shape.seq, dim, seq))),
    )
    softmax = _softmax(scores, is_fused=batch % FUSED_SOFTMAX_MULTIPLE == 0)
    drop = Work((elementwise("attention dropout", 2.5 * scores),))
    dropout = (Operator("attention dropout", drop, drop),) if shape.dropout else ()
    mix = Operator(
        "context",
        Work((product("context", seq, dim, shape.seq), elementwise("context, contiguous", 2.0 * context))),
        Work(
            (
                product("scores", seq, shape.seq, dim),
                product("values", shape.seq, dim, seq),
                elementwise("joint gradient", 2.0 * joint),
            )
        ),
    )
    return score, softmax, *dropout, mix


def _softmax(scores: float, is_fused: bool) -> Operator:
    """Scale, mask and softmax as one kernel; else five in fp32 with a cast on either side (fused_softmax.py)."""
    if is_fused:
        return Operator(
            "softmax", Work((elementwise("softmax", scores, scores),)), Work((elementwise("softmax", 3 * scores),))
        )
    cast, once = elementwise("softmax, cast", 3 * scores), elementwise("softmax, fp32", 4 * scores)
    return Operator(
        "softmax",
        Work((cast, once, once, once, cast)),
        Work((cast, elementwise("softmax", 6 * scores), once, once, cast)),
    )


def leave(shape: Shape, whole: int) -> tuple[Call, ...]:
    """Partial sums of all ranks into the stream."""
    return _call(Collective.REDUCE_SCATTER if shape.sequence_parallel else Collective.ALL_REDUCE, shape, whole)


def enter(shape: Shape, whole: int) -> tuple[Call, ...]:
    """The stream, whole on every rank."""
    return _call(Collective.ALL_GATHER, shape, whole) if shape.sequence_parallel else ()


def regather(shape: Shape, whole: int) -> tuple[Call, ...]:
    """The input of a column-divided product was kept in parts (arXiv:2205.05198, section 4.2.2)."""
    return enter(shape, whole)


def _call(collective: Collective, shape: Shape, payload: int) -> tuple[Call, ...]:
    return (Call(collective, shape.tp, payload),) if shape.tp > 1 else ()
