"""Model families. A family is a specification, an operator ledger and a module; one line here each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from suite.models.base import ModelSpec
from suite.models.bert import BertSpec
from suite.models.bert_presets import BERT_PRESETS
from suite.models.decoder import DecoderSpec
from suite.models.encoder_decoder_presets import ENCODER_DECODERS
from suite.models.presets import PRESETS as DECODER_PRESETS
from suite.models.t5 import T5Spec
from suite.models.transformer import TransformerSpec
from suite.parse import SpecError, from_mapping, nearest

__all__ = ["PRESETS", "SPECS", "DecoderSpec", "ModelSpec", "model_from", "preset"]

#: family name -> its specification
SPECS: dict[str, type[ModelSpec]] = {
    "decoder": DecoderSpec,
    "bert": BertSpec,
    "transformer": TransformerSpec,
    "t5": T5Spec,
}

#: name -> specification, of every family
PRESETS: dict[str, ModelSpec] = {**DECODER_PRESETS, **BERT_PRESETS, **ENCODER_DECODERS}


def preset(name: str) -> ModelSpec:
    """The preset of that name; SpecError names the near ones."""
    if name not in PRESETS:
        raise SpecError(f"model: {name!r} is not a preset; {nearest(name, PRESETS)}")
    return PRESETS[name]


def model_from(value: str | Mapping[str, Any]) -> ModelSpec:
    """A preset's name, or {"family": "decoder", "layers": 32, ...}."""
    if isinstance(value, str):
        return preset(value)
    if not isinstance(value, Mapping):
        raise SpecError(f"model: expected a preset's name or an object with keys, got {value!r}")
    family = value.get("family", "decoder")
    if not isinstance(family, str) or family not in SPECS:
        raise SpecError(f"model.family: {family!r} is not known; {nearest(str(family), SPECS)}")
    return from_mapping(SPECS[family], value, "model")
