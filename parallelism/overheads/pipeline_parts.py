"""What a pipeline's probes come to: a pass under torch's schedule, the halves of a split backward pass, a message.
Torch-free."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from parallelism.overheads.shapes import (
    FEW,
    FEW_BATCHES,
    LARGE_MESSAGE,
    LONG,
    MANY,
    MANY_BATCHES,
    MESSAGES,
    SHORT,
    SMALL_MESSAGE,
    STAGES,
)
from suite.hardware.overheads import Overhead


def pipeline(row: Mapping[str, float]) -> dict[str, float]:
    """A micro-batch more has two passes of every stage more. The halves of a split backward pass are what they take
    over autograd's gradients of the inputs, and over a whole pass; more parameters and more operators tell apart."""

    def schedule(batches: int) -> float:
        return row[f"schedule.{batches}"] - row[f"stages.{batches}"]

    each = (schedule(MANY_BATCHES) - schedule(FEW_BATCHES)) / (MANY_BATCHES - FEW_BATCHES)

    def inputs(parameters: int, operators: int) -> float:
        return row[f"inputs.{parameters}.{operators}"] - row[f"gradient.{parameters}.{operators}"]

    def weights(parameters: int, operators: int) -> float:
        whole = row[f"split.{parameters}.{operators}"] - row[f"whole.{parameters}.{operators}"]
        return whole - inputs(parameters, operators)

    def slope(part: Callable[[int, int], float]) -> float:
        return (part(MANY, SHORT) - part(FEW, SHORT)) / (MANY - FEW)

    operator = (inputs(FEW, LONG) - inputs(FEW, SHORT)) / (LONG - SHORT)
    return {
        Overhead.PIPELINE_STEP: schedule(FEW_BATCHES) - FEW_BATCHES * each,
        Overhead.PIPELINE_PASS: each / (2 * STAGES),
        Overhead.INPUTS: inputs(FEW, SHORT) - FEW * slope(inputs) - SHORT * operator,
        Overhead.INPUTS_PARAMETER: slope(inputs),
        Overhead.INPUTS_OPERATOR: operator,
        Overhead.WEIGHTS: weights(FEW, SHORT) - FEW * slope(weights),
        Overhead.WEIGHTS_PARAMETER: slope(weights),
    }


def messages(row: Mapping[str, float]) -> dict[str, float]:
    """One of those that a probe sends and receives."""
    sizes = (SMALL_MESSAGE, LARGE_MESSAGE)
    small, large = ((row[f"message.{size}"] - row["work"]) / (2 * MESSAGES) for size in sizes)
    byte = (large - small) / (LARGE_MESSAGE - SMALL_MESSAGE)
    return {Overhead.PIPELINE_MESSAGE: small - SMALL_MESSAGE * byte, Overhead.PIPELINE_BYTE: byte}
