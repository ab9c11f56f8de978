"""`splinterp reproduce toy`: E1's four variants, and whether SAEs lie between k-means and local PCA."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from ...devices import suitable_threads
from ...errors import SplinterpError
from ...store.files import write_bytes
from ..pages import html_page, html_picture, html_table, markdown_table, mean_sd, save, told
from . import drawing
from .data import CLUSTERS, kmeans_regions, mse, pca_of, points
from .models import VARIANTS, Model, Variant, disc_error, paper, paper_code

NAME = "toy"
PRESETS = {"paper": paper, "paper-code": paper_code}
FRESH, FRESH_SEED = 1000, 1_000_000  # points that nothing was fitted to
WITHIN = 1e-9  # of two MSEs that are the same
CLAIM = "MSE(k-means) ≥ MSE(SAE) ≥ MSE(k-means + local PCA)"
# The comparisons, in the order of the claim: what it is called, and the figures that stand in it.
COMPARED = {
    "as in the paper: 3 regions of k-means": ("k-means", "sae", "pca"),
    "as many regions of k-means as the SAE's points visit": ("k-means, as many", "sae", "pca, as many"),
    "the SAE's own regions": ("means of its own", "sae", "pca of its own"),
}
TOLD = {
    "k-means": "k-means, 3 regions", "sae": "SAE", "pca": "+ local PCA", "k-means, as many": "k-means, as many regions as the SAE's",
    "pca, as many": "+ local PCA", "means of its own": "means of the SAE's regions", "pca of its own": "+ local PCA",
}  # fmt: skip

Progress = Callable[[str, float], None]


@dataclass(frozen=True)
class Toy:
    """Settings of the recipe.

    Attributes:
        presets: of `PRESETS`. seeds: of points and beginnings. quick: a tenth of the training.
    """

    presets: tuple[str, ...] = ("paper", "paper-code")
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    quick: bool = False

    def __post_init__(self) -> None:
        for preset in self.presets:
            if preset not in PRESETS:
                raise SplinterpError(f"There is no preset '{preset}'; name one of {', '.join(PRESETS)}, or both with commas.")
        if not self.presets or len(set(self.presets)) < len(self.presets):
            raise SplinterpError(f"--preset names each of {', '.join(PRESETS)} at most once, and at least one.")
        if not self.seeds or min(self.seeds) < 0 or len(set(self.seeds)) < len(self.seeds):
            raise SplinterpError(
                f"--seeds must be different numbers from 0 on, not {', '.join(map(str, self.seeds)) or 'none'}."
            )


def run(config: Toy, out: Path, progress: Progress | None = None) -> dict[str, Any]:
    """Fill the folder `out` with `toy.json`, `toy.html`, and PNG and SVG pictures of every variant (of the first seed) and of all MSEs; returns
    what the JSON holds.

    `arms`: of each preset and variant its settings, `figures` (of each `values` by seed, `mean` and `sd`): the MSEs of `TOLD` on the 100 points
    that everything is fitted to, `fresh …` on 1,000 others, `regions` that the points visit, `disc` (paper-code: the least MSE of an x̂ in the
    unit disc); and `verdicts`: of each comparison, in how many `seeds` each half of the claim holds, and in words. `verdict`: of all variants of
    a preset, in words.

    Args:
        progress: told the arm in hand, and the share of everything that is done.
    """
    out.mkdir(parents=True, exist_ok=True)
    total, arms, parts = len(config.presets) * len(VARIANTS), [], []
    tell = progress or (lambda *_: None)
    with suitable_threads(1, torch.device("cpu")):
        for preset in config.presets:
            for variant in VARIANTS:
                name, place = f"{preset}, {variant.name}", len(arms)
                models = PRESETS[preset](
                    variant, config.seeds, config.quick, lambda done, of, n=name, p=place: tell(n, (p + done / of) / total)
                )
                arm, drawn = _arm(preset, variant, config.seeds, models)
                arms.append(arm)
                file = f"{preset}-{variant.name}".replace("=", "").replace(", ", "-").replace(" ", "-")
                alt = f"{name}: regions and reconstructions of k-means, the SAE, and k-means with local PCA"
                parts += [
                    f"<h2>{preset}: {variant.name}</h2>",
                    html_picture(save(drawn, out, file), alt, drawing.CAPTION),
                    *_verdicts(arm),
                ]
    summary = html_picture(save(drawing.bars(arms), out, NAME), "The MSEs of all variants as bars", drawing.BARS)
    result = {
        "recipe": NAME, "claim": CLAIM, **asdict(config), "points": 100, "fresh_points": FRESH, "verdict": _overall(arms), "arms": arms
    }  # fmt: skip
    lead = f"<p>Experiment E1 of SplInterp (arXiv 2505.11836): {CLAIM}? {_about(result)}</p>"
    overall = "".join(f"<li>{preset}: {said}</li>" for preset, said in result["verdict"].items())
    write_bytes(out / f"{NAME}.json", (json.dumps(result, indent=2) + "\n").encode())
    figures, verdicts = html_table(*_rows(result)), html_table(*_verdict_rows(result), words=True)
    overall = f'<ul class="verdict">{overall}</ul>'
    page = html_page(
        "Between k-means and local PCA", [lead, overall, summary, figures, *parts, "<h2>All comparisons</h2>", verdicts]
    )
    write_bytes(out / f"{NAME}.html", page.encode())
    tell("done", 1.0)
    return result


def _arm(preset: str, variant: Variant, seeds: Sequence[int], models: Sequence[Model]) -> tuple[dict[str, Any], Any]:
    by_seed, picture = [], None
    for seed, model in zip(seeds, models, strict=True):
        x, fresh = points(seed), points(FRESH_SEED + seed, FRESH)
        three = kmeans_regions(x, CLUSTERS)
        labels = model.active(x).unique(dim=0, return_inverse=True)[1]
        visited = int(labels.max()) + 1
        many, own = kmeans_regions(x, visited), pca_of(x, labels)
        in_own = lambda rank: mse(own.reconstruct(x, labels, torch.full((visited,), rank)), x)  # noqa: B023, E731
        with torch.no_grad():
            hats, fresh_hats = model.reconstruct(x), model.reconstruct(fresh)
        by_seed.append({
            "k-means": three.mse(x, 0), "sae": mse(hats, x), "pca": three.mse(x, 1), "k-means, as many": many.mse(x, 0),
            "pca, as many": many.mse(x, 1), "means of its own": in_own(0), "pca of its own": in_own(_rank(variant, preset)),
            "fresh k-means": three.mse(fresh, 0), "fresh sae": mse(fresh_hats, fresh), "fresh pca": three.mse(fresh, 1), "regions": visited,
            **({"disc": disc_error(x)} if preset == "paper-code" else {}),
        })  # fmt: skip
        if seed == seeds[0]:
            picture = drawing.panels(f"{preset}, {variant.name}", x, three, model, hats, by_seed[0])
    figures = {name: mean_sd([one[name] for one in by_seed]) for name in by_seed[0]}
    verdicts = {name: _verdict(figures, names) for name, names in COMPARED.items()}
    settings = asdict(variant) | {
        "preset": preset,
        "encoder_trained": models[0].trained,
        "pca_rank_on_own_regions": _rank(variant, preset),
    }
    return settings | {"figures": figures, "verdicts": verdicts}, picture


def _rank(variant: Variant, preset: str) -> int:
    """Of the SAE's slope on a region, at most: as many as are active; of equal shares none. So local PCA has no more than the SAE there."""
    if variant.hard:
        return 0
    # The script's k = 1 mixes all latents, and is affine nowhere: it is given the one axis that the paper's panel has.
    return min(2, variant.k - (preset == "paper-code" and variant.k > 1))


def _verdict(figures: Mapping[str, Mapping[str, Any]], names: tuple[str, str, str]) -> dict[str, Any]:
    kmeans, sae, pca = (figures[name]["values"] for name in names)
    above = [a >= b - WITHIN for a, b in zip(kmeans, sae, strict=True)]
    below = [a >= b - WITHIN for a, b in zip(sae, pca, strict=True)]
    both, n = sum(a and b for a, b in zip(above, below, strict=True)), len(sae)
    said = "holds" if both == n else "does not hold" if both == 0 else "holds in part"
    return {"seeds": n, "kmeans_above_sae": sum(above), "sae_above_pca": sum(below), "both": both, "verdict": said}


def _overall(arms: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """In how many variants of a preset the claim holds for every seed, in words."""
    said = {}
    for preset in dict.fromkeys(arm["preset"] for arm in arms):
        own = [arm for arm in arms if arm["preset"] == preset]
        hold = {name: sum(arm["verdicts"][name]["verdict"] == "holds" for arm in own) for name in COMPARED}
        said[preset] = "; ".join(f"{name}: holds in {n} of {len(own)} variants" for name, n in hold.items()) + "."
    return said


def table(result: Mapping[str, Any]) -> str:
    """In words, then a line a variant, and a line a comparison, as Markdown."""
    overall = [f"{preset}. {said}" for preset, said in result["verdict"].items()]
    return "\n".join(
        [
            _about(result),
            f"{result['claim']}?",
            *overall,
            "",
            *markdown_table(*_rows(result)),
            "",
            *markdown_table(*_verdict_rows(result)),
        ]
    )


def _about(result: Mapping[str, Any]) -> str:
    quick = ", a tenth of the training" if result["quick"] else ""
    return f"MSE (mean over points and dimensions) on the {result['points']} points that all are fitted to, {len(result['seeds'])} seeds (mean ± sd){quick}."


def _rows(result: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    shown = ("k-means", "sae", "pca", "fresh k-means", "fresh sae", "fresh pca")
    heads = [
        "variant",
        *(TOLD[name] for name in shown[:3]),
        *(f"fresh points: {TOLD[name.removeprefix('fresh ')]}" for name in shown[3:]),
        "SAE's regions",
    ]
    rows = []
    for arm in result["arms"]:
        f = arm["figures"]
        rows.append([f"{arm['preset']}: {arm['name']}", *(told(f[name]) for name in shown), f"{f['regions']['mean']:.1f}"])
    return heads, rows


def _verdict_rows(result: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    heads = ["variant", "compared in", "k-means", "SAE", "local PCA", "k-means ≥ SAE", "SAE ≥ local PCA", "verdict"]
    return heads, [row for arm in result["arms"] for row in _of_arm(arm)]


def _of_arm(arm: Mapping[str, Any]) -> list[list[str]]:
    rows = []
    for name, figures in COMPARED.items():
        v, f = arm["verdicts"][name], arm["figures"]
        of = f"of {v['seeds']}"
        rows.append([
            f"{arm['preset']}: {arm['name']}", name, *(f"{f[one]['mean']:.3g}" for one in figures), f"{v['kmeans_above_sae']} {of}",
            f"{v['sae_above_pca']} {of}", v["verdict"],
        ])  # fmt: skip
    return rows


def _verdicts(arm: Mapping[str, Any]) -> list[str]:
    """Sentences for the page."""
    said = "; ".join(f"{name}: {v['verdict']} ({v['both']} of {v['seeds']} seeds)" for name, v in arm["verdicts"].items())
    notes = []
    if arm["pca_rank_on_own_regions"] == 2:
        notes.append(
            "With three latents the slope may have full rank in the plane, and PCA of that rank leaves nothing on the SAE's own regions."
        )
    if not arm["encoder_trained"]:
        notes.append(
            "The encoder is as it began: equal shares have no gradient. They make x̂ constant on each region, so that on its own regions the SAE cannot "
            "be below their means."
        )
    if "disc" in arm["figures"]:
        notes.append(f"Reconstructions stay within the unit disc, which alone leaves an MSE of {told(arm['figures']['disc'])}.")
    return [f'<p class="verdict">{CLAIM} – {said}. {" ".join(notes)}</p>']
