"""Tables show every figure whole, however large it is and however narrow the terminal."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console
from splinterp.evaluate.gap import Gap, Point
from splinterp.progress import Bar
from splinterp.report.gap import headline
from splinterp.report.geometry import print_geometry
from splinterp.report.tables import print_results, print_sweep, print_train_plan
from splinterp.train import Member, MemberResult, TrainConfig

CONFIG = TrainConfig("adam", "topk", 64, 100, 10, 1e-3, k=4)


def summary(fvu: float) -> dict:
    return {
        "fvu": fvu, "l0": 1024.5, "dead_fraction": 0.25, "n_rows": 24_832, "before_last_solve": {"fvu": 2 * fvu}, "rows_trained": 475_000,
        "rows_per_second": 12_345, "seconds": {"train": 7500, "last_solve": 7500},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("fvu", "shown", "trained"),
    [(0.0871, "0.0871", "0.1742"), (99.0, "99.0000", "1.98e+02"), (1.234e17, "1.23e+17", "2.47e+17")],
)
def test_figures_are_never_cut(fvu, shown, trained):
    values = {"method": "adam", "encoder-steps": "2", "k": "1024", "lr": "0.00123"}
    name = ",".join(f"{axis}={value}" for axis, value in values.items())
    found = [(summary(fvu), None), (summary(2 * fvu), None), (None, 12_345)]
    results = [MemberResult(Member(name, values, CONFIG), Path(), s, diverged) for s, diverged in found]
    console = Console(file=io.StringIO(), width=80)
    print_sweep(console, results)
    print_results(console, {"pam": summary(fvu)})
    out = console.file.getvalue()
    assert "…" not in out
    line = next(line for line in out.splitlines() if "best" in line)
    assert [cell.strip() for cell in line.split("│")[1:-1]] == [
        *values.values(), shown, trained, "1024.5", "25.0%", "2 h 05 min", "2 h 05 min", "best"
    ]  # fmt: skip
    assert out.count(f" {shown} ") == 2
    assert f"{name} diverged by step 12,345." in out.splitlines()


@pytest.mark.parametrize("width", [30, 45, 60, 80, 100, 160])
def test_a_progress_bar_is_one_line_with_whole_counts(monkeypatch, width):
    monkeypatch.setenv("COLUMNS", str(width))
    bar = Bar("harvest", 80_000)
    for done in (0, 21_504, 80_000):
        bar.update(done, "12.3 MiB  forward 80%  text 10%  disk 5%")
        console = Console(file=io.StringIO(), width=width)
        console.print(bar._progress.get_renderable())
        (line,) = console.file.getvalue().splitlines()
        assert f"{done}/80000" in line
        assert "…" not in line.replace("… rows/s", "")
        assert ("disk 5%" in line) == (width >= 80)
        assert "rows/s" in line or width < 100


@pytest.mark.parametrize(
    ("latents", "rows", "batch", "told"),
    [(64, 125_000, 1000, "125k rows (125 epochs), 125 steps of 1000, 64 latents, k=1, lr 0.001, seed 0, 3.27 KiB of weights -> run"), (1, 1, 1, "1 row (0.001 epochs), 1 step of 1, 1 latent")],
)  # fmt: skip
def test_a_training_plan_counts_as_people_do(latents, rows, batch, told):
    console = Console(file=io.StringIO(), width=80)
    print_train_plan(
        console, TrainConfig("adam", "topk", latents, rows, batch, 1e-3, k=1), (), "site of s", 6, 1000, Path("run")
    )
    assert told in console.file.getvalue()


def test_a_gap_of_one_latent_is_singular():
    points = [Point(name, {"k": 1}, 0.1, 1.0, 1.0, 10, 1, 0, 10.0, 5) for name in ("native", "omp")]
    assert "needs only 1 latent for" in headline(Gap(points, [1], 1, 1, []))


def test_a_region_visited_once_is_not_visited_times():
    figures = dict.fromkeys(
        ("zero_centres", "duplicate_centres", "duplicate_generators", "tied", "short", "map_error", "border_median", "border_over_norm",
         "border_min", "border_swap"), 0,
    ) | dict.fromkeys(("verified", "agree", "map_rows"), 1)  # fmt: skip
    figures |= {
        "k": 2,
        "generators": 1,
        "verified_rows": 768,
        "n_rows": 768,
        "regions": 768,
        "regions_once": 768,
        "regions_whole": True,
    }
    for largest, told in ((1, "768 by 768 rows; each once"), (3, "768 by 768 rows; 768 once, one 3 times")):
        console = Console(file=io.StringIO(), width=80)
        print_geometry(console, figures | {"largest_region": largest, "architecture": "topk", "split": "held_out"})
        assert told in console.file.getvalue()
        assert "1 generator " in console.file.getvalue()
