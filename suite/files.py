"""Files that are there whole or not at all."""

from __future__ import annotations

import errno
import os
from pathlib import Path


def write_whole(path: Path, text: str) -> Path:
    """Put `text` at `path` in one step: written and synced under another name, then renamed. OSError where it cannot;
    what stood there before then stands there still."""
    if path.is_dir() or not path.name:
        raise IsADirectoryError(errno.EISDIR, "is a folder; name a file", str(path))
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:  # told with the name that was asked for
        temporary.unlink(missing_ok=True)
        raise type(error)(error.errno, error.strerror, str(path)) from None
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return path
