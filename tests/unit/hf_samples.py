"""Small config.json files of every supported family, and how a test writes and changes them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

LLAMA31 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
#: hand-written files, as those families are published with
FILES: dict[str, dict[str, Any]] = {
    "gpt2": {"model_type": "gpt2", "vocab_size": 97, "n_positions": 64, "n_embd": 48, "n_layer": 2, "n_head": 4},
    "llama": {
        "model_type": "llama", "vocab_size": 97, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 2,
        "num_attention_heads": 6, "max_position_embeddings": 64, "rms_norm_eps": 1e-5,
    },
    "mistral": {
        "model_type": "mistral", "vocab_size": 97, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 2,
        "num_attention_heads": 6, "num_key_value_heads": 2, "max_position_embeddings": 64, "sliding_window": None,
    },
    "qwen2": {
        "model_type": "qwen2", "vocab_size": 97, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 2,
        "num_attention_heads": 6, "num_key_value_heads": 2, "max_position_embeddings": 64, "use_mrope": False,
    },
}  # fmt: skip


def write(folder: Path, data: object) -> str:
    """The file, as text."""
    path = folder / "config.json"
    path.write_text(json.dumps(data))
    return str(path)


def changed(family: str, **fields: Any) -> dict[str, Any]:
    """A hand-written file with other fields; `...` takes one out."""
    merged = FILES[family] | fields
    return {key: value for key, value in merged.items() if value is not ...}
