"""E1's pictures: regions and reconstructions of one seed, and all MSEs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from ...geometry.planar import Box, PlanarCells, as_affine, planar_cells
from ..pictures import BLACK, BLUE, GREEN, VERMILION, draw_cells, figure, frame
from .data import Regions
from .models import Model

BOX: Box = (-2.0, 2.2, -1.6, 1.8)
CAPTION = (
    "Black: the points; lines lead to their reconstructions (red). Regions are exact: Voronoi cells of the centroids, and where the same latents of the SAE "
    "are active. Of the first seed."
)
BARS = "MSE on the points that all are fitted to: mean and standard deviation over the seeds, on a logarithmic scale."
OF_BAR = {
    "k-means": ("k-means, 3 regions", BLUE, ""),
    "sae": ("SAE", VERMILION, "//"),
    "pca": ("k-means + local PCA", GREEN, ".."),
}


def panels(title: str, x: Tensor, three: Regions, model: Model, hats: Tensor, figures: Mapping[str, float]) -> Any:
    """k-means, the SAE, and k-means + local PCA, side by side."""
    made, (a, b, c) = figure(15, 4.9, 1, 3)
    made.suptitle(title, fontsize=13, x=0.01, ha="left", fontweight="bold")
    centres = three.centres.numpy()
    clusters = planar_cells(*as_affine(centres, np.zeros(len(centres))), 1, BOX)
    own = planar_cells(model.directions.double().numpy(), model.offsets.double().numpy(), model.k, BOX, model.relu)
    for ax, cells, of, mean in ((a, clusters, "k-means", 0), (c, clusters, "k-means + local PCA", 1)):
        _panel(ax, cells, x, three.reconstructed(x, mean), f"{of}: MSE {figures['pca' if mean else 'k-means']:.4f}")
        ax.scatter(*centres.T, c="white", marker="*", s=230, edgecolors=BLACK, linewidths=1.2, zorder=7)
    regions = f"{figures['regions']} regions visited of {len(own.polygons)} here"
    _panel(b, own, x, hats, f"SAE: MSE {figures['sae']:.4f}; {regions}")
    for centre, axis, values in zip(centres, three.pca.axes.numpy(), three.pca.eigenvalues.numpy(), strict=True):
        reach = 2 * values[0] ** 0.5 * axis[:, 0]
        c.plot(*np.stack([centre - reach, centre + reach]).T, color=BLACK, linewidth=1.4, zorder=6)
    return made


def _panel(ax: Any, cells: PlanarCells, x: Tensor, hats: Tensor, title: str) -> None:
    from matplotlib.collections import LineCollection

    frame(ax, BOX, title)
    draw_cells(ax, cells, edge=0.7)
    here, there = x.double().numpy(), hats.detach().double().numpy()
    ax.add_collection(LineCollection(list(np.stack([here, there], 1)), colors="#555555", linewidths=0.8, zorder=3))
    ax.scatter(*here.T, c=BLACK, s=13, linewidths=0, zorder=4)
    ax.scatter(*there.T, c=VERMILION, s=11, linewidths=0, zorder=5)


def bars(arms: Sequence[Mapping[str, Any]]) -> Any:
    """The three MSEs of every variant, in a panel a preset."""
    presets = list(dict.fromkeys(arm["preset"] for arm in arms))
    made, axes = figure(6.5 * len(presets) + 1, 4.6, 1, len(presets))
    lowest = min(arm["figures"][name]["mean"] for arm in arms for name in OF_BAR)
    for ax, preset in zip(axes, presets, strict=True):
        own = [arm for arm in arms if arm["preset"] == preset]
        for n, (name, (label, colour, hatch)) in enumerate(OF_BAR.items()):
            found = [arm["figures"][name] for arm in own]
            ax.bar(
                np.arange(len(own)) + 0.27 * (n - 1), [f["mean"] for f in found], 0.25, yerr=[f["sd"] for f in found], label=label,
                color=colour, hatch=hatch, edgecolor="white", capsize=3,
            )  # fmt: skip
        ax.set_yscale("log")
        ax.set_ylim(max(lowest, 1e-5) / 2, None)
        ax.set_xticks(range(len(own)), [arm["name"].replace(", ", ",\n") for arm in own], fontsize=10)
        ax.set_title(preset, loc="left", fontsize=12)
        ax.set_ylabel("MSE")
        ax.grid(axis="y", color="#e4e4e4")
        ax.set_axisbelow(True)
    made.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False, fontsize=10)
    return made
