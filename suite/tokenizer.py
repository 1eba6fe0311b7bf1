"""Text to token ids and back: bytes as they are, or byte-level BPE trained on the text and cached on disk.

Every rank asks for the tokenizer on its own. Training is deterministic, so ranks that race each
train the same one; whichever is written last, the cache holds the same bytes.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from suite.parse import require
from suite.spec import TokenizerKind

if TYPE_CHECKING:
    import tokenizers

BYTES = 256
DIGEST_BYTES = 32  # of SHA-256
#: Raised whenever the training below changes, so that no older cache file is taken for its result.
TRAINING_VERSION = 1
#: Characters tokenized at once. A token never spans two pieces; memory stays bounded on a large text.
PIECE = 1 << 20


class Tokenizer(Protocol):
    """Ids lie in [0, vocab), and decode(encode(text)) == text for every text that UTF-8 can carry."""

    @property
    def vocab(self) -> int:
        """Number of distinct ids."""

    def encode(self, text: str) -> NDArray[np.int32]:
        """The text's token ids, shape [tokens]."""

    def decode(self, ids: NDArray[np.integer]) -> str:
        """The ids' text; a character cut in two becomes U+FFFD."""


@dataclass(frozen=True)
class ByteTokenizer:
    """An id is a byte of the text's UTF-8 form."""

    vocab: int = BYTES

    def encode(self, text: str) -> NDArray[np.int32]:
        """One id a byte, shape [bytes]."""
        return np.frombuffer(text.encode(), dtype=np.uint8).astype(np.int32)

    def decode(self, ids: NDArray[np.integer]) -> str:
        """The bytes' text; ValueError for an id outside [0, 256)."""
        return bytes(ids.tolist()).decode(errors="replace")


@dataclass(frozen=True)
class BpeTokenizer:
    """Byte-level BPE: the 256 bytes are its first ids, so no text is unknown to it."""

    model: tokenizers.Tokenizer
    stored: Path | None = None
    """where it is cached; what it makes of a text is kept beside it"""

    @property
    def vocab(self) -> int:
        """Number of distinct ids: what was asked for, or fewer where the text ran out of pairs to merge."""
        return self.model.get_vocab_size()

    def encode(self, text: str) -> NDArray[np.int32]:
        """The text's token ids, shape [tokens]; read back where the same text was encoded before."""
        if self.stored is None:
            return self._encode(text)
        name = f"{self.stored.stem}-{hashlib.sha256(text.encode()).hexdigest()[:16]}.ids"
        path = self.stored.with_name(name)
        ids = _read_ids(path)
        if ids is None:
            ids = self._encode(text)
            _write(path, hashlib.sha256(ids.tobytes()).digest() + ids.tobytes())
        return ids

    def _encode(self, text: str) -> NDArray[np.int32]:
        pieces = [encoding.ids for piece in _pieces(text) for encoding in self.model.encode_batch_fast([piece])]
        return np.concatenate([np.array(ids, dtype=np.int32) for ids in pieces] or [np.empty(0, dtype=np.int32)])

    def decode(self, ids: NDArray[np.integer]) -> str:
        """The ids' text."""
        return self.model.decode(ids.tolist())


def load_tokenizer(kind: TokenizerKind, text: str, vocab: int, cache: Path | None = None) -> Tokenizer:
    """The tokenizer of that kind for a model of `vocab` embedding rows; bpe is trained on `text`, or read back.

    `cache` is the folder of trained tokenizers (None: `default_cache()`). A file there that cannot be
    read, or is not whole, is trained anew and replaced; a folder that cannot be written costs only time.

    Raises SpecError for a `vocab` that the kind does not fit in.
    """
    if kind is TokenizerKind.BYTE:
        require(vocab >= BYTES, f"model.vocab: {vocab} is too small for the byte tokenizer; at least {BYTES}")
        return ByteTokenizer()
    least = BYTES + 1
    require(
        vocab >= least,
        f"model.vocab: {vocab} is too small for the bpe tokenizer; at least {least} ({BYTES} bytes and one merge),"
        f" or recipe.tokenizer byte with at least {BYTES}",
    )
    path = _cache_path(kind, text, vocab, default_cache() if cache is None else cache)
    stored = _read_cache(path)
    if stored is None:
        stored = _train_bpe(text, vocab)
        _write_cache(path, stored)
    return BpeTokenizer(_library().Tokenizer.from_str(stored), path)


def default_cache() -> Path:
    """$SHARDSCOPE_CACHE, or .cache/shardscope in the working directory."""
    return Path(os.environ.get("SHARDSCOPE_CACHE") or Path(".cache", "shardscope"))


def _train_bpe(text: str, vocab: int) -> str:
    """A byte-level BPE of at most `vocab` ids trained on `text`, in the library's own JSON."""
    library = _library()
    model = library.Tokenizer(library.models.BPE())
    model.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = library.decoders.ByteLevel()
    trainer = library.trainers.BpeTrainer(
        vocab_size=vocab,
        initial_alphabet=library.pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=[],
        show_progress=False,
    )
    model.train_from_iterator(_pieces(text), trainer)
    return model.to_str()


def _pieces(text: str) -> Iterator[str]:
    return (text[start : start + PIECE] for start in range(0, len(text), PIECE))


def _library() -> ModuleType:
    """The `tokenizers` library, imported where bpe is used and nowhere else."""
    # Its thread pool does not survive a fork, and versions before 0.23 warn of that in every child; training
    # takes a quarter of a second without the pool. A choice that the environment already made stands.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    import tokenizers

    return tokenizers


def _cache_path(kind: TokenizerKind, text: str, vocab: int, cache: Path) -> Path:
    """Named by everything that decides the result, so that a file is right or absent, never stale."""
    parts = [hashlib.sha256(text.encode()).hexdigest(), kind.value, vocab, _library().__version__, TRAINING_VERSION]
    key = hashlib.sha256(json.dumps(parts).encode()).hexdigest()
    return cache / f"{kind.value}-{vocab}-{key[:16]}.json"


def _read_cache(path: Path) -> str | None:
    """The tokenizer stored at `path`; None where there is none, or not a whole one."""
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        text, digest = stored["tokenizer"], stored["sha256"]
        return text if _checksum(path, text) == digest else None
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return None


def _write_cache(path: Path, text: str) -> None:
    """Store a tokenizer with its checksum."""
    _write(path, json.dumps({"sha256": _checksum(path, text), "tokenizer": text}).encode())


def _read_ids(path: Path) -> NDArray[np.int32] | None:
    """The ids stored at `path` behind their digest; None where there are none, or not all."""
    try:
        stored = path.read_bytes()
    except OSError:
        return None
    digest, ids = stored[:DIGEST_BYTES], stored[DIGEST_BYTES:]
    return np.frombuffer(ids, dtype=np.int32) if hashlib.sha256(ids).digest() == digest else None


def _write(path: Path, document: bytes) -> None:
    """Store a file so that a reader at any instant sees the old one, the whole new one, or none."""
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=f"{path.name}.", suffix=".tmp", dir=path.parent)
        try:
            with open(handle, "wb") as file:
                file.write(document)
            os.replace(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise


def _checksum(path: Path, text: str) -> str:
    """Covers the file's name too: a whole file under another's name is refused like a torn one."""
    return hashlib.sha256(f"{path.name}\n{text}".encode()).hexdigest()
