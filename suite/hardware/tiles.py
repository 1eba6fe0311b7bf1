"""What share of its best rate a GPU's matrix library reaches on a shape: output tiles, and waves of them.

A product's output is cut into tiles, one a multiprocessor at a time: a tile at the edge is computed whole, and so is a
last wave that does not fill the device (NVIDIA, Matrix Multiplication Background User's Guide DU-09799-001, sections
2.3, 3.1 and 3.2).
"""

from __future__ import annotations

import math
from functools import cache

from suite.hardware.curve import Curve

#: rows and columns of a tile, and its rate over the largest's: operands are read once a tile, so that below 128 x 128
#: their traffic bounds it, in proportion to a*b/(a+b). The guide ranks tiles so; the figures are this assumption's
TILES = ((256, 128, 1.0), (128, 256, 1.0), (128, 128, 1.0), (128, 64, 2 / 3), (64, 128, 2 / 3), (64, 64, 1 / 2))
SIDES = tuple(64 * 2 ** (step / 2) for step in range(17))
#: shapes that a side stands for: from so much below to so much above it
SPREAD = tuple(2 ** (step / 32) for step in range(-8, 9))
WAVE_GUIDE = "tile and wave quantization (NVIDIA DU-09799-001, sections 3.1, 3.2)"


def tile_share(rows: int, columns: int, units: int) -> float:
    """The share of the best rate for an output of rows x columns on a device of so many multiprocessors.

    Counted: edges of tiles, the last wave, the tile that is best for both. Not counted: the depth of the product, its
    bytes (a roofline has them), splitting the depth over multiprocessors.
    """
    shares = []
    for high, wide, rate in TILES:
        tiles = math.ceil(rows / high) * math.ceil(columns / wide)
        waves = math.ceil(tiles / units)
        shares.append(rate * rows * columns / (waves * units * high * wide))
    return max(shares)


@cache
def tile_curve(best: float, units: int, source: str) -> Curve:
    """FLOP/s of products by their side (matrix_rate.equivalent_side): each the mean of square outputs around it."""
    points = []
    for side in SIDES:
        outputs = [round(side * factor) for factor in SPREAD]
        mean = sum(tile_share(output, output, units) for output in outputs) / len(outputs)
        points.append((side, best * mean))
    return Curve.of(points, source)
