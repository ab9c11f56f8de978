"""The points and weights of the published figures, as the authors' scripts draw them (NumPy's legacy generator, seed 42)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...geometry.planar import Array, Box

SEED = 42
BOX_5: Box = (-4.5, 4.5, -4.5, 4.5)
BOX_6: Box = (-4.0, 4.0, -4.0, 4.0)
BOX_7: Box = (-2.0, 2.0, -2.0, 2.0)
CLASSES, CLUSTERS = 3, 3


class Figure5(NamedTuple):
    """points [12, 2], their classes and weights [12], and the rows [200, 2] that k-means is shown on."""

    points: Array
    classes: NDArray[np.int64]
    weights: Array
    rows: Array


def figure_5() -> Figure5:
    """Twelve points in [−4, 4]², weights in [0.5, 2.5]; 200 normal rows, of which two thirds are shifted."""
    draw = np.random.RandomState(SEED)
    points = 8 * draw.rand(12, 2) - 4
    classes, weights = draw.choice(range(CLASSES), size=12), draw.uniform(0.5, 2.5, size=12)
    rows = draw.randn(200, 2)
    third = len(rows) // 3
    rows[:third] -= 2
    rows[third : 2 * third] += (2, -2)
    return Figure5(points, classes, weights, rows)


def figure_6() -> tuple[Array, Array]:
    """Centres [7, 2] in [−3, 3]², weights [7] in [0, 2], the first of them 4 more."""
    draw = np.random.RandomState(SEED)
    centres, weights = 6 * draw.rand(7, 2) - 3, 2 * draw.rand(7)
    weights[0] += 4
    return centres, weights


def figure_7() -> tuple[Array, Array]:
    """Points [15, 3] in [−1, 1]³, and the weights [15] that the script gives them: falling with the height, and with noise."""
    draw = np.random.RandomState(SEED)
    points = 2 * draw.rand(15, 3) - 1
    _, _, noise = (draw.rand(15) for _ in range(3))  # the script draws three times, and takes the last
    return points, 3 - 1.5 * (points[:, 2] + 1) - 0.5 * noise


def figure_7_variation() -> tuple[Array, Array]:
    """Twelve latents placed by hand [12, 2], and their weights [12]."""
    centres = np.array([
        (-1.2, -0.8), (-0.6, -0.8), (0.0, -0.8), (-0.2, 0.6), (0.2, 0.6), (-0.2, 0.2), (0.2, 0.2), (0.8, -0.5), (1.2, -0.3), (1.7, 0.0),
        (-1.0, 0.0), (1.0, 1.0),
    ])  # fmt: skip
    return centres, np.array([1.5, 0.8, 0.3, 1.9, 0.2, 0.6, 1.0, 0.4, 1.2, 0.7, 0.1, 1.8])
