"""Has the cases of a run traced, all of them by one process that is started once, and writes the rows. Torch-free."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from suite.case import Case
from suite.child import ChildError, talking
from suite.parse import from_mapping
from suite.passes import Pass
from suite.store import RunRow, RunStore, TraceRow

MODULE = "memory.trace_worker"
#: a process that dies so often in a row without an answer would die of every case
DEATHS = 3
#: cases between two words on how far it is
TOLD_EVERY = 100


def record_traces(
    store: RunStore, cases: Sequence[Case], tell: Callable[[str], None], timeout_s: float, module: str = MODULE
) -> None:
    """Trace the cases of a run that wants it and has no trace of them yet, and write each down as it comes.

    A case that cannot be traced, or that the process dies of, has its reason in its row; the next case gets a new
    process. `timeout_s` is for one case. Called again on the same store it goes on where it stopped.
    """
    left = _left(store, cases)
    total, deaths = len(left), 0
    if left:
        tell(f"tracing {total} cases on fake tensors ...")
    while left:
        try:
            with talking(module) as child:
                while left:
                    row = from_mapping(TraceRow, child.ask(left[0].to_mapping(), timeout_s), "trace")
                    store.append(row)
                    deaths = 0
                    left.pop(0)
                    if not left or (total - len(left)) % TOLD_EVERY == 0:
                        tell(f"traced {total - len(left)} of {total} cases")
        except ChildError as error:
            case = left.pop(0)
            store.append(TraceRow(case.case_id, case.to_mapping(), reason=f"crashed: {error}"))
            deaths += 1
        if deaths == DEATHS:
            tell(f"the tracing process died {DEATHS} times in a row; {len(left)} cases are left to --resume")
            return


def _left(store: RunStore, cases: Sequence[Case]) -> list[Case]:
    """The cases that a run wants traces of and has none of."""
    rows = store.read()
    if not any(isinstance(row, RunRow) and Pass.TRACE in row.passes for row in rows):
        return []
    done = {store.case_of(row).case_id for row in rows if isinstance(row, TraceRow)}
    return [case for case in cases if case.case_id not in done]
