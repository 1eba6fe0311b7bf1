"""Files that a verb is asked to write beside its answer: refused before anything is read, written once all are made."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from reports.streams import tell
from suite.files import write_whole
from suite.parse import require, shown


def check_files(page: str | None, markdown: str | None) -> None:
    """SpecError for files of --page and --markdown that cannot be, or that are one."""
    for flag, path in {"--page": page, "--markdown": markdown}.items():
        where = path is None or Path(path).parent.is_dir()
        require(where, f"{flag}: {shown(path)}: its folder is not there; make it first")
        require(path is None or not Path(path).is_dir(), f"{flag}: {shown(path)} is a folder; name a file in it")
    same = page is not None and page == markdown
    require(not same, f"--markdown: {shown(markdown)} is the --page file too; name another")


def write_files(texts: Mapping[str, str]) -> None:
    """Each whole or not at all, and told. OSError where one cannot be written."""
    for path, text in texts.items():
        write_whole(Path(path), text)
        tell(f"wrote {path}")
