"""What two runs ran on and with: which differences make their times another machine's, and which are only said."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from reports.compare import CaseResult, Run
from reports.made_on import COMMIT_DIGITS
from reports.made_on import commit_of as commit_of
from reports.view import flatten

#: what of an environment is the machine; the rest is software and settings
MACHINE = ("cpu", "cores", "memory_bytes", "memory", "architecture", "gpu")
#: what differs between any two runs
_PASSING = ("time",)
#: memory that machines of one kind may differ by: a kernel keeps a little more or less
_LIKE_MEMORY = 0.02
#: how facts of ranks are called
_RANKS, _WAIT = "threads a rank, ranks: ", "omp_wait_policy"


@dataclass(frozen=True)
class Difference:
    """A fact of which the two runs say something else; None where one does not say."""

    name: str
    before: str | None
    after: str | None
    is_machine: bool

    @property
    def text(self) -> str:
        """'packages.torch: 2.12.0, then 2.13.0'."""
        return f"{self.name}: {self.before or 'not recorded'}, then {self.after or 'not recorded'}"


def differences(before: Run, after: Run) -> tuple[Difference, ...]:
    """Every fact of the two environments that differs, the machine's first."""
    first, second = facts(before), facts(after)
    found = [
        Difference(name, first.get(name), second.get(name), _is_machine(name))
        for name in {**first, **second}
        if first.get(name) != second.get(name)
    ]
    if _memory_is_alike(before.environment, after.environment):
        found = [each for each in found if each.name != "memory"]
    # a suite with other numbers of ranks says nothing of threads
    kept = [each for each in found if not each.name.startswith(_RANKS) or None not in (each.before, each.after)]
    return tuple(sorted(kept, key=lambda each: (not each.is_machine, each.name)))


def other_machine(found: tuple[Difference, ...]) -> tuple[Difference, ...]:
    """Those that make it another machine: both runs say, and say something else."""
    return tuple(each for each in found if each.is_machine and None not in (each.before, each.after))


def facts(run: Run) -> dict[str, str]:
    """An environment as names and texts: the run's own, and what its ranks say beside it."""
    found = _of_ranks(run.results) | dict(flatten(run.environment))
    if "git.commit" in found:
        found["git.commit"] = found["git.commit"][:COMMIT_DIGITS]
    if "platform" in found:
        found["architecture"] = _architecture(found["platform"])
    return {name: text for name, text in found.items() if name not in _PASSING}


def machine_of(run: Run) -> tuple[str, ...]:
    """What runs of one machine have in common."""
    found = facts(run)
    return tuple(f"{name} {found[name]}" for name in sorted(found) if _is_machine(name) and name != "memory")


def _of_ranks(results: tuple[CaseResult, ...]) -> dict[str, str]:
    """What ranks say of their threads, which step times depend on: by how many ranks a case has."""
    found: dict[str, set[str]] = {}
    for result in results:
        said = result.measurement.environment if result.measurement else {}
        for key, name in (("threads", f"{_RANKS}{result.case.layout.world_size}"), (_WAIT, _WAIT)):
            if key in said:
                found.setdefault(name, set()).add(str(said[key]))
    return {name: " or ".join(sorted(values)) for name, values in found.items()}


def _is_machine(name: str) -> bool:
    return name.split(".")[0] in MACHINE and not name.endswith("threads")


def _architecture(platform: str) -> str:
    """'Linux-6.1.0-x86_64-with-glibc2.36' -> 'x86_64'."""
    known = ("x86_64", "aarch64", "arm64", "ppc64le", "AMD64", "riscv64")
    return next((word for word in known if word in platform), "unknown")


def _memory_is_alike(before: Mapping[str, Any], after: Mapping[str, Any]) -> bool:
    first, second = before.get("memory_bytes"), after.get("memory_bytes")
    if not isinstance(first, int | float) or not isinstance(second, int | float):
        return False
    return math.isclose(first, second, rel_tol=_LIKE_MEMORY)
