"""Models that published engines served, by the names in their rows: shape, context, and how the weights are stored."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum

from memory.engine_pass import HALF, Projection, projections
from reports.published.answers import CannotModel
from suite.layout import Layout, Recompute
from suite.models.decoder import DecoderSpec, Position
from suite.models.ledgers import ledger_of
from suite.models.presets import PRESETS, gpt
from suite.share import share_of
from suite.spec import Workload
from suite.tape import BF16_POLICY, Backend

GROUP = 128  # inputs that share a scale, in every 4-bit checkpoint named here


class WeightFormat(StrEnum):
    """How the blocks' matrices are stored; embedding, head, norms and biases stay in 16 bits."""

    HALF = "16 bits"
    AWQ = "AWQ"  # 4 bits, a 16-bit scale and a 4-bit zero a group (arXiv:2306.00978)
    GPTQ = "GPTQ"  # the same, and an int32 group number an input (arXiv:2210.17323)
    MARLIN = "Marlin"  # 4 bits and a 16-bit scale a group (arXiv:2408.11743)

    @property
    def is_unpacked(self) -> bool:
        """Does a product of many tokens first make a 16-bit copy? (vLLM 0.4: csrc/quantization/{awq,gptq})"""
        return self in (WeightFormat.AWQ, WeightFormat.GPTQ)

    def nbytes(self, matrix: Projection) -> float:
        """Bytes of a stored matrix."""
        if self is WeightFormat.HALF:
            return HALF * matrix.elements
        scale = HALF if self is WeightFormat.MARLIN else HALF + 0.5
        order = 4 * matrix.inputs if self is WeightFormat.GPTQ else 0
        return matrix.elements * (0.5 + scale / GROUP) + order


@dataclass(frozen=True)
class Served:
    """A model as an engine loads it."""

    spec: DecoderSpec
    context: int  # the longest sequence by the model's own configuration
    form: WeightFormat = WeightFormat.HALF

    def weight_bytes(self, tp: int = 1) -> float:
        """Bytes that a rank's weights take, by the operator ledger, and the table of rotations that all layers share
        (in 16 bits, a row a position). Not counted: rows that pad the vocabulary, an allocator's rounding."""
        share = share_of(Layout(tp=tp), 0)
        ledger = ledger_of(self.spec, Workload(seq_len=1), Recompute(), BF16_POLICY, Backend.CUDA, share=share)
        stored = sum(self.form.nbytes(each) - HALF * each.elements for each in projections(self.spec, tp))
        turned = self.context * self.spec.rotary_dim if self.spec.position is Position.ROPE else 0
        return HALF * (ledger.parameters + turned) + self.spec.layers * stored


_MISTRAL = PRESETS["mistral-7b"]
#: one norm a block more than the model has, 0.006 % of its weights
_PHI2 = replace(gpt("phi-2", 32, 2560, 32, 51200, 2048), position=Position.ROPE, rope_fraction=0.4, tied=False)
_MODELS: dict[str, Served] = {
    # two rows of its positions are not used
    "opt-125m": Served(gpt("opt-125m", 12, 768, 12, 50272, 2050), 2048),
    "llama-2-7b": Served(PRESETS["llama2-7b"], 4096),
    "llama-2-13b": Served(PRESETS["llama2-13b"], 4096),
    "llama-2-70b": Served(PRESETS["llama2-70b"], 4096),
    "llama-3-8b": Served(PRESETS["llama3-8b"], 8192),
    "llama-3-70b": Served(PRESETS["llama3-70b"], 8192),
    "llama-3.1-8b": Served(PRESETS["llama3-8b"], 131072),
    "llama-3.1-70b": Served(PRESETS["llama3-70b"], 131072),
    "llama-3.2-1b": Served(PRESETS["llama3.2-1b"], 131072),
    "llama-3.2-3b": Served(PRESETS["llama3.2-3b"], 131072),
    "mistral-7b": Served(_MISTRAL, 32768),
    "openhermes-2.5-mistral-7b": Served(replace(_MISTRAL, vocab=32002), 32768),
    "zephyr-7b": Served(_MISTRAL, 32768),
    "phi-2": Served(_PHI2, 2048),
}


def served_model(name: str) -> Served:
    """The model that a row names: the longest known name in it, however it writes Llama's. CannotModel for another."""
    said = name.lower().replace("llama2", "llama-2").replace("llama3", "llama-3")
    known = max((each for each in _MODELS if each in said), key=len, default=None)
    if known is None:
        raise CannotModel(f"{name}: its weights are not known here")
    form = next((each for each in WeightFormat if each.value.lower() in said), WeightFormat.HALF)
    return replace(_MODELS[known], form=form)
