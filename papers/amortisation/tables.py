"""The recipe's table and plots."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...report.plots import Axis, Series, plot
from . import theorem

TOLD = {
    "codes": "codes", "dictionary": "dictionary", "peak": "codes, best on the way", "ito": "codes by ITO", "ito-warm": "codes by ITO, warm start",
    "top-k": "codes, the 3 largest", "omp": "codes by OMP, k=3",
}  # fmt: skip


def table(result: Mapping[str, Any]) -> str:
    """A line a figure, as Markdown, beside the published one where there is one."""
    if result["experiment"] == theorem.NAME:
        return theorem.table(result)
    data = "the authors' data" if result["data"] == "paper" else "fresh data for each seed"
    quick = ", quick: a fifth of the long trainings' steps" if result["quick"] else ""
    lines = [
        f"{result['experiment']}: MCC on test rows, {len(result['seeds'])} seeds (mean ± sd), {data}{quick}.",
        "",
        "| arm | what | published | ours | difference | verdict | training FLOPs | inference FLOPs | steps | s |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for arm in result["arms"]:
        for name, figure in arm["figures"].items():
            if name not in TOLD:
                continue
            ours = f"{figure['mean']:.3f} ± {figure['sd']:.3f}"
            published = (
                f"{figure['published']:.3f} | {ours} | {figure['difference']:+.3f} | {figure['verdict']}"
                if "published" in figure
                else f"– | {ours} | – | –"
            )
            spent = arm["inference_flops"].get(name)
            own = (
                (f"{arm['training_flops']:.2g}", f"{arm['steps']:,}", f"{arm['seconds']:.0f}")
                if name == "codes"
                else ("", "", "")
            )
            lines.append(
                f"| {arm['name']} | {TOLD[name]} | {published} | {own[0]} | {'' if spent is None else f'{spent:.2g}'} | {own[1]} | {own[2]} |"
            )
    return "\n".join(lines)


def draw(result: Mapping[str, Any]) -> dict[str, str]:
    """SVGs by the ending of their names: MCC by training step, and by FLOPs of training and inference together; the mean of the seeds and
    their standard deviation."""
    if result["experiment"] == theorem.NAME:
        return {"": theorem.draw(result)}
    drawn = {}
    for suffix, key, name in (("", "step", "training step"), ("-flops", "flops", f"FLOPs, {result['flops']}")):
        series = [
            Series(
                arm["name"],
                [(point[key], point["mean"]) for point in arm["curve"]],
                [point["sd"] for point in arm["curve"]],
                marks=False,
            )
            for arm in result["arms"]
        ]
        drawn[suffix] = plot(f"amortisation: {result['experiment']}", Axis(name, "log"), Axis("MCC of the codes"), series)
    return drawn
