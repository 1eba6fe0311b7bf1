"""Number formats: bytes a parameter by hand, fp8's casts by hand, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from memory.estimate import MemoryModel
from memory.optimizer import optimizer_bytes
from memory.state import parameter_bytes
from parallelism.building import make_trainer
from suite.case import Case, case_from
from suite.float8 import Scaling, float8_kernels
from suite.formats import formats_of
from suite.operators import Array, DType, Size, Weight
from suite.parse import SpecError
from suite.record import Component, Moment

pytestmark = pytest.mark.unit

#: 2 * 7 * 4 of embedding and head, 4 * 4 * 4 of attention, 3 * 4 * 6 of the MLP, 3 norms of 4
MODEL = {"layers": 1, "hidden": 4, "heads": 2, "ffn": 6, "vocab": 7, "max_positions": 8}
PARAMETERS, TENSORS = 56 + 64 + 72 + 12, 12


def case_of(precision: str, layout: dict[str, Any] | None = None, **cluster: Any) -> Case:
    """A tiny case."""
    workload = {"seq_len": 8, "precision": precision}
    return case_from({"model": MODEL, "layout": layout or {}, "workload": workload, "cluster": cluster})


@pytest.mark.parametrize(
    ("precision", "kept", "moment"),
    [("fp32", 4, 4), ("bf16-mixed", 4, 4), ("fp16-mixed", 4, 4), ("fp8", 4, 4), ("bf16", 2, 2)],
)
def test_state_has_the_bytes_of_its_format(precision: str, kept: int, moment: int) -> None:
    """Mixed precision keeps 16 bytes a parameter (arXiv:1910.02054 counts 16 with fp16 copies), pure bf16 8."""
    case = case_of(precision)
    ledger = MemoryModel(case).ledger
    assert parameter_bytes(case, ledger) == kept * PARAMETERS
    assert optimizer_bytes(case, ledger, 0) == 2 * moment * PARAMETERS + 4 * TENSORS
    gradients = MemoryModel(case).estimate().by_moment[Moment.AFTER_BACKWARD][Component.GRADIENTS]
    assert gradients == kept * PARAMETERS


@pytest.mark.parametrize(
    ("precision", "layout", "weights", "stream", "reduced"),
    [
        ("fp16-mixed", {}, DType.FP32, DType.FP32, DType.FP32),
        ("fp16-mixed", {"fsdp": 2}, DType.FP16, DType.FP16, DType.FP32),
        ("bf16", {"fsdp": 2}, DType.BF16, DType.BF16, DType.FP32),
        ("bf16", {"fsdp": 2, "reduce_type": "bf16"}, DType.BF16, DType.BF16, DType.BF16),
        ("bf16-mixed", {"dp": 2, "zero": 1}, DType.BF16, DType.BF16, DType.BF16),
    ],
)
def test_what_operators_read_and_fsdp_reduces(
    precision: str, layout: dict[str, Any], weights: DType, stream: DType, reduced: DType
) -> None:
    found = formats_of(case_of(precision, layout))
    assert (found.numerics.weights, found.numerics.stream, found.reduced) == (weights, stream, reduced)


M, K, N = 48, 32, 16


@pytest.mark.parametrize(
    ("scaling", "forward", "backward"),
    [
        # x and W; then the gradient twice and once more turned, x and its turned copy, and W
        (Scaling.TENSORWISE, 1536 + 512, 3 * 768 + 2 * 1536 + 512),
        # a scale of four bytes a row of x and W; of the gradient's two sides, of W's columns and x's
        (Scaling.ROWWISE, 2048 + 4 * (48 + 16), 5888 + 4 * (48 + 16 + 32 + 32)),
    ],
)
@pytest.mark.parametrize("kept", [DType.BF16, DType.FP32])
def test_fp8_casts_by_hand(scaling: Scaling, forward: int, backward: int, kept: DType) -> None:
    """Tensors of torchao's autograd function, counted at their highest point. A gradient of fp32 weights is bf16 while
    the products run, so that 2 * 16 * 32 bytes of it are not there yet."""
    sizes = Size("m", M), Size("k", K), Size("n", N)
    x, y = Array("x", (sizes[0], sizes[1]), DType.BF16), Array("y", (sizes[0], sizes[2]), DType.BF16)
    weight = Weight("w", (sizes[2], sizes[1]), kept)
    (kernel,) = float8_kernels(x, (weight,), y, scaling)
    assert kernel.saves == (x,)
    assert kernel.forward_scratch == forward
    assert kernel.backward_scratch == backward - (0 if kept is DType.BF16 else 2 * N * K)


def test_fp8_keeps_what_bf16_keeps_but_the_copies_of_weights() -> None:
    """Autocast's bf16 copies of a block's matrices go, 2 bytes an element: fp8's are made from the masters."""
    after = {
        precision: MemoryModel(case_of(precision, device="h100-sxm")).estimate().by_moment[Moment.AFTER_FORWARD]
        for precision in ("bf16-mixed", "fp8")
    }
    mixed, fp8 = (row[Component.ACTIVATIONS] for row in after.values())
    assert mixed - fp8 == 2 * (64 + 72)


@pytest.mark.parametrize(
    ("precision", "layout", "why"),
    [
        ("bf16", {"dp": 2, "zero": 2}, "it keeps masters apart from the parameters, whatever their type"),
        ("fp16-mixed", {"dp": 2, "zero": 3}, "use bf16-mixed, or fsdp"),
        ("fp16-mixed", {"tp": 2}, "torch's gradient scaler unscales plain tensors or DTensors of one mesh"),
        ("fp16-mixed", {"fsdp": 2, "reduce_type": "bf16"}, "gradients that are computed in bf16"),
        ("fp8", {"tp": 2}, "torchao gathers in fp8 under tp"),
        ("fp8-rowwise", {"dp": 2, "zero": 1}, "torchao's layers under it are not modelled"),
    ],
)
def test_impossible_pairs_are_refused_in_one_line(precision: str, layout: dict[str, Any], why: str) -> None:
    with pytest.raises(SpecError, match=r"workload\.precision") as refused:
        case_of(precision, layout)
    assert why in str(refused.value)
    assert "\n" not in str(refused.value)


def test_fp8_is_not_trained() -> None:
    with pytest.raises(SpecError, match=r"workload\.precision: fp8 is not trained yet"):
        make_trainer(case_of("fp8"), None, None)  # type: ignore[arg-type]
