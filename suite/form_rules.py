"""What the decoder's other forms cannot be combined with, and why: ALiBi, linear attention, batch normalisation."""

from __future__ import annotations

from typing import TYPE_CHECKING

from suite.layout import RecomputeKind
from suite.layout_rules import Rule
from suite.models.decoder import DecoderSpec, Mixing, Norm, Position
from suite.models.linear_shape import state_elements
from suite.spec import Precision

if TYPE_CHECKING:
    from suite.case import Case


def _is_linear(case: Case) -> bool:
    return isinstance(case.model, DecoderSpec) and case.model.mixing is Mixing.LINEAR


def _is_alibi(case: Case) -> bool:
    return isinstance(case.model, DecoderSpec) and case.model.position is Position.ALIBI


def _is_batch_normed(case: Case) -> bool:
    return isinstance(case.model, DecoderSpec) and case.model.norm is Norm.BATCHNORM


def _spreads_tokens(case: Case) -> bool:
    """Does a pass see a part of the global batch's tokens?"""
    layout = case.layout
    is_cut = layout.tp > 1 and layout.sequence_parallel
    return layout.data_ranks * layout.cp * layout.pp * case.workload.micro_batches > 1 or is_cut


FORM_RULES: tuple[Rule[Case], ...] = (
    Rule(
        "linear attention with cp",
        "the state that a rank's first token finds would have to come from the ranks before it, which is not built; use"
        " tp, fsdp or pp",
        lambda case: _is_linear(case) and case.layout.cp > 1,
        lambda case: f"model.mixing(linear) with layout.cp({case.layout.cp})",
    ),
    Rule(
        "linear attention that is served",
        "caches keep a key and a value a token, and it has none; use softmax",
        lambda case: _is_linear(case) and case.serves,
        lambda case: (
            f"model.mixing(linear), a state of {state_elements(case.decoder)} numbers a sequence of any length,"
            f" with serving.new_tokens({case.serving.new_tokens})"
        ),
    ),
    Rule(
        "ALiBi with cp",
        "a ring's blocks and an all-to-all's heads are given no biases; use tp, fsdp or pp, or rope",
        lambda case: _is_alibi(case) and case.layout.cp > 1,
        lambda case: f"model.position(alibi) with layout.cp({case.layout.cp})",
    ),
    Rule(
        "ALiBi that is served",
        "reading a cache with biases is not built; use rope",
        lambda case: _is_alibi(case) and case.serves,
        lambda case: f"model.position(alibi) with serving.new_tokens({case.serving.new_tokens})",
    ),
    Rule(
        "batch normalisation where a pass sees a part of the step's tokens",
        "each pass would normalise by the statistics of its own tokens, so that no two layouts train one model; use one"
        " rank, tp without sequence_parallel, and micro_batches 1, or layernorm, or rmsnorm",
        lambda case: _is_batch_normed(case) and _spreads_tokens(case) and not case.serves,
        lambda case: (
            f"model.norm(batchnorm) with data ranks({case.layout.data_ranks}), layout.cp({case.layout.cp}),"
            f" layout.pp({case.layout.pp}), layout.tp({case.layout.tp}),"
            f" layout.sequence_parallel({case.layout.sequence_parallel}),"
            f" workload.micro_batches({case.workload.micro_batches})"
        ),
    ),
    Rule(
        "batch normalisation that is run again",
        "a rerun would move the running statistics a second time; use none, or selective, which runs attention alone"
        " again",
        lambda case: (
            _is_batch_normed(case) and case.layout.recompute.kind not in (RecomputeKind.NONE, RecomputeKind.SELECTIVE)
        ),
        lambda case: f"model.norm(batchnorm) with layout.recompute({case.layout.recompute})",
    ),
    Rule(
        "batch normalisation of a narrow stream",
        "torch's kernel wants running statistics in the weights' type, and they stay in fp32; use fp32 or bf16-mixed",
        lambda case: _is_batch_normed(case) and case.workload.precision is Precision.BF16,
        lambda case: f"model.norm(batchnorm) with workload.precision({case.workload.precision})",
    ),
    Rule(
        "batch normalisation that is served",
        "answers would come of running statistics of a training that there was not; use layernorm or rmsnorm",
        lambda case: _is_batch_normed(case) and case.serves,
        lambda case: f"model.norm(batchnorm) with serving.new_tokens({case.serving.new_tokens})",
    ),
)
