"""`bench` of served cases for real: prompts answered on two ranks, and a cache that fills up, in one launch."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.e2e.commands import document, run

pytestmark = pytest.mark.e2e

MODEL = {"layers": 2, "hidden": 64, "heads": 4, "kv_heads": 2, "vocab": 300, "max_positions": 64, "ffn": 96}


def test_cases_are_answered_and_a_full_cache_is_told(tmp_path: Path) -> None:
    case = {
        "model": MODEL, "layout": {"tp": 2}, "workload": {"seq_len": 16, "micro_batch": 2, "precision": "fp32"},
        "serving": {"new_tokens": 6, "shortest_prompt": 5}, "recipe": {"tokenizer": "byte"},
    }  # fmt: skip
    mine = tmp_path / "cases.json"
    mine.write_text(json.dumps([case | {"cache": {"cache_tokens": 18}}, case]))
    done = run("bench", "--case", str(mine), "--runs", str(tmp_path / "runs"), "--calibration", "none", "--json")
    assert done.returncode == 1, done.stderr  # one did not end well
    said = document(done)
    full, whole = said["cases"]
    assert full["outcome"] == "cache_full"
    assert full["reason"].startswith("the cache was full after 3 of 6 tokens: the cache has room for 18 tokens")
    assert whole["outcome"] == "ok", whole["reason"]
    # on each rank 2 layers, 2 sequences of 22 entries, 1 head of 16 numbers in fp32, and 8 bytes an entry's place
    stored = {
        (row["rank"], row["component"]): row for row in whole["serving"]["cache"] if "read" not in row["quantity"]
    }
    for rank in (0, 1):
        lane = 2 * 2 * 22 * 16 * 4
        assert stored[rank, None]["measured"] == stored[rank, None]["predicted"] == 2 * lane + 2 * 22 * 8
    assert whole["serving"]["tokens_made"] == 6
    assert whole["serving"]["tokens_differ"] == 0
    assert whole["serving"]["logit_difference"] < 1e-4
    assert whole["serving"]["decode_seconds"]["readings"] == 2 * 5
    assert whole["serving"]["prefill_seconds"]["readings"] == 5
    assert said["summary"]["serving"]["cache_read_rows_exact"] == said["summary"]["serving"]["cache_read_rows"] == 4
    folder = Path(said["folder"])
    assert len(list(folder.glob("launch*"))) == 1
    assert "cache_full" in (folder / "report.md").read_text().replace("\\", "")
