"""The recipe's table and plots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ...report.plots import Axis, Series, plot
from . import theorem

TOLD = {
    "codes": "codes", "dictionary": "dictionary", "peak": "codes, best on the way", "ito": "codes by ITO", "warm-ito": "codes by our ITO, warm start",
    "top-k": "codes, the 3 largest", "omp": "codes by OMP, k=3",
}  # fmt: skip


SWEPT = {"l1": ("l1", "λ"), "topk": ("k", "k"), "mlp-width": ("hidden", "hidden units")}


def table(result: Mapping[str, Any]) -> str:
    """A line a figure, as Markdown, beside the published one where there is one."""
    if result["experiment"] == theorem.NAME:
        return theorem.table(result)
    data = "the authors' data" if result["data"] == "paper" else "fresh data for each seed"
    data += " and first weights" if result["weights"] == "paper" else ""
    quick = ", quick" if result["quick"] else ""
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
    """SVGs by the ending of their names: MCC by training step, or of a sweep by what is swept; and MCC by FLOPs of training and inference
    together. The mean of the seeds and their standard deviation."""
    name = result["experiment"]
    if name == theorem.NAME:
        return {"": theorem.draw(result)}
    title, mcc = f"amortisation: {name}", Axis("MCC of the codes")
    if name in SWEPT:
        setting, told = SWEPT[name]
        drawn = {"": plot(title, Axis(told, "log"), mcc, _sweeps(result["arms"], setting))}
    else:
        drawn = {"": plot(title, Axis("training step", "log"), mcc, _curves(result["arms"], "step"))}
    return {**drawn, "-flops": plot(title, Axis(f"FLOPs, {result['flops']}", "log"), mcc, _curves(result["arms"], "flops"))}


def _curves(arms: Sequence[Mapping[str, Any]], x: str) -> list[Series]:
    """A line an arm."""
    return [
        Series(arm["name"], [(p[x], p["mean"]) for p in arm["curve"]], [p["sd"] for p in arm["curve"]], marks=False)
        for arm in arms
    ]


def _sweeps(arms: Sequence[Mapping[str, Any]], setting: str) -> list[Series]:
    """A line a kind of encoder, and one of what was published of it; arms without the setting are left out."""
    lines = []
    for kind in dict.fromkeys(arm["kind"] for arm in arms):
        points = [(arm[setting], arm["figures"]["codes"]) for arm in arms if arm["kind"] == kind and arm[setting]]
        lines.append(Series(kind, [(x, f["mean"]) for x, f in points], [f["sd"] for _, f in points]))
        lines.append(Series(f"{kind}, published", [(x, f["published"]) for x, f in points]))
    return lines
