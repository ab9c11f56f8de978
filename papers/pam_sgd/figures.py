"""The recipes' figures: a panel a preset, a line an arm, error bars over the seeds."""

from __future__ import annotations

import base64
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .. import drawing
from ..drawing import Line
from .data import SIDE
from .experiments import ARMS, TOLD

# Which colour and mark an arm has, everywhere.
PLACES = {"pam": 0, "sgd": 1, "adam": 2, "adam+solve": 3, "alternation": 5}
ACTIVATION = {"topk": "TopK", "relu": "ReLU"}
BARS = "Points are means over seeds, bars one standard deviation."


def swept(result: Mapping[str, Any], activation: str, experiment: str) -> str | None:
    """Test error against what an experiment sweeps, a panel a preset; None where no preset has it."""
    by = {preset: of[activation][experiment] for preset, of in result["results"].items() if experiment in of[activation]}
    if not by:
        return None
    heading, axis = TOLD[experiment]
    figure, axes = drawing.panels(1, len(by))
    for panel, (preset, points) in zip(axes, by.items(), strict=True):
        # Values that run over decades from zero on stand side by side.
        spaced = experiment in ("weight-decay", "mu-nu", "updates")
        at = [float(i) if spaced else p["x"] for i, p in enumerate(points)]
        ticks = [
            (x, p["label"].removesuffix("%") if experiment == "sizes" else p["label"]) for x, p in zip(at, points, strict=True)
        ]
        drawing.lines(
            panel, preset, axis + (", %" if experiment == "sizes" else ""), "test error", _arms(points, at), log_x=not spaced, log_y=True,
            ticks=_thinned(ticks) if not spaced else ticks,
        )  # fmt: skip
    return drawing.img(figure, f"{heading}, {ACTIVATION[activation]}: test error by arm and preset. {BARS}")


def curves(result: Mapping[str, Any], activation: str) -> str | None:
    """Test error after every epoch on all rows; None where only strong was run."""
    by = {preset: of[activation]["base"][0] for preset, of in result["results"].items() if "base" in of[activation]}
    if not by:
        return None
    figure, axes = drawing.panels(1, len(by))
    for panel, (preset, point) in zip(axes, by.items(), strict=True):
        drawn = []
        for name, arm in point["arms"].items():
            points = [(float(i + 1), _mean(values)) for i, values in enumerate(zip(*arm["curves"], strict=True))]
            spread = [_spread(values) for values in zip(*arm["curves"], strict=True)]
            drawn.append(Line(ARMS[name], points, spread, PLACES[name], marks=len(points) < 25))
        drawing.lines(panel, preset, "epoch", "test error", drawn, log_y=True)
    return drawing.img(figure, f"Test error after every epoch, {ACTIVATION[activation]}. {BARS}")


def sparsity(result: Mapping[str, Any]) -> str | None:
    """L0 of the ReLU codes by the size of the training set, where they are compared: arms by preset."""
    by = {preset: of["relu"]["sparsity"][0] for preset, of in result["results"].items() if "sparsity" in of["relu"]}
    if not by:
        return None
    figure, axes = drawing.panels(1, len(by), height=2.6, margins=(1.5, 0.15, 0.55, 0.35))
    latents = result["settings"]["d_sae"]
    for panel, (preset, point) in zip(axes, by.items(), strict=True):
        panel.set_title(preset, loc="left")
        names = list(point["arms"])
        shares = [[100 * value / latents for value in point["arms"][name]["l0"] if value is not None] for name in names]
        means = [statistics.fmean(of) if of else 0.0 for of in shares]
        colours = [drawing.COLOURS[PLACES[name]] for name in names]
        panel.barh(range(len(names)), means, xerr=[_spread(of) for of in shares], color=colours, capsize=3)
        panel.set_yticks(range(len(names)), [ARMS[name] for name in names])
        panel.invert_yaxis()
        panel.set_xlabel("latents active a row, %")
    return drawing.img(figure, f"Share of latents that are active, ReLU, by arm and preset. {BARS}")


def pictures(arms: Mapping[str, Mapping[str, str]], title: str) -> str | None:
    """Images and their reconstructions, and the filters of the busiest latents; None where there are none."""
    if not arms:
        return None
    figure, axes = drawing.panels(1 + len(arms), 3, width=4.0, height=0.85, margins=(0.05, 0.05, 0.02, 0.25))
    first = next(iter(arms.values()))
    drawing.images(axes[0], _pixels(first["images"]), "original")
    for blank in axes[1:3]:
        blank.set_axis_off()
    for row, (name, arm) in enumerate(arms.items(), start=1):
        for column, (what, told) in enumerate((("reconstructions", ""), ("encoder", ", encoder"), ("decoder", ", decoder"))):
            drawing.images(axes[3 * row + column], _pixels(arm[what]), ARMS[name] + told, diverging=column > 0)
    return drawing.img(figure, f"{title}: images, reconstructions and filters.", "png")


def _arms(points: Sequence[Mapping[str, Any]], at: Sequence[float]) -> list[Line]:
    names = dict.fromkeys(name for p in points for name in p["arms"])
    return [
        Line(
            ARMS[name],
            [(x, p["arms"][name]["mean"]) for x, p in zip(at, points, strict=True) if name in p["arms"]],
            [p["arms"][name]["sd"] or 0.0 for p in points if name in p["arms"]],
            PLACES[name],
        )
        for name in names
    ]


def _thinned(ticks: Sequence[tuple[float, str]]) -> list[tuple[float, str]]:
    """Those that have room beside each other on a logarithmic axis, the last among them."""
    kept: list[tuple[float, str]] = []
    for value, told in reversed(ticks):
        if not kept or kept[-1][0] / value > 1.25:
            kept.append((value, told))
    return kept[::-1]


def _pixels(packed: str) -> np.ndarray:
    return np.frombuffer(base64.b64decode(packed), np.uint8).reshape(-1, SIDE, SIDE)


def _mean(values: Sequence[float | None]) -> float | None:
    return None if None in values else statistics.fmean(v for v in values if v is not None)


def _spread(values: Sequence[float | None]) -> float:
    return statistics.stdev(v for v in values if v is not None) if len(values) > 1 and None not in values else 0.0
