"""Model family -> its nn.Module. One line a family; imported only where torch is."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

from torch import nn

from suite.models.base import ModelSpec
from suite.models.decoder_module import Decoder
from suite.models.experts_module import mixtures
from suite.spec import Workload


def _decoder(spec: ModelSpec, workload: Workload) -> nn.Module:
    from suite.models.decoder import DecoderSpec

    assert isinstance(spec, DecoderSpec)
    model = Decoder(spec, workload.attention, workload.loss)
    for mixture in mixtures(model):
        mixture.auxiliary_share = 1 / workload.micro_batches
    return model


def _bert(spec: ModelSpec, workload: Workload) -> nn.Module:
    from suite.models.bert import BertSpec
    from suite.models.bert_module import Bert

    assert isinstance(spec, BertSpec)
    return Bert(spec, workload.attention, workload.loss)


def _transformer(spec: ModelSpec, workload: Workload) -> nn.Module:
    from suite.models.encoder_decoder_module import Transformer
    from suite.models.transformer import TransformerSpec

    assert isinstance(spec, TransformerSpec)
    return Transformer(spec, workload.attention, workload.loss)


def _t5(spec: ModelSpec, workload: Workload) -> nn.Module:
    from suite.models.encoder_decoder_module import T5
    from suite.models.t5 import T5Spec

    assert isinstance(spec, T5Spec)
    return T5(spec, workload.attention, workload.loss)


#: family -> its module, weights unset: with `reset_parameters()`, and called as model(ids, labels, keys, **extras)
MODULES: dict[str, Callable[[ModelSpec, Workload], nn.Module]] = {
    "decoder": _decoder,
    "bert": _bert,
    "transformer": _transformer,
    "t5": _t5,
}


def new_module(spec: ModelSpec, workload: Workload) -> nn.Module:
    """The family's module with its own initial weights, in fp32 on torch's current device."""
    module = MODULES[spec.family](spec, workload)
    cast("Decoder", module).reset_parameters()
    return module
