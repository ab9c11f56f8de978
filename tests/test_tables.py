"""Tables show every figure whole, however large it is and however narrow the terminal."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console
from splinterp.report.tables import print_results, print_sweep
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
