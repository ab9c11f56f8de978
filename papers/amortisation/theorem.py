"""The theorem, shown: what a linear encoder gives its nonlinearity has rank M at most, and cannot tell N > M sources apart where sparse
inference can, from about K·log(N/K) measurements on."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import torch

from ...bench.cells import Cells
from ...devices import suitable_threads
from ...report.plots import Axis, Series, plot
from . import inference
from .data import Data, Size, generate
from .encoders import Encoder
from .first import our_layers
from .losses import Cosine
from .mcc import mcc
from .training import train

NAME = "theorem"
N, K = 32, 3
MEASUREMENTS = (2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24, 32)
STEPS, RATE = 4000, 3e-3
L1 = 0.01  # λ of ½‖x − x̂‖² + λ·Σ|s|
MEANS = ("linear encoder", "ℓ1 (FISTA)", "OMP")


def run(seeds: Sequence[int], steps: int | None, out: Path, progress: Callable[[int, int, str], None] | None) -> dict[str, Any]:
    """Of each number of measurements M: the rank of the linear encoder's pre-activations on the test rows, and the MCC of the test codes by
    the encoder (trained on true codes of other rows, for as much as it can learn), and by ℓ1 and OMP on the true dictionary.

    Each seed has its own data. `points` hold `m`, `rank` (the largest of the seeds) and by means `mean`, `sd` and `values`.
    """
    steps = min(STEPS, steps or STEPS)
    points = []
    with closing(Cells(out)) as cells, suitable_threads(N * N, torch.device("cpu")):
        for done, m in enumerate(MEASUREMENTS):
            if progress:
                progress(done * len(seeds), len(MEASUREMENTS) * len(seeds), f"M={m}")
            identities = {
                seed: {"recipe": "amortisation", "experiment": NAME, "n": N, "k": K, "m": m, "steps": steps, "seed": seed}
                for seed in seeds
            }
            missing = [seed for seed in seeds if cells.find(identities[seed]) is None]
            if missing:
                for seed, cell in zip(missing, _cells(generate(Size(N, m, K), missing), missing, steps), strict=True):
                    cells.add(identities[seed], cell)
            points.append(_point(m, [cells.find(identities[seed]) or {} for seed in seeds]))
    return {
        "experiment": NAME, "n": N, "k": K, "steps": steps, "seeds": list(seeds), "k_log_n_per_k": K * math.log(N / K), "points": points
    }  # fmt: skip


def _cells(data: Data, seeds: Sequence[int], steps: int) -> list[dict[str, Any]]:
    encoder = Encoder(data.rows, our_layers([data.rows.shape[2], N], False, seeds))
    train(encoder, Cosine(data.codes), steps, RATE)
    found = {
        MEANS[0]: encoder.encode(data.test_rows),
        MEANS[1]: inference.solved("fista", data.test_rows, data.dictionary, l1=L1),
        MEANS[2]: inference.solved("omp", data.test_rows, data.dictionary, k=K),
    }
    ranks = torch.linalg.matrix_rank(encoder.pre_activations(data.test_rows).double(), rtol=1e-5)
    return [
        {"rank": int(ranks[g]), **{name: mcc(data.test_codes[g], codes[g]) for name, codes in found.items()}}
        for g in range(len(seeds))
    ]


def _point(m: int, cells: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    of = {name: [cell[name] for cell in cells] for name in MEANS}
    return {
        "m": m,
        "rank": max(cell["rank"] for cell in cells),
        **{name: {"mean": statistics.fmean(v), "sd": statistics.pstdev(v), "values": v} for name, v in of.items()},
    }


def table(result: Mapping[str, Any]) -> str:
    """A line a number of measurements, as Markdown."""
    lines = [
        f"theorem: N={result['n']} sources of which K={result['k']} are active, K·ln(N/K) = {result['k_log_n_per_k']:.1f}; MCC on test rows, "
        f"{len(result['seeds'])} seeds.",
        "",
        "| measurements M | rank before the ReLU | " + " | ".join(MEANS) + " |",
        "|---|---|" + "---|" * len(MEANS),
    ]
    for p in result["points"]:
        lines.append(
            f"| {p['m']} | {p['rank']} | " + " | ".join(f"{p[n]['mean']:.3f} ± {p[n]['sd']:.3f}" for n in MEANS) + " |"
        )
    return "\n".join(lines)


def draw(result: Mapping[str, Any]) -> str:
    """MCC by measurements, with the line M = K·ln(N/K)."""
    series = [
        Series(name, [(p["m"], p[name]["mean"]) for p in result["points"]], [p[name]["sd"] for p in result["points"]])
        for name in MEANS
    ]
    at = result["k_log_n_per_k"]
    line = Series(f"M = K·ln(N/K) = {at:.1f}", [(at, 0.0), (at, 1.0)], marks=False)
    title = f"amortisation: theorem, N={result['n']}, K={result['k']}"
    return plot(title, Axis("measurements M"), Axis("MCC of the codes"), [*series, line])
