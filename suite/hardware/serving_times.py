"""How long a served model's attention through a cache takes on this machine: measured layer by layer, by shape.

Seconds a rank, without autograd. Torch-free.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property

from suite.cache import CacheSpec
from suite.hardware.curve import Curve
from suite.hardware.operator_times import Crowd, Format
from suite.models.latent_shape import Latent
from suite.parse import SpecError
from suite.serving import Serving
from suite.stats import NOISY_SPREAD

#: overheads of a calibration: what a block of a pass without autograd does around its operators, and what the pass does
#: around its blocks
SERVED_BLOCK, SERVED_PASS = "served.block", "served.pass"


@dataclass(frozen=True)
class CachedCore:
    """Attention of one layer of a rank through a cache: so many new tokens of each sequence, which are kept and then
    read all entries that they may."""

    sequences: int
    queries: int  # new tokens of a sequence
    entries: int  # tokens of a sequence that there are then, whatever of them the cache still has
    heads: int
    kv_heads: int
    width: int
    rotated: int  # channels of a head that rope turns
    cache: CacheSpec
    format: Format
    serving: Serving  # how prompts' lengths differ and tokens are chosen; new_tokens, which `entries` tells, is None
    vocab: int  # what they are chosen of
    window: int | None = None  # the model's own
    latent: Latent | None = None

    @property
    def pairs(self) -> float:
        """What its time grows with: queries of all sequences, and the entries that each may find."""
        return float(self.sequences * self.queries * self.entries)

    def __str__(self) -> str:
        shape = f"{self.sequences}x{self.queries} of {self.entries}, heads {self.heads}:{self.kv_heads}x{self.width}"
        return f"{self.cache} cache in {self.format}, {shape}"


@dataclass(frozen=True)
class CoreTime:
    """Seconds of one layer, and of what a pass does once for all layers: places, masks, rope's rows, the choice of the
    next tokens, beams put in order."""

    core: CachedCore
    ranks: int
    threads: int
    layer: float
    once: float
    iqr: float
    """of the layer"""
    readings: int

    @property
    def crowd(self) -> Crowd:
        """Beside whom it was measured."""
        return Crowd(self.ranks, self.threads)

    @property
    def is_noisy(self) -> bool:
        """Is the IQR more than suite.stats.NOISY_SPREAD of the median?"""
        return self.iqr > NOISY_SPREAD * self.layer


@dataclass(frozen=True, slots=True)
class CoreSeconds:
    """What a layer takes, and a pass once; in words what that rests on, empty where that very shape was measured."""

    layer: float
    once: float
    basis: str = ""


@dataclass(frozen=True)
class CoreTimes:
    """Looks attention through caches up."""

    times: tuple[CoreTime, ...]

    @cached_property
    def _exact(self) -> dict[tuple[CachedCore, Crowd], CoreTime]:
        return {(time.core, time.crowd): time for time in self.times}

    def seconds(self, core: CachedCore, crowd: Crowd) -> CoreSeconds:
        """As measured at that very shape, else between cores that differ in sequences and entries alone, on the
        straight line in the logs of pairs and time; beyond the ends the nearest's, in proportion above the largest.

        Raises SpecError where no such cache was measured.
        """
        found = self._exact.get((core, crowd))
        if found is not None:
            return CoreSeconds(found.layer, found.once)
        near = [time for time in self.times if time.crowd == crowd and _kind(time.core) == _kind(core)]
        if not near:
            raise SpecError(f"calibration.cores: {core}, for {crowd}, was not measured; `kv --measure` does")
        how = (
            "interpolated" if len({time.core.pairs for time in near}) > 1 else "in proportion to one that was measured"
        )
        layer, once = (_at(near, core.pairs, part) for part in ("layer", "once"))
        return CoreSeconds(layer, once, f"{core} {how}")


def _kind(core: CachedCore) -> CachedCore:
    """What cores have to share to be compared: all but sizes. Prompts and single tokens are two kinds."""
    return replace(core, sequences=1, queries=min(core.queries, 2), entries=1)


def _at(near: Iterable[CoreTime], pairs: float, part: str) -> float:
    points: dict[float, float] = {time.core.pairs: getattr(time, part) for time in near}
    curve = Curve.of(points.items(), "calibration")
    return curve.at(pairs) * max(1.0, pairs / curve.sizes[-1])
