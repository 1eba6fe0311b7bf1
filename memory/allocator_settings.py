"""What a user sets of torch's caching allocator: the part of PYTORCH_CUDA_ALLOC_CONF that is simulated."""

from __future__ import annotations

import sys
from dataclasses import dataclass

from suite.parse import from_text, nearest, require, shown

LARGE_SEGMENT = 20 * 2**20  # what large requests below 10 MiB are cut from
UNLIMITED = sys.maxsize


@dataclass(frozen=True)
class AllocatorSettings:
    """What PYTORCH_CUDA_ALLOC_CONF says: does a pool grow one segment, from which size on is a block never split?"""

    expandable_segments: bool = False
    max_split_bytes: int = UNLIMITED

    @classmethod
    def given(cls, text: str | None, device: str) -> AllocatorSettings:
        """What --alloc-conf gives for a device of that name; None: the defaults. SpecError on a CPU, which has none."""
        if text is None:
            return cls()
        require(device != "cpu", "--alloc-conf: cluster.device(cpu) has no caching allocator; name a GPU with --device")
        return cls.parse(text, "--alloc-conf")

    @classmethod
    def parse(cls, text: str, where: str = "alloc_conf") -> AllocatorSettings:
        """Read 'expandable_segments:True,max_split_size_mb:128'. SpecError for what is not modelled."""
        known = ("expandable_segments", "max_split_size_mb")
        given: dict[str, str] = {}
        for part in text.split(","):
            key, _, value = part.strip().partition(":")
            require(key in known, f"{where}: {shown(key)} is not modelled; {nearest(key, known)}")
            require(key not in given, f"{where}: {key} given twice")
            given[key] = value.strip()
        word = given.get("expandable_segments", "False")
        require(word in ("True", "False"), f"{where}: expandable_segments is True or False, got {shown(word)}")
        expandable = word == "True"
        if "max_split_size_mb" not in given:
            return cls(expandable)
        size: int = from_text(given["max_split_size_mb"], int, f"{where}: max_split_size_mb")
        least = LARGE_SEGMENT // 2**20
        require(size > least, f"{where}: max_split_size_mb must be above {least}, torch's large segment, got {size}")
        return cls(expandable, size * 2**20)
