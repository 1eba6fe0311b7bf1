"""What a run was made on and with, in a line: the commit, the machine, torch; or that it was not recorded."""

from __future__ import annotations

from collections.abc import Mapping

from reports.compare import Run
from reports.text import plain, plural
from suite.units import bytes_text

#: characters of a commit that are shown
COMMIT_DIGITS = 12


def commit_of(run: Run) -> str | None:
    """The commit that ran, shortened, with a + where files differed from it; None where that was not recorded."""
    git = run.environment.get("git")
    if isinstance(git, Mapping) and git.get("commit"):
        return f"{str(git['commit'])[:COMMIT_DIGITS]}{'+' if git.get('dirty') else ''}"
    commit = run.environment.get("commit")
    return str(commit)[:COMMIT_DIGITS] if commit else None


def made_on(run: Run) -> str:
    """'commit b0eaaa47927c, Intel(R) Xeon(R) Processor, 2 cores, 23.54 GiB, torch 2.13.0'."""
    found = run.environment
    cpu, cores, memory = found.get("cpu"), found.get("cores"), found.get("memory_bytes")
    packages = found.get("packages")
    torch = packages.get("torch") if isinstance(packages, Mapping) else found.get("torch")
    said = [f"commit {commit}" if (commit := commit_of(run)) else "commit not recorded"]
    said.append(str(cpu) if isinstance(cpu, str) else "machine not recorded")
    said += [plural(cores, "core")] if isinstance(cores, int) else []
    said += [bytes_text(memory)] if isinstance(memory, int | float) else []
    said += [f"torch {torch}"] if torch else []
    return plain(", ".join(said))
