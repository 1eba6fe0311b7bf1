"""A Hugging Face config.json -> our specification: decoders, mixtures of experts, BERT, T5. Without torch and
transformers.

Defaults of left-out fields are those of transformers' configuration classes (5.x). What changes the model and is
not modelled is refused with the field's name, never passed over. Sizes are counts, angles' base is a plain number.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from suite.models import SPECS, ModelSpec
from suite.models.hf_decoders import gpt2, llama, mistral, qwen2
from suite.models.hf_encoders import bert, t5
from suite.models.hf_experts import deepseek_v2, deepseek_v3, mixtral
from suite.models.hf_fields import Fields, Unfollowed, read_object
from suite.parse import SpecError

#: fields that every family may have and that change nothing of the arithmetic of a training step
_HARMLESS = """
architectures transformers_version torch_dtype dtype name_or_path use_cache initializer_range attn_implementation
bos_token_id eos_token_id pad_token_id sep_token_id decoder_start_token_id
output_attentions output_hidden_states output_scores return_dict return_dict_in_generate torchscript
id2label label2id num_labels problem_type finetuning_task task_specific_params tokenizer_class prefix
max_length min_length do_sample early_stopping num_beams num_beam_groups diversity_penalty temperature top_k top_p
typical_p repetition_penalty length_penalty no_repeat_ngram_size encoder_no_repeat_ngram_size bad_words_ids
num_return_sequences forced_bos_token_id forced_eos_token_id remove_invalid_values exponential_decay_length_penalty
suppress_tokens begin_suppress_tokens tf_legacy_loss use_bfloat16 is_decoder gradient_checkpointing
tie_last_hidden_states max_sequence_length
"""
HARMLESS = frozenset(_HARMLESS.split())
#: an architecture with another head, or none, is another model
HEADS = ("ForCausalLM", "LMHeadModel")
NAME_LIMIT = 80


@dataclass(frozen=True)
class HfFamily:
    """How the fields of a model_type are read, and what its files may say."""

    settings: Callable[[Fields], dict[str, Any]]
    """of the specification"""
    heads: tuple[str, ...] = HEADS
    """how the names of its architectures end"""
    is_encoder_decoder: bool = False
    own: tuple[str, ...] = ()
    """common fields that `settings` judges itself"""


@dataclass(frozen=True)
class HfModel:
    """A specification read from a config.json, and what of the file it does not follow, in words."""

    spec: ModelSpec
    notices: tuple[str, ...]
    unfollowed: Unfollowed | None = None


def read_hf_config(path: str) -> ModelSpec:
    """The model that the config.json at `path` describes. SpecError, in one line, for everything it cannot be."""
    return load_hf_config(path).spec


def load_hf_config(path: str, unfollowed: Unfollowed | None = None) -> HfModel:
    """As `read_hf_config`, with the notices: dropout, which training here does without, and a family's own.

    With `unfollowed`, fields that are not known and those that change numbers alone are listed there instead of
    refused; what would make memory or time wrong is refused still.
    """
    fields = read_object(path, unfollowed)
    model_type = fields.take("model_type", str)
    if model_type not in FAMILIES:
        supported = ", ".join(FAMILIES)
        raise fields.refuse("model_type", f"is not supported; supported: {supported}")
    family = FAMILIES[model_type]
    _check_common(fields, family)
    settings = _settings(family, fields)
    dropouts = tuple(
        f"{name} {fields.take(name, float)}: training here has no dropout" for name in _DROPOUTS if fields.raw(name)
    )
    fields.close()
    settings["name"] = _name(fields) or f"{model_type}-l{settings['layers']}-h{settings['hidden']}"
    try:
        spec = SPECS[settings.get("family", "decoder")](**settings)
        return HfModel(spec, (*dropouts, *fields.notices), unfollowed)
    except SpecError as refusal:
        raise SpecError(f"{fields.where}: {refusal}") from None


_DROPOUTS = (
    "attention_dropout", "attn_pdrop", "resid_pdrop", "embd_pdrop", "hidden_dropout_prob",
    "attention_probs_dropout_prob", "dropout_rate",
)  # fmt: skip


def _settings(family: HfFamily, fields: Fields) -> dict[str, Any]:
    """Parts of a specification refuse what they cannot be as soon as they are made."""
    try:
        return family.settings(fields)
    except SpecError as refusal:
        said = str(refusal)
        raise SpecError(said if said.startswith(fields.where) else f"{fields.where}: {said}") from None


def _check_common(fields: Fields, family: HfFamily) -> None:
    """What transformers' base class lets any configuration say."""
    fields.skip(HARMLESS)
    stacks = "the decoder alone" if family.is_encoder_decoder else "an encoder beside the decoder"
    fields.only("is_encoder_decoder", family.is_encoder_decoder, why=stacks)
    fields.only("add_cross_attention", False, why="attention to an encoder")
    fields.only("tie_encoder_decoder", False, why="an encoder beside the decoder")
    fields.only("chunk_size_feed_forward", 0, why="an MLP in slices")
    for name, why in (
        ("cross_attention_hidden_size", "attention to an encoder"),
        ("pruned_heads", "heads that differ from layer to layer"),
        ("quantization_config", "quantized weights"),
        ("auto_map", "code of its own"),
        ("per_layer_config", "layers that differ"),
    ):
        if name not in family.own:
            fields.none(name, why)
    names = fields.raw("architectures") or []
    if not isinstance(names, list) or not all(str(name).endswith(family.heads) for name in names):
        raise fields.refuse(
            "architectures", f"is not modelled (another head); accepted: names ending in {family.heads[0]}"
        )


def _name(fields: Fields) -> str:
    """What the file calls the model, on one line; of a path on somebody's disk only the last part."""
    for key in ("_name_or_path", "name_or_path"):
        found = fields.raw(key)
        if isinstance(found, str) and found.strip():
            text = "".join(letter for letter in found.strip() if letter.isprintable())
            is_path = text.startswith(("/", "./", "../", "~")) or "\\" in text
            return (text.replace("\\", "/").rstrip("/").rpartition("/")[2] if is_path else text)[:NAME_LIMIT]
    return ""


FAMILIES: dict[str, HfFamily] = {
    "gpt2": HfFamily(gpt2),
    "llama": HfFamily(llama),
    "mistral": HfFamily(mistral),
    "qwen2": HfFamily(qwen2),
    "mixtral": HfFamily(mixtral),
    "deepseek_v2": HfFamily(deepseek_v2, own=("auto_map", "quantization_config")),
    "deepseek_v3": HfFamily(deepseek_v3, own=("auto_map", "quantization_config")),
    "bert": HfFamily(bert, ("BertForPreTraining", "BertForMaskedLM", "BertModel")),
    "t5": HfFamily(t5, ("T5ForConditionalGeneration", "T5WithLMHeadModel"), is_encoder_decoder=True),
}
