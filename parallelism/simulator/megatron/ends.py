"""The first and the last thing of a Megatron-LM model: embedding, head with loss."""

from __future__ import annotations

from functools import cache

from parallelism.megatron.run import CrossEntropy
from parallelism.simulator.megatron.block import E, enter, leave, norm, regather, weight_gradient
from parallelism.simulator.megatron.shape import Shape
from parallelism.simulator.megatron.work import Layer, Operator, Work, elementwise, matrix
from suite.collectives import Call, Collective

F = 4  # bytes of an fp32 logit


@cache
def embedding_layer(shape: Shape) -> Layer:
    """Rows of the rank's part of the vocabulary, summed over the ranks; learned positions; dropout.

    Backward: a dense gradient of the rank's rows, added to the one there is.
    """
    rows = E * shape.tokens * shape.hidden
    mask = shape.tokens * shape.hidden
    table = shape.vocab * shape.hidden
    own = tuple(elementwise("own rows", 8.0 * shape.tokens) for _ in range(5)) if shape.tp > 1 else ()
    clear = (elementwise("other rows", rows, rows),) if shape.tp > 1 else ()
    lookup = Operator(
        "embedding",
        Work((*own, elementwise("embedding", rows, rows), *clear), leave(shape, rows)),
        weights=Work(
            (
                *clear,
                elementwise("embedding, sorted", rows, E * table, rows),
                elementwise("embedding, accumulation", E * table, 2.0 * shape.gradient_bytes * table),
            ),
            enter(shape, rows),
        ),
    )
    place = Operator(
        "positions",
        Work((elementwise("positions", rows, rows, rows),)),
        weights=Work((elementwise("positions", rows, rows),)),
    )
    drop = Work((elementwise("dropout", rows, rows, mask),))
    return Layer(
        "embedding",
        (
            lookup,
            *(() if shape.rotary else (place,)),
            *((Operator("dropout", drop, drop),) if shape.dropout else ()),
        ),
    )


@cache
def head_layer(shape: Shape) -> Layer:
    """Final norm, logits over the rank's part of the vocabulary, cross-entropy (arXiv:1909.08053, section 3)."""
    whole = E * shape.tokens * shape.hidden
    logits = Operator(
        "logits",
        Work((matrix("logits", shape.tokens, shape.vocab, shape.hidden),), enter(shape, whole)),
        Work((matrix("logits", shape.tokens, shape.hidden, shape.vocab),), leave(shape, whole)),
        Work(weight_gradient("logits", shape, shape.vocab, shape.hidden), regather(shape, whole)),
    )
    return Layer("head", (norm("final norm", shape), logits, _loss(shape)))


def _loss(shape: Shape) -> Operator:
    """fp32: maximum, difference, exponential, sum, quotient, each over all logits; three small sums over the ranks.
    Fused: read once to sum, once more to write the gradient in 16 bits."""
    count = shape.tokens * shape.vocab
    sums = tuple(Call(Collective.ALL_REDUCE, shape.tp, F * shape.tokens) for _ in range(3)) if shape.tp > 1 else ()
    if shape.cross_entropy is CrossEntropy.FUSED_16_BIT:
        return Operator(
            "loss",
            Work((elementwise("loss", E * count), elementwise("loss, gradient", 2 * E * count)), sums[:1]),
            Work((elementwise("loss", 2 * E * count),)),
        )
    forward = (
        elementwise("logits in fp32", E * count, F * count),
        elementwise("maximum", F * count),
        elementwise("difference", 2 * F * count),
        *(elementwise("target", 8.0 * shape.tokens) for _ in range(6)),
        elementwise("exponential", 2 * F * count),
        elementwise("sum", F * count),
        elementwise("quotient", 2 * F * count),
        *(elementwise("mean", 4.0 * shape.tokens) for _ in range(4)),
    )
    backward = (
        *(elementwise("target", 8.0 * shape.tokens) for _ in range(4)),
        elementwise("scale", 2 * F * count),
        elementwise("logits in 16 bits", F * count, E * count),
    )
    return Operator("loss", Work(forward, sums), Work(backward))
