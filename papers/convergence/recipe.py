"""`splinterp reproduce convergence`: the objective after every half-step, with all rows in each (which must descend) and with batches (which need not)."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...devices import suitable_threads
from ...errors import SplinterpError
from ...store import Store
from ...store.files import write_bytes
from ...train.rows import Rows
from ..pages import html_page, html_picture, html_table, markdown_table, save
from ..pictures import BLUE, VERMILION, figure
from .descent import Objective, Parameters, Turn, alternation

NAME = "convergence"
ROUNDING = 1e-12  # of F: what is no rise
BATCHES = 8  # that the rows are dealt into
STEPS = 3  # M
CAPTION = (
    "The objective over all rows after each half-step. Left of each pair: what Theorems 3.1 and C.6 speak of, all rows in every half-step; it never rises. "
    "Right: the half-steps see an eighth of the rows, in turn, and descend on these alone. TopK's objective jumps where a row's selection changes, which the "
    "theorems leave out: a descent that may not rise can come to stand before such a jump."
)

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Convergence:
    """Settings of the recipe. rows, latents: to alternate with. turns: of the alternation. seed: of the encoder and the batches."""

    rows: int = 1024
    latents: int = 256
    turns: int = 60
    seed: int = 0

    def __post_init__(self) -> None:
        for name, value, least in (("rows", self.rows, 8 * BATCHES), ("latents", self.latents, 8), ("turns", self.turns, 2)):
            if value < least:
                raise SplinterpError(f"--{name} {value} is too few; give at least {least}.")
        if self.seed < 0:
            raise SplinterpError(f"--seed {self.seed} must be 0 or more.")


def objectives(config: Convergence) -> dict[str, Objective]:
    """ReLU with L1 and all penalties, and TopK; weights are sums' weights, in units of the rows."""
    n = float(config.rows)
    pulls = {"mu_enc": 0.02 * n, "nu_enc": 0.02 * n, "mu_dec": 0.01 * n, "nu_dec": 0.01 * n}
    return {
        "ReLU, L1": Objective(None, l1=1.0, alpha=0.01 * n, beta=0.001 * n, **pulls),
        "TopK": Objective(max(1, config.latents // 16), alpha=0.001 * n, beta=0.001 * n, **pulls),
    }


def run(config: Convergence, store: Store, site: str, out: Path, progress: Progress | None = None) -> dict[str, Any]:
    """Fill the folder `out` with `convergence.json`, `.html`, `.png` and `.svg`; returns what the JSON holds.

    `curves`: of each objective and of `full batch` and `batches` the `turns` (see `Turn`); in how many `half_steps` F `rose` over all rows, and in how
    many F and D were above F before (`rose_with_pulls`: what the theorems rule out with all rows); the `largest_rise` of F, relative to it; the turn from
    which on it `stands` still (None: it moves to the end); and a `verdict`.

    Raises:
        SplinterpError: the store has too few rows.
    """
    there = store.split_rows("train")
    if there < config.rows:
        raise SplinterpError(f"{store.path} has {there:,} training rows, and --rows asks for {config.rows:,}; give fewer.")
    out.mkdir(parents=True, exist_ok=True)
    x = torch.cat(list(Rows.of(store, site, torch.device("cpu")).training(config.rows, config.rows, config.seed))).double()
    curves: dict[str, dict[str, Any]] = {}
    done, total = 0, 2 * 2 * config.turns
    with suitable_threads(x.shape[1] * config.latents, torch.device("cpu")):
        for name, objective in objectives(config).items():
            start = Parameters.begun(x.shape[1], config.latents, config.seed)
            begun = objective.value(x, start)
            for how, batches in (("full batch", None), ("batches", _dealt(x, config.seed))):
                turns = []
                for turn in islice(alternation(x, objective, start, STEPS, batches), config.turns):
                    turns.append(turn)
                    done += 1
                    if progress:
                        progress(done, total, f"{name}, {how}")
                curves.setdefault(name, {})[how] = summed_up(begun, turns)
    result = {
        "recipe": NAME, **asdict(config), "store": str(store.path), "store_fingerprint": store.fingerprint, "site": site, "d_in": x.shape[1],
        "encoder_steps": STEPS, "objectives": {name: asdict(o) for name, o in objectives(config).items()}, "curves": curves,
    }  # fmt: skip
    write_bytes(out / f"{NAME}.json", (json.dumps(result, indent=2) + "\n").encode())
    drawn = html_picture(save(draw(result), out, NAME), "The objective by half-step", CAPTION)
    page = html_page("The alternation's objective", [f"<p>{_about(result)}</p>", drawn, html_table(*_rows(result))])
    write_bytes(out / f"{NAME}.html", page.encode())
    return result


def _dealt(x: Tensor, seed: int) -> Iterator[Tensor]:
    """An eighth of the rows at a time, all of them before any comes again, in another order each time."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        for some in torch.randperm(len(x), generator=generator).split(-(-len(x) // BATCHES)):
            yield x[some]


def summed_up(begun: float, turns: Sequence[Turn]) -> dict[str, Any]:
    """Of F at the start, and turns."""
    values = [begun, *(value for turn in turns for value in (turn.encoder, turn.decoder))]
    pulls = [pull for turn in turns for pull in (turn.pull_enc, turn.pull_dec)]
    rises = [(after - before) / before for before, after in pairwise(values)]
    with_pulls = [(after + pull - before) / before for (before, after), pull in zip(pairwise(values), pulls, strict=True)]
    rose, rose_with = (sum(rise > ROUNDING for rise in some) for some in (rises, with_pulls))
    moved = [n for n, turn in enumerate(turns, 1) if abs(turn.decoder - turns[-1].decoder) > ROUNDING * begun]
    stands = len(moved) + 1 if len(moved) + 1 < len(turns) else None
    said = f"rises in {rose} of {len(rises)} half-steps" if rose else "never rises"
    return {
        "begun": begun, "turns": [turn._asdict() for turn in turns], "half_steps": len(rises), "rose": rose, "rose_with_pulls": rose_with,
        "largest_rise": max(0.0, *rises), "stands": stands, "verdict": said + (f", stands from turn {stands} on" if stands else ""),
    }  # fmt: skip


def table(result: Mapping[str, Any]) -> str:
    """A line a curve, as Markdown."""
    return "\n".join([_about(result), "", *markdown_table(*_rows(result))])


def _about(result: Mapping[str, Any]) -> str:
    return (
        f"{result['site']}: {result['rows']:,} rows, d_in {result['d_in']}, {result['latents']:,} latents, {result['turns']} turns of "
        f"{result['encoder_steps']} encoder steps and a solve, in float64."
    )


def _rows(result: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    heads = [
        "objective",
        "half-steps see",
        "at the start",
        "at the end",
        "the objective",
        "above it with the pulls",
        "largest rise",
    ]
    rows = []
    for name, by in result["curves"].items():
        for how, curve in by.items():
            end, rise = curve["turns"][-1]["decoder"], curve["largest_rise"]
            above = f"{curve['rose_with_pulls']} of {curve['half_steps']}"
            rows.append([
                name, how, f"{curve['begun']:.4f}", f"{end:.4f}", curve["verdict"], above, f"{rise:.2%}" if curve["rose"] else "none"
            ])  # fmt: skip
    return heads, rows


def draw(result: Mapping[str, Any]) -> Any:
    """F after each half-step: a panel an objective and way."""
    made, axes = figure(13, 4.4, 1, 4)
    panels = [(name, how, curve) for name, by in result["curves"].items() for how, curve in by.items()]
    for ax, (name, how, curve) in zip(axes, panels, strict=True):
        values = [curve["begun"], *(turn[half] for turn in curve["turns"] for half in ("encoder", "decoder"))]
        at = [i / 2 for i in range(len(values))]
        ax.plot(at, values, color="#999999", linewidth=0.8, zorder=1)
        for first, half, colour, mark in ((1, "encoder", BLUE, "o"), (2, "decoder", VERMILION, "s")):
            ax.plot(at[first::2], values[first::2], mark, color=colour, markersize=3.2, label=f"after the {half}'s half-step")
        ends = [end for one in result["curves"][name].values() for end in (one["begun"], one["turns"][-1]["decoder"])]
        ax.set_yscale("log")
        ax.set_ylim(0.9 * min(ends), 1.1 * max(ends))
        ax.yaxis.set_major_formatter("{x:.2g}")
        ax.yaxis.set_minor_formatter("{x:.2g}")
        ax.set_title(f"{name}: {how}\n{curve['verdict']}", fontsize=10.5, loc="left")
        ax.set_xlabel("turn")
        ax.grid(color="#e9e9e9", which="both")
        ax.set_axisbelow(True)
    made.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False, fontsize=10)
    axes[0].set_ylabel("objective over all rows")
    return made
