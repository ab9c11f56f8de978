"""`splinterp reproduce figures`: Figures 5, 6 and 7 of SplInterp with our own geometry, and what was checked of each."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ...geometry.planar import as_affine, lifted, planar_cells, slice_weights
from ...store.files import write_bytes
from ..pages import html_page, html_picture, html_table, markdown_table, save
from . import drawing
from .checks import agreement, grid, located, nearest, nearest_in_space
from .data import BOX_5, BOX_6, BOX_7, CLUSTERS, SEED, figure_5, figure_6, figure_7, figure_7_variation

NAME = "figures"
HEIGHT = -1.2  # of the plane that cuts Figure 7's points, just below them
AXES = np.eye(3)[:2]


class Drawn(NamedTuple):
    """A figure: its picture, what is to be seen in it, and what was checked: by statement, points of the grid, and those where it holds."""

    picture: Any
    caption: str
    checks: dict[str, dict[str, Any]]
    facts: dict[str, Any]


def run(out: Path) -> dict[str, Any]:
    """Fill the folder `out` with a PNG and an SVG of each figure, `figures.json` and `figures.html`; returns what the JSON holds.

    `figures`: of each its `caption`, `checks` (by statement: `points` of the grid, at how many both sides `agree`) and `facts`.
    """
    out.mkdir(parents=True, exist_ok=True)
    result: dict[str, Any] = {"recipe": NAME, "figures": {}}
    parts = [
        "<p>Figures 5, 6 and 7 of SplInterp (arXiv 2505.11836) and their variations, on the published scripts' own points and weights. Every region "
        "is an exact polygon (<code>geometry/planar.py</code>); each was compared, at every point of a grid, with something that finds regions "
        "without polygons.</p>"
    ]
    for name, make in FIGURES.items():
        drawn = make()
        svg = save(drawn.picture, out, name)
        result["figures"][name] = {"caption": drawn.caption, "checks": drawn.checks, "facts": drawn.facts}
        title = f"Figure {name.removeprefix('figure-').replace('-', ', ')}"
        parts += [
            f"<h2>{title}</h2>",
            html_picture(svg, f"{title}. {drawn.caption}", drawn.caption),
            html_table(*_rows({name: drawn.checks}), words=True),
        ]
    write_bytes(out / f"{NAME}.json", (json.dumps(result, indent=2) + "\n").encode())
    write_bytes(out / f"{NAME}.html", html_page("SplInterp's figures of Voronoi and power diagrams", parts).encode())
    return result


def table(result: Mapping[str, Any]) -> str:
    """A line a check, as Markdown."""
    return "\n".join(markdown_table(*_rows({name: of["checks"] for name, of in result["figures"].items()})))


def _rows(checks: Mapping[str, Mapping[str, Any]]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    rows = [
        (name, statement, f"{found['agree']:,} of {found['points']:,} points")
        for name, of in checks.items()
        for statement, found in of.items()
    ]
    return ("figure", "compared", "agree"), rows


def _figure_5() -> Drawn:
    from sklearn.cluster import KMeans
    from sklearn.neighbors import KNeighborsClassifier

    points, classes, weights, rows = data = figure_5()
    none = np.zeros(len(points))
    voronoi = planar_cells(*as_affine(points, none), 1, BOX_5)
    power = planar_cells(*as_affine(points, weights), 1, BOX_5)
    tries: dict[str, Any] = {"n_init": 10}  # whose annotation says str, of its default
    kmeans: Any = KMeans(CLUSTERS, random_state=SEED, **tries).fit(rows)
    clusters = planar_cells(*as_affine(kmeans.cluster_centers_, np.zeros(CLUSTERS)), 1, BOX_5)
    classifier = KNeighborsClassifier(1).fit(points, classes)

    everywhere = grid(BOX_5)
    of_cell = [int(classes[next(iter(own))]) for own in located(voronoi, everywhere)]
    same_class = int((classifier.predict(everywhere) == of_cell).sum())
    checks = {
        "a) Voronoi polygons, and the nearest point": agreement(voronoi, nearest(points, none)),
        "b) class of the Voronoi polygon, and scikit-learn's 1-nearest-neighbour classifier": {
            "points": len(everywhere), "agree": same_class
        },
        "c) Voronoi polygons of the centroids, and scikit-learn's k-means": agreement(
            clusters, lambda x: [frozenset((i,)) for i in kmeans.predict(x).tolist()]
        ),
        "d) power polygons, and the least power distance": agreement(power, nearest(points, weights)),
    }  # fmt: skip
    caption = (
        "a) Each point owns what lies nearest to it. b) The nearest point's class: classes join Voronoi cells. c) k-means' centroids (stars) have "
        "Voronoi cells too. d) Weights move the borders of a) (dashed), and leave them straight; circles have the radius √α, where the power distance "
        "‖x − μ‖² − α is 0."
    )
    picture = drawing.figure_5(data, kmeans.labels_, kmeans.cluster_centers_, voronoi, clusters, power)
    return Drawn(picture, caption, checks, {"weights": weights.tolist(), "centroids": kmeans.cluster_centers_.tolist()})


def _figure_6(shift: bool) -> Drawn:
    centres, weights = figure_6()
    shown = weights - weights.min() if shift else weights
    voronoi = planar_cells(*as_affine(centres, np.zeros(len(centres))), 1, BOX_6)
    power, second = (planar_cells(*as_affine(centres, shown), k, BOX_6) for k in (1, 2))
    checks = {
        "Voronoi polygons, and the nearest centre": agreement(voronoi, nearest(centres, np.zeros(len(centres)))),
        "power polygons, and the least power distance": agreement(power, nearest(centres, weights)),
        "second-order polygons, and the two least power distances": agreement(second, nearest(centres, weights, 2)),
    }
    if shift:
        caption = (
            "As Figure 6, with the least weight taken from all of them: the cells are the same (compared with the weights as they were), and the "
            "circles, of radius √(α − α_min), say what counts: the differences."
        )
    else:
        caption = (
            "Left: all α = 0. Middle: weights move the borders; the first centre's is largest, and its cell grows over others. Right: the second "
            "order, one cell for each pair of generators that are the two nearest (their numbers): what a TopK SAE with k = 2 has for regions. "
            "Circles have the radius √α."
        )
    facts = {
        "weights": weights.tolist(), "cells": {"Voronoi": len(voronoi.polygons), "power": len(power.polygons), "second order": len(second.polygons)},
        "generators without a cell": sorted(set(range(len(centres))) - {i for own in power.polygons for i in own}),
    }  # fmt: skip
    return Drawn(drawing.figure_6(centres, shown, voronoi, power, second), caption, checks, facts)


def _figure_7() -> Drawn:
    points, published = figure_7()
    centres, weights = slice_weights(points, np.array([0, 0, HEIGHT]), AXES)
    floor = planar_cells(*as_affine(centres, weights), 1, BOX_7)
    check = agreement(floor, nearest_in_space(points, HEIGHT))
    scripts = agreement(floor, nearest(centres, published))
    caption = (
        f"The Voronoi diagram of 15 points in space (on the two walls: slices of it) and the plane that cuts it at z = {HEIGHT:g}. What the plane cuts out "
        "is a power diagram of the points' feet, with weights −(z − z₀)²: the higher a point, the less its weight; white points have no cell here. (The published script gives "
        f"the feet other weights, with noise, which share this diagram's cell on {scripts['agree'] / scripts['points']:.0%} of the plane.)"
    )
    facts = {
        "height": HEIGHT,
        "weights": weights.tolist(),
        "published weights": published.tolist(),
        "published weights share": scripts,
    }
    picture = drawing.figure_7(points - (0, 0, HEIGHT), weights, floor, "z", 2.2)
    return Drawn(picture, caption, {"power polygons of the feet, and the nearest point in space": check}, facts)


def _figure_7_variation() -> Drawn:
    centres, weights = figure_7_variation()
    points = lifted(centres, weights)
    floor = planar_cells(*as_affine(centres, weights), 1, BOX_7)
    linear = np.column_stack([centres, (weights.max() - weights) / np.ptp(weights)])
    scripts = agreement(floor, nearest_in_space(linear))
    checks = {
        "power polygons, and the least power distance": agreement(floor, nearest(centres, weights)),
        "power polygons, and the nearest lifted point in space": agreement(floor, nearest_in_space(points)),
    }
    caption = (
        "The other way round: a power diagram in the plane, its generators lifted to h = √(α_max − α). The plane h = 0 cuts just this diagram out of the "
        "lifted points' Voronoi diagram; white generators have no cell here. (The published script lifts them linearly, (α_max − α)/(α_max − α_min), whose slice has this diagram's "
        f"cell on {scripts['agree'] / scripts['points']:.0%} of the plane.)"
    )
    facts = {"weights": weights.tolist(), "heights": points[:, 2].tolist(), "linear heights share": scripts}
    return Drawn(drawing.figure_7(points, weights, floor, "h", 1.8), caption, checks, facts)


FIGURES = {
    "figure-5": _figure_5,
    "figure-6": lambda: _figure_6(shift=False),
    "figure-6-variation": lambda: _figure_6(shift=True),
    "figure-7": _figure_7,
    "figure-7-variation": _figure_7_variation,
}
