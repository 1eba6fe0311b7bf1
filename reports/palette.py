"""The colours of every figure and page: fixed per component, apart for colour-blind eyes, named as CSS variables.

Figures are drawn with the light values; the page swaps each for its variable, so that one drawing serves light and
dark. The hues are Okabe and Ito's and Tol's, moved a little where two would touch. (Okabe & Ito 2008; Tol 2021)
"""

from __future__ import annotations

from dataclasses import dataclass

from parallelism.simulator.plan import Part
from reports.step_work import Work
from suite.record import Component


@dataclass(frozen=True, slots=True)
class Colour:
    """A colour's CSS variable and its value on a light and on a dark page."""

    variable: str
    light: str
    dark: str

    @property
    def css(self) -> str:
        """The variable, with the light value for a drawing shown outside a page."""
        return f"var(--{self.variable}, {self.light})"


INK = Colour("ink", "#1b2430", "#e6eaf0")
MUTED = Colour("muted", "#566070", "#9aa6b6")
GRID = Colour("line", "#dbe0e7", "#2c3643")
PAPER = Colour("paper", "#fdfdfe", "#12171e")
BAND = Colour("band", "#e3f0e8", "#162a21")
GOOD = Colour("good", "#0b7a53", "#4cc79a")
BAD = Colour("bad", "#b3261e", "#ff8a7a")

COMPONENTS: dict[Component, Colour] = {
    Component.PARAMETERS: Colour("c-parameters", "#0b5fa5", "#4a9be0"),
    Component.BUFFERS: Colour("c-buffers", "#7cc0ea", "#a5d8f6"),
    Component.GRADIENTS: Colour("c-gradients", "#e8a000", "#f0b53c"),
    Component.OPTIMIZER: Colour("c-optimizer", "#00936c", "#2fbf94"),
    Component.COMMUNICATION: Colour("c-communication", "#cc74a3", "#e296c0"),
    Component.INPUTS: Colour("c-inputs", "#8a8f98", "#a7adb7"),
    Component.ACTIVATIONS: Colour("c-activations", "#d0500a", "#f0733a"),
    Component.LOSS: Colour("c-loss", "#dccb2a", "#efe05a"),
    Component.GATHERED: Colour("c-gathered", "#2aa7b8", "#5fd0de"),
    Component.TRANSIENTS: Colour("c-transients", "#5a3d9c", "#9a80dd"),
    Component.KEYS: Colour("c-keys", "#117733", "#3fae66"),
    Component.VALUES: Colour("c-values", "#ddcc77", "#e6d98f"),
    Component.SCALES: Colour("c-scales", "#882255", "#d0639a"),
    Component.TABLES: Colour("c-tables", "#7fbfdd", "#a9dbf3"),
    Component.HOST: Colour("c-host", "#332288", "#8475e0"),
    Component.UNEXPLAINED: Colour("c-unexplained", "#2a2d33", "#f4f6f8"),
}

#: Hues of lines that stand for cases, in order; a line also has its own dash, marker and width.
LINES = tuple(
    Colour(f"s-{place}", light, dark)
    for place, (light, dark) in enumerate(
        (
            ("#9dc3e6", "#2f5f8c"),
            ("#d0500b", "#f0733b"),
            ("#00936d", "#2fbf95"),
            ("#5a3d9d", "#9a80de"),
            ("#e8a001", "#f0b53d"),
            ("#0b5fa6", "#4a9be1"),
            ("#cc74a4", "#e296c1"),
            ("#1b2431", "#e6eaf1"),
        )
    )
)

#: what a pipeline rank does; letters on these are PAPER
WORK: dict[Work, Colour] = {
    Work.FORWARD: Colour("w-forward", "#2f6fb5", "#6aaaf0"),
    Work.BACKWARD: Colour("w-backward", "#1d7f63", "#4fc7a0"),
    Work.INPUT: Colour("w-input", "#b4540c", "#f0904a"),
    Work.WEIGHT: Colour("w-weight", "#86690a", "#d9b93d"),
    Work.RECOMPUTE: Colour("w-recompute", "#93b4dc", "#41688f"),
    Work.OPTIMIZER: Colour("w-optimizer", "#6a4ca3", "#a58be0"),
    Work.COMMUNICATION: Colour("w-communication", "#b8477f", "#ea8abb"),
    Work.HOST: Colour("w-host", "#757b85", "#9ba1ab"),
    Work.BUBBLE: Colour("w-bubble", "#e4e8ee", "#28313d"),
}

#: what a second of a step is spent on
PARTS: dict[Part, Colour] = {
    Part.COMPUTE: WORK[Work.FORWARD],
    Part.RECOMPUTE: WORK[Work.RECOMPUTE],
    Part.OPTIMIZER: WORK[Work.OPTIMIZER],
    Part.HOST: WORK[Work.HOST],
    Part.TENSOR: WORK[Work.COMMUNICATION],
    Part.CONTEXT: Colour("t-context", "#d98a01", "#f2b84b"),
    Part.EXPERT: Colour("t-expert", "#8a5a9e", "#c79bd8"),
    Part.GATHER: Colour("t-gather", "#1f8fa3", "#55c6d8"),
    Part.REDUCTION: Colour("t-reduction", "#d9694c", "#ff9c80"),
    Part.PIPELINE: Colour("t-pipeline", "#7a5c2e", "#c9a56b"),
    Part.NORM: Colour("t-norm", "#5b7a2a", "#a3c765"),
    Part.BUBBLE: Colour("t-bubble", "#c9d0da", "#465364"),
}

_TIMES = dict.fromkeys((*WORK.values(), *PARTS.values()))
ALL = (INK, MUTED, GRID, PAPER, BAND, GOOD, BAD, *COMPONENTS.values(), *LINES, *_TIMES)


def css_variables(dark: bool) -> str:
    """The declarations of every colour, for one of the two looks."""
    return "".join(f"--{colour.variable}:{colour.dark if dark else colour.light};" for colour in ALL)
