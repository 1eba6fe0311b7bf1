"""How evenly experts were used: the tokens of each in a run over an even share of them, block by block."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from matplotlib.ticker import MaxNLocator

from reports.compare import CaseComparison
from reports.palette import COMPONENTS, INK, MUTED
from reports.svg import SMALL, Chart, canvas, drawing_style, to_svg
from reports.text import plain
from suite.record import Component, Quantity, Sample
from suite.units import count_text, number_text

_ROW = 30
_LABEL = 64


@dataclass(frozen=True)
class BlockLoad:
    """Tokens that each expert of one block got in all timed steps, of all ranks."""

    block: int
    tokens: tuple[float, ...]

    @property
    def even(self) -> float:
        """An even share."""
        return sum(self.tokens) / len(self.tokens)

    @property
    def imbalance(self) -> float:
        """The busiest expert's tokens over an even share: 1 is balance, the number of experts is all to one."""
        return max(self.tokens) / self.even

    @property
    def words(self) -> str:
        """'block 3: expert 5 got most, 812 tokens, 1.52 of an even share; expert 0 fewest, 301, 0.56'."""
        most, fewest = max(self.tokens), min(self.tokens)
        return (
            f"block {self.block}: expert {self.tokens.index(most)} got most, {count_text(most)} tokens,"
            f" {number_text(most / self.even, 3)} of an even share; expert {self.tokens.index(fewest)} fewest,"
            f" {count_text(fewest)}, {number_text(fewest / self.even, 3)}"
        )


def block_loads(experts: int, samples: Iterable[Sample]) -> tuple[BlockLoad, ...]:
    """The blocks with a mixture of so many experts, in order. Ranks are summed: those that tensor parallelism gives the
    same tokens count them alike, which changes no share."""
    found: dict[int, list[float]] = {}
    for sample in samples:
        if sample.quantity is Quantity.ROUTED_TOKENS and sample.index is not None:
            block, expert = divmod(sample.index, experts)
            found.setdefault(block, [0.0] * experts)[expert] += sample.value
    return tuple(BlockLoad(block, tuple(row)) for block, row in sorted(found.items()) if sum(row))


def balance_chart(case: CaseComparison, key: str) -> Chart | None:
    """A dot an expert, a line a block; None where no routing was recorded."""
    experts, measured = case.case.model.experts, case.result.measurement
    loads = block_loads(experts.count, measured.samples) if experts and measured else ()
    if not loads:
        return None
    hover: dict[str, str] = {}
    with drawing_style():
        figure, axes = canvas(len(loads) * _ROW + 52, _LABEL, 14, 6, 42)
        axes.axvline(1, color=MUTED.light, linewidth=1)
        for place, load in enumerate(loads):
            shares, y = [tokens / load.even for tokens in load.tokens], place * _ROW + _ROW / 2
            axes.plot([min(shares), max(shares)], [y, y], color=INK.light, linewidth=1, gid=f"block{place}")
            axes.plot(
                shares, [y] * len(shares), "o", color=COMPONENTS[Component.PARAMETERS].light, markersize=6, alpha=0.6,
                gid=f"experts{place}",
            )  # fmt: skip
            look = {"ha": "right", "va": "center", "size": SMALL, "annotation_clip": False}
            axes.annotate(f"block {load.block}", (0, y), (-6, 0), ("axes fraction", "data"), "offset points", **look)  # type: ignore[arg-type]
            hover[f"block{place}"] = hover[f"experts{place}"] = load.words
        axes.set_xlim(0, 1.05 * max(load.imbalance for load in loads))
        axes.set_ylim(len(loads) * _ROW, 0)
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.set_xlabel("an expert's tokens over an even share")
        axes.grid(axis="x")
        svg = to_svg(figure, key, "Tokens of each expert over an even share, block by block", hover)
    worst = max(loads, key=lambda load: load.imbalance)
    caption = f"A dot an expert, over all timed steps. Furthest from even: {worst.words}."
    return Chart(key, f"Balance of experts: {plain(case.case.label)}", caption, svg)
