"""The README's tree names every file, so that it cannot fall behind."""

from __future__ import annotations

from pathlib import Path

import pytest

pytestmark = pytest.mark.unit

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("room", ["suite", "parallelism", "memory", "reports"])
def test_every_file_has_its_line(room: str) -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    tree = readme[readme.index("## The tree") :]
    part = tree[tree.index(f"    {room}/\n") :]
    files = [path.relative_to(ROOT / room).as_posix() for path in (ROOT / room).rglob("*.py") if path.read_text()]
    assert [name for name in files if f"      {name} " not in part] == []
