"""The fields of Hugging Face's bert and t5 as settings of our specifications.

Defaults of left-out fields are those of transformers' configuration classes (5.x).
"""

from __future__ import annotations

from typing import Any

from suite.models.encoder_decoder import Feed
from suite.models.hf_fields import Fields

#: of BERT's first files, which transformers does not read
_OF_OLD = ("directionality", "pooler_type", "output_past", "classifier_dropout")
_POOLER = ("fc_size", "num_attention_heads", "num_fc_layers", "size_per_head")


def bert(fields: Fields) -> dict[str, Any]:
    """BERT with both pretraining heads, whichever of them the file's own class has."""
    fields.only_maths("hidden_act", "gelu", alike=("gelu_new", "gelu_pytorch_tanh"), why="GELU is exact here")
    fields.only("position_embedding_type", "absolute", why="relative positions")
    fields.only("tie_word_embeddings", True, why="a decoder of its own weights")
    fields.only("is_decoder", False, why="causal attention")
    fields.skip((*_OF_OLD, *(f"pooler_{part}" for part in _POOLER)))
    names = fields.raw("architectures") or []
    fields.notices += [
        f"architectures {name!r}: trained with both pretraining heads" for name in names if name != "BertForPreTraining"
    ]
    return {
        "family": "bert",
        "layers": fields.size("num_hidden_layers"),
        "hidden": fields.size("hidden_size"),
        "heads": fields.size("num_attention_heads"),
        "ffn": fields.size("intermediate_size"),
        "vocab": fields.size("vocab_size"),
        "max_positions": fields.size("max_position_embeddings"),
        "segments": fields.size("type_vocab_size", 2),
        "norm_eps": fields.positive("layer_norm_eps", 1e-12),
    }


def t5(fields: Fields) -> dict[str, Any]:
    """T5, v1.0 (ReLU) or v1.1 (gated GELU). transformers 5 writes a head of its own as scale_decoder_outputs false."""
    feeds = {"relu": Feed.RELU, "gated-gelu": Feed.GATED_GELU}
    feed = fields.take("feed_forward_proj", str, "relu")
    if feed not in feeds:
        raise fields.refuse("feed_forward_proj", "is not modelled; accepted: relu or gated-gelu")
    fields.skip(("dense_act_fn", "is_gated_act", "initializer_factor", "n_positions", "output_past"))
    fields.skip(("classifier_dropout", "d_head"))
    encoder = fields.size("num_layers")
    return {
        "family": "t5",
        "layers": encoder + fields.size("num_decoder_layers", encoder),
        "encoder_layers": encoder,
        "hidden": fields.size("d_model"),
        "heads": fields.size("num_heads"),
        "head_dim": fields.size("d_kv", 64),
        "ffn": fields.size("d_ff"),
        "vocab": fields.size("vocab_size"),
        "feed": feeds[feed],
        "tied": fields.take("tie_word_embeddings", bool, True) and fields.take("scale_decoder_outputs", bool, True),
        "buckets": fields.size("relative_attention_num_buckets", 32),
        "max_distance": fields.size("relative_attention_max_distance", 128),
        "norm_eps": fields.positive("layer_norm_epsilon", 1e-6),
    }
