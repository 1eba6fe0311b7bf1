"""What a run ran on: machine, versions, commit, time. The host's name and the user's are left out. Torch-free:
versions are read from the installed packages' metadata, so that nothing is imported to be named."""

from __future__ import annotations

import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

#: packages whose version can change a number
PACKAGES = ("torch", "deepspeed", "numpy", "tokenizers", "psutil")
#: what a case's environment says of how busy the machine was, in cores
OTHER_CORES = "other_cores"
ROOT = Path(__file__).resolve().parent.parent


def environment(root: Path = ROOT) -> dict[str, Any]:
    """JSON-ready facts about this machine and this code; a fact that cannot be had is None."""
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: package_version(name) for name in PACKAGES},
        "git": git_state(root),
        "cpu": cpu_model(),
        "cores": available_cores(),
        "memory_bytes": psutil.virtual_memory().total,
        "threads": os.environ.get("OMP_NUM_THREADS"),
    }


def package_version(name: str) -> str | None:
    """The installed version of a package, None where it is not installed."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def git_state(root: Path) -> dict[str, Any] | None:
    """The commit that `root` is checked out at and whether files differ from it; None where root is no checkout.

    A repository further up (that holds an installation of this code, say) is not this code's.
    """
    if not (root / ".git").exists():
        return None
    commit = _git(root, "rev-parse", "HEAD")
    changes = _git(root, "status", "--porcelain")
    return None if commit is None else {"commit": commit, "dirty": None if changes is None else bool(changes)}


def cpu_model() -> str | None:
    """The processor's name as the kernel gives it."""
    info = Path("/proc/cpuinfo")
    for line in info.read_text(encoding="utf-8", errors="replace").splitlines() if info.exists() else ():
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            return value.strip()
    return platform.processor() or None


def available_cores() -> int:
    """Cores this process may use, which can be fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def others_cpu_seconds() -> float:
    """CPU seconds that this machine has spent on anything but this process and its ended children."""
    whole, own = psutil.cpu_times(), os.times()
    idle = whole.idle + getattr(whole, "iowait", 0.0)
    guests = getattr(whole, "guest", 0.0) + getattr(whole, "guest_nice", 0.0)  # the kernel counts them as user too
    return sum(whole) - guests - idle - (own.user + own.system + own.children_user + own.children_system)


def oom_kills() -> int | None:
    """Processes the kernel's out-of-memory killer has ended since the machine started; None where it does not say."""
    path = Path("/proc/vmstat")
    for line in path.read_text(encoding="ascii").splitlines() if path.exists() else ():
        key, _, value = line.partition(" ")
        if key == "oom_kill":
            return int(value)
    return None


def _git(root: Path, *arguments: str) -> str | None:
    """What a git command prints; None where there is no git or it refuses."""
    command = ["git", "-C", str(root), *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
