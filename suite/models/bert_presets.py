"""Named encoders: BERT's published shapes, and a tiny one that a 2-core CPU trains."""

from __future__ import annotations

from suite.models.bert import BertSpec

UNCASED_VOCAB, CASED_VOCAB, MULTILINGUAL_VOCAB = 30522, 28996, 119547


def bert(name: str, layers: int, hidden: int, heads: int, vocab: int) -> BertSpec:
    """BERT's form, f = 4h (arXiv:1810.04805, section 3)."""
    return BertSpec(name=name, layers=layers, hidden=hidden, heads=heads, ffn=4 * hidden, vocab=vocab)


_PRESETS: tuple[BertSpec, ...] = (
    bert("bert-1m", 4, 128, 4, 2048),
    # arXiv:1810.04805, section 3, and the released checkpoints' vocabularies
    bert("bert-base", 12, 768, 12, UNCASED_VOCAB),
    bert("bert-base-cased", 12, 768, 12, CASED_VOCAB),
    bert("bert-base-multilingual", 12, 768, 12, MULTILINGUAL_VOCAB),
    bert("bert-large", 24, 1024, 16, UNCASED_VOCAB),
)

BERT_PRESETS: dict[str, BertSpec] = {spec.name: spec for spec in _PRESETS}
