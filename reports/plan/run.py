"""`plan --run N`: the best layouts measured on this machine, and whether they rank as the plan says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.text import Text

from reports.export import case_mapping, write_report
from reports.load import load_run
from reports.plan.asked import Asked
from reports.plan.solve import Plan
from reports.predict import Predictor
from reports.ranking_text import layout_table
from reports.run_ranking import RunChoice, RunRanking, held, held_text, run_ranking, run_ranking_mapping
from reports.running import Running, check_cases
from reports.summary import RunComparison, compare_run
from reports.tables import text_table
from reports.text import plain, plural
from suite.gpus import gpu_names, is_called
from suite.hardware import DeviceKind
from suite.parse import require
from suite.passes import Pass
from suite.units import NOT_KNOWN, number_text

if TYPE_CHECKING:
    from suite.hardware.calibration import Calibration

#: a step's time, and the bytes of its fullest rank
PASSES = (Pass.TRAIN, Pass.MEMORY)
#: of each layout, one round after another: what two launches of one layout are apart by, two layouts have to exceed
LAUNCHES = 2


@dataclass(frozen=True)
class Trial:
    """A plan's best layouts, measured."""

    folder: Path
    comparison: RunComparison

    @property
    def ranking(self) -> RunRanking | None:
        """None where fewer than two layouts ran."""
        return run_ranking(self.comparison)

    @property
    def choices(self) -> tuple[RunChoice, ...]:
        """One, unless the plan is about several numbers of GPUs."""
        return self.ranking.choices if self.ranking else ()

    @property
    def sentences(self) -> tuple[str, ...]:
        """Whether the ranking held, and what did not run."""
        several = len(self.choices) > 1
        said = [f"{_start(choice, several)}{held_text(choice)}{_correlated(choice)}." for choice in self.choices]
        if not said:
            said = [f"The ranking: not known; {plural(len(self.comparison.finished), 'layout')} ran to the end."]
        failed = (f"{case.case.label}: {case.status}: {case.reason}." for case in self.comparison.unfinished)
        return (*said, *failed)


def check_run(asked: Asked, count: int) -> None:
    """Refuse, before a search, what this machine cannot run: other devices, several machines, more layouts than are
    kept. SpecError."""
    require(count <= asked.best, f"--run: {count} layouts of the best {asked.best}; give --best {count} too")
    require(
        asked.nodes == 1,
        f"--run: cluster.nodes: {asked.nodes} machines, and this is one; `export --to slurm` hands a layout over",
    )
    if asked.device.kind is DeviceKind.CPU:
        return
    names = gpu_names()
    fitting = [name for name in names if is_called(asked.device.name, name)]
    have = ", ".join(sorted(set(names))) or "no GPU that its driver tells of"
    require(
        bool(fitting),
        f"--run: cluster.device: {asked.device.name} is not what this machine has ({have}); give --device cpu, or"
        " leave --run out",
    )
    require(
        asked.per_node <= len(fitting),
        f"--run: cluster.per_node: {asked.per_node}, and this machine has {len(fitting)} of {asked.device.name};"
        f" give --per-node {len(fitting)}",
    )


def run_answers(plan: Plan, count: int, calibration: Calibration | None, running: Running) -> Trial:
    """Run the plan's best `count` layouts as `bench` runs cases; the run's folder is one of its runs, with its reports.

    Interrupted, it raises KeyboardInterrupt, with what is measured kept and the command that goes on told.
    """
    cases = tuple(answer.case for answer in plan.answers[:count])
    check_cases(cases)
    name = f"plan: best {len(cases)} of {plan.asked.base.model.name} on {plan.asked.gpus} x {plan.asked.device.name}"
    store = running.begin(cases, name, PASSES, calibration)
    running.carry_out(store, cases, Predictor(calibration, PASSES))
    run = load_run(store.folder)
    write_report(run, store.folder)
    return Trial(store.folder, compare_run(run))


def trial_mapping(trial: Trial) -> dict[str, Any]:
    """As JSON-ready data: the run's folder, its cases as `bench` has them, and its ranking."""
    return {
        "folder": str(trial.folder),
        "held": [held(choice).value for choice in trial.choices],
        "ranking": run_ranking_mapping(trial.ranking),
        "cases": [_case(case_mapping(case)) for case in trial.comparison.cases],
    }


def print_trial(trial: Trial, console: Console) -> None:
    """The layouts in the order that was predicted, beside the order that was measured; whether it held."""
    for choice in trial.choices:
        console.print(text_table(layout_table(choice)))
    for sentence in trial.sentences:
        console.print(Text(plain(sentence)))
    console.print(Text(plain(f"run      {trial.folder}")))


def _case(mapping: Mapping[str, Any]) -> dict[str, Any]:
    wanted = ("case_id", "case", "world_size", "outcome", "reason", "step_seconds", "peak_memory_bytes")
    return {name: mapping[name] for name in wanted}


def _start(choice: RunChoice, several: bool) -> str:
    return f"{choice.label}: the ranking " if several else "The ranking "


def _correlated(choice: RunChoice) -> str:
    found = NOT_KNOWN if choice.correlation is None else number_text(choice.correlation, 3)
    return f"; rank correlation of {len(choice.candidates)} layouts {found}"
