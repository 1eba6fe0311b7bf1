"""Tokenizers lose nothing, agree on every rank, and survive their cache."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st

from suite import tokenizer as module
from suite.parse import SpecError
from suite.spec import TokenizerKind
from suite.tokenizer import BpeTokenizer, ByteTokenizer, Tokenizer, default_cache, load_tokenizer

pytestmark = pytest.mark.unit

ROOT = Path(__file__).resolve().parents[2]
BPE, BYTE = TokenizerKind.BPE, TokenizerKind.BYTE
PROSE = "The quick brown fox jumps over the lazy dog, and the dog doesn't mind. " * 20
ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"]))  # all that UTF-8 can carry

#: Trains in a process of its own and prints a digest of the ids and the vocabulary.
TRAIN = """
import hashlib, sys
from pathlib import Path
from suite.corpus import read_corpus
from suite.spec import TokenizerKind
from suite.tokenizer import load_tokenizer
text = read_corpus("").text[:100_000]
tokenizer = load_tokenizer(TokenizerKind.BPE, text, 700, Path(sys.argv[1]))
print(hashlib.sha256(tokenizer.encode(text).tobytes()).hexdigest(), tokenizer.vocab)
"""


@pytest.fixture(scope="module")
def bpe(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return load_tokenizer(BPE, PROSE, 300, tmp_path_factory.mktemp("cache"))


def start(code: str, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    base = {key: value for key, value in os.environ.items() if key != "TOKENIZERS_PARALLELISM"}
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        cwd=ROOT,
        env={**base, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@given(text=ANY_TEXT)
def test_bytes_round_trip(text: str) -> None:
    ids = ByteTokenizer().encode(text)
    assert ids.tolist() == list(text.encode())
    assert ByteTokenizer().decode(ids) == text


@given(text=ANY_TEXT)
def test_bpe_round_trip_on_text_it_never_saw(bpe: Tokenizer, text: str) -> None:
    ids = bpe.encode(text)
    assert ids.dtype == np.int32
    assert ids.shape == (len(ids),)
    assert bpe.decode(ids) == text
    assert len(ids) <= len(text.encode())
    assert all(0 <= token < bpe.vocab for token in ids)


@given(text=ANY_TEXT)
def test_pieces_lose_nothing(bpe: Tokenizer, text: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "PIECE", 3)
        assert bpe.decode(bpe.encode(text)) == text


def test_one_merge_by_hand(tmp_path: Path) -> None:
    # Words: "ab" once, " ab" three times. (a, b) occurs 4 times, (space, a) 3: the one merge is "ab", id 256.
    tokenizer = load_tokenizer(BPE, "ab ab ab ab", 257, tmp_path)
    assert tokenizer.vocab == 257
    ids = tokenizer.encode("ab ab b")
    assert [tokenizer.decode(ids[i : i + 1]) for i in range(len(ids))] == ["ab", " ", "ab", " ", "b"]
    assert ids[0] == ids[2] == 256
    assert ids[1] == ids[3]


def test_vocabulary_is_what_was_asked_for_or_what_the_text_allows(tmp_path: Path) -> None:
    assert load_tokenizer(BPE, PROSE, 300, tmp_path).vocab == 300
    # "abc" has two pairs to merge: 256 bytes + "ab" + "abc".
    assert load_tokenizer(BPE, "abc", 5000, tmp_path).vocab == 258


@pytest.mark.parametrize(
    ("kind", "vocab", "least"), [(BPE, 256, 257), (BPE, 1, 257), (BYTE, 255, 256)], ids=["bpe", "bpe-1", "byte"]
)
def test_vocabulary_too_small(tmp_path: Path, kind: TokenizerKind, vocab: int, least: int) -> None:
    message = rf"^model\.vocab: {vocab} is too small for the {kind} tokenizer; at least {least}"
    with pytest.raises(SpecError, match=message):
        load_tokenizer(kind, PROSE, vocab, tmp_path)
    assert load_tokenizer(kind, PROSE, least, tmp_path).vocab == least


def test_racing_ranks_agree_and_leave_one_file(tmp_path: Path) -> None:
    # Hash seeds and thread pools differ on purpose: neither may decide a merge.
    environments = [
        {"PYTHONHASHSEED": str(rank), "TOKENIZERS_PARALLELISM": ("false", "true")[rank % 2]} for rank in range(8)
    ]
    ranks = [start(TRAIN, str(tmp_path), **environment) for environment in environments]
    answers = {rank.communicate(timeout=60)[0] for rank in ranks}
    assert [rank.returncode for rank in ranks] == [0] * 8
    alone = start(TRAIN, str(tmp_path / "apart")).communicate(timeout=60)[0]
    assert answers == {alone}
    assert alone.endswith(" 700\n")
    assert len(list(tmp_path.glob("bpe-700-*.json"))) == 1
    assert not list(tmp_path.glob("*.tmp"))


def test_cache_is_read_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained = load_tokenizer(BPE, PROSE, 300, tmp_path)
    monkeypatch.setattr(module, "_train_bpe", None)  # a second training would raise
    cached = load_tokenizer(BPE, PROSE, 300, tmp_path)
    assert isinstance(trained, BpeTokenizer)
    assert isinstance(cached, BpeTokenizer)
    assert cached.model.to_str() == trained.model.to_str()


def test_cache_is_keyed_by_content(tmp_path: Path) -> None:
    for text, vocab in ((PROSE, 300), (PROSE, 301), (PROSE + "x", 300), (PROSE, 300)):
        load_tokenizer(BPE, text, vocab, tmp_path)
    assert len(list(tmp_path.iterdir())) == 3


def test_cache_is_keyed_by_what_trained_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load_tokenizer(BPE, PROSE, 300, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(tokenizers, "__version__", "0.0.1")
        load_tokenizer(BPE, PROSE, 300, tmp_path)
    monkeypatch.setattr(module, "TRAINING_VERSION", 0)
    load_tokenizer(BPE, PROSE, 300, tmp_path)
    assert len(list(tmp_path.iterdir())) == 3


def forget_ids(folder: Path) -> None:
    """Encoded texts would be read back, whatever the tokenizer."""
    for path in folder.glob("*.ids"):
        path.unlink()


@pytest.mark.parametrize(
    "damage",
    ["", "{", "[]", "{}", "null", '{"tokenizer": 1, "sha256": ""}', "\udcff", "[" * 10**5, "half"],
    ids=["empty", "torn", "list", "object", "null", "number", "not UTF-8", "deep", "half"],
)
def test_damaged_cache_is_trained_anew(tmp_path: Path, damage: str) -> None:
    expected = load_tokenizer(BPE, PROSE, 300, tmp_path).encode(PROSE)
    (file,) = tmp_path.glob("*.json")
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2] if damage == "half" else damage.encode(errors="surrogateescape"))
    forget_ids(tmp_path)
    np.testing.assert_array_equal(load_tokenizer(BPE, PROSE, 300, tmp_path).encode(PROSE), expected)
    assert file.read_bytes() == whole


def test_altered_and_misplaced_cache_files_are_refused(tmp_path: Path) -> None:
    expected = load_tokenizer(BPE, PROSE, 300, tmp_path).encode(PROSE)
    (file,) = tmp_path.glob("*.json")
    whole = file.read_bytes()
    load_tokenizer(BPE, "other words altogether " * 9, 300, tmp_path / "other")
    (other,) = (tmp_path / "other").glob("*.json")
    altered = json.loads(whole)
    altered["tokenizer"] = altered["tokenizer"].replace('"dropout":null', '"dropout":0.5')
    for content in (json.dumps(altered).encode(), other.read_bytes()):
        assert content != whole
        file.write_bytes(content)
        forget_ids(tmp_path)
        np.testing.assert_array_equal(load_tokenizer(BPE, PROSE, 300, tmp_path).encode(PROSE), expected)


def test_cache_that_cannot_be_written_costs_only_time(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    assert load_tokenizer(BPE, PROSE, 300, tmp_path / "file" / "cache").vocab == 300


def test_failed_write_leaves_no_litter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", refuse)
    assert load_tokenizer(BPE, PROSE, 300, tmp_path).vocab == 300
    assert not list(tmp_path.iterdir())


def test_default_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SHARDSCOPE_CACHE", raising=False)
    assert default_cache() == Path(".cache/shardscope")
    monkeypatch.setenv("SHARDSCOPE_CACHE", str(tmp_path))
    load_tokenizer(BPE, PROSE, 300)
    assert [file.suffix for file in tmp_path.iterdir()] == [".json"]


def test_fork_after_use_does_not_warn(tmp_path: Path) -> None:
    code = """
import os
if os.fork() == 0:
    tokenizer.encode(text)
    os._exit(0)
assert os.wait()[1] == 0
print(os.environ["TOKENIZERS_PARALLELISM"])
"""
    process = start(TRAIN + code, str(tmp_path))
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 0
    assert errors == ""
    assert output.endswith("\nfalse\n")  # what keeps the library's versions before 0.23 silent


def test_choice_of_thread_pool_stands(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "true")
    load_tokenizer(BPE, PROSE, 300, tmp_path)
    assert os.environ["TOKENIZERS_PARALLELISM"] == "true"


def test_bytes_need_no_library() -> None:
    code = """
import sys
from suite.data import load_data
from suite.spec import Recipe, TokenizerKind
load_data(Recipe(tokenizer=TokenizerKind.BYTE), 256)
print({"torch", "tokenizers"} & set(sys.modules))
"""
    assert start(code).communicate(timeout=60)[0] == "set()\n"


def test_ids_are_kept_and_damaged_ones_made_again(tmp_path: Path) -> None:
    expected = load_tokenizer(BPE, PROSE, 300, tmp_path).encode(PROSE)
    (file,) = tmp_path.glob("*.ids")
    whole = file.read_bytes()
    for damage in (b"", whole[:16], whole[:-4], whole[:-1] + bytes([whole[-1] ^ 1])):
        file.write_bytes(damage)
        np.testing.assert_array_equal(load_tokenizer(BPE, PROSE, 300, tmp_path).encode(PROSE), expected)
        assert file.read_bytes() == whole


def test_ids_of_one_text_or_tokenizer_are_not_anothers(tmp_path: Path) -> None:
    small, large = (load_tokenizer(BPE, PROSE, vocab, tmp_path) for vocab in (300, 320))
    for text in (PROSE, PROSE[: len(PROSE) // 2]):
        for tokenizer in (small, large):
            tokenizer.encode(text)
            assert tokenizer.decode(tokenizer.encode(text)) == text
    assert len(list(tmp_path.glob("*.ids"))) == 4
