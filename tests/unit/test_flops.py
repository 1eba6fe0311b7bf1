"""FLOPs of the ledger against the textbook's formulas, which are derived here by hand from the shapes.

A product of [m, k] and [k, n] is 2 m k n; its backward pass is two such products. T = b s tokens.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from suite.layout import Recompute
from suite.models.decoder import Activation, DecoderSpec
from suite.models.ledgers import ledger_of
from suite.models.presets import PRESETS, gpt, llama
from suite.operators import Ledger, OperatorKind
from suite.spec import AttentionKernel, LossKernel, Workload
from suite.tape import FP32, Backend

LLAMA = llama("tiny", 3, 48, 6, 80, 101, kv_heads=2, positions=64)
FORMS = {
    "gpt": gpt("tiny", 3, 48, 4, 101, 64),
    "mha": replace(LLAMA, kv_heads=6),
    "gqa": LLAMA,
    "mqa, tied": replace(LLAMA, kv_heads=1, tied=True),
    "head_dim of its own": replace(LLAMA, head_dim=12),
    "llama3-8b": PRESETS["llama3-8b"],
    "gpt3-175b": PRESETS["gpt3-175b"],
}


def ledger(spec: DecoderSpec, workload: Workload, recompute: str = "none") -> Ledger:
    """The ledger on one device."""
    return ledger_of(spec, workload, Recompute.parse(recompute), FP32, Backend.CPU, 1)


def matmul_weights(spec: DecoderSpec) -> int:
    """Weights that tokens are multiplied with: every matrix, the head included (tied or not), the tables not."""
    h, q, k = spec.hidden, spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim
    matrices = 2 if spec.activation is Activation.GELU else 3
    return spec.layers * (h * q + 2 * h * k + q * h + matrices * h * spec.ffn) + h * spec.vocab


def summed(made: Ledger, kind: OperatorKind, causal: bool = False) -> float:
    """FLOPs of the operators of a kind, forward and backward."""
    return sum(
        count * operator.flops.total(causal)
        for segment, count in made.counts.items()
        for operator in segment.operators()
        if operator.kind is kind
    )


@pytest.mark.unit
@pytest.mark.parametrize("kernel", list(AttentionKernel))
@pytest.mark.parametrize("form", FORMS)
def test_a_token_costs_6n_and_12lhs(form: str, kernel: AttentionKernel) -> None:
    """6 N a token in the linears; q k^T and p v over the whole square are 4 s a d forward, 12 s a d in all.

    The causal convention halves the second: arXiv:2204.02311, appendix B, counts the square; this is half of it.
    """
    spec = FORMS[form]
    workload = Workload(seq_len=32, micro_batch=3, attention=kernel)
    made, tokens = ledger(spec, workload), 3 * 32
    linears = 6 * matmul_weights(spec) * tokens
    attention = 12 * spec.layers * spec.heads * spec.head_dim * 32 * tokens
    assert summed(made, OperatorKind.MATMUL) == linears
    assert summed(made, OperatorKind.ATTENTION) == attention
    assert summed(made, OperatorKind.ATTENTION, causal=True) == attention / 2
    assert made.flops() == linears + attention
    assert made.flops(causal=True) == linears + attention / 2


@pytest.mark.unit
@pytest.mark.parametrize("loss", list(LossKernel))
def test_the_loss_kernel_does_not_change_the_models_flops(loss: LossKernel) -> None:
    spec = FORMS["gqa"]
    plain = ledger(spec, Workload(seq_len=32, micro_batch=2)).flops()
    assert ledger(spec, Workload(seq_len=32, micro_batch=2, loss=loss)).flops() == plain


@pytest.mark.unit
@pytest.mark.parametrize("form", ["gpt", "gpt3-175b"])
def test_megatrons_formulas(form: str) -> None:
    """arXiv:2104.04473, equation 3 and arXiv:2205.05198, appendix A: with f = 4 h, a step of B sequences takes

    72 B s L h^2 (1 + s / 6h + V / 12hL) without recomputation, 96 B s L h^2 (1 + s / 6h + V / 16hL) with all of it.
    """
    spec, batch, s = FORMS[form], 2, 32
    layers, h, vocab = spec.layers, spec.hidden, spec.vocab
    made = ledger(spec, Workload(seq_len=s, micro_batch=batch), "full")
    model = 72 * batch * s * layers * h**2 * (1 + s / (6 * h) + vocab / (12 * h * layers))
    hardware = 96 * batch * s * layers * h**2 * (1 + s / (6 * h) + vocab / (16 * h * layers))
    assert made.flops() == pytest.approx(model, rel=1e-12)
    assert made.flops() + made.recompute_flops() == pytest.approx(hardware, rel=1e-12)


@pytest.mark.unit
def test_recomputation_reruns_what_its_mode_says() -> None:
    """selective: the attention core's 4 s a d a token and layer; every-2: blocks 0 and 2 of three; none: nothing."""
    spec, s, tokens = FORMS["gqa"], 32, 32 * 2
    core = 4 * spec.heads * spec.head_dim * s * tokens
    block = core + 2 * (matmul_weights(spec) - spec.hidden * spec.vocab) // spec.layers * tokens
    expected = {"none": 0, "selective": 3 * core, "full": 3 * block, "every-2": 2 * block, "every-3": block}
    workload = Workload(seq_len=s, micro_batch=2)
    assert {mode: ledger(spec, workload, mode).recompute_flops() for mode in expected} == expected
