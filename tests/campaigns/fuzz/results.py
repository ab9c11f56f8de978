"""What runs leave, as compare, report, sweeps and the service read it."""

from __future__ import annotations

import io
import json
from pathlib import Path

from rich.console import Console
from splinterp.report import compare
from splinterp.report.build import _before_last_solve
from splinterp.report.charts import lines
from splinterp.report.page import thinned
from splinterp.report.plots import Axis, Series, plot
from splinterp.report.runs import read_lines, read_run, read_runs
from splinterp.service import catalogue, curves, follow, progress
from splinterp.service.paths import Root
from splinterp.train.directory import is_begun, resumed
from splinterp.train.sweep_directory import begun, check_is_sweep, ended

from .kit import Prepared, Target
from .stores import make
from .trees import Tree, encoded

SETTINGS = {"method": "pam", "d_sae": 64, "k": 4, "lr": 0.01, "rows": 1000, "seed": 0}
RUN = {
    "settings": SETTINGS,
    "store": "/x/acts.zarr",
    "store_fingerprint": "0123",
    "site": "h",
    "training_rows": 900,
    "started": "2025-01-01T00:00:00+00:00",
}
SUMMARY = {
    "fvu": 0.1, "l0": 4.0, "dead_fraction": 0.0, "rows_trained": 1000, "seconds": {"training": 1.5, "last_solve": 0.5},
    "before_last_solve": {"fvu": 0.12, "l0": 4.0, "dead_fraction": 0.0},
}  # fmt: skip
CONFIG = {"architecture": "topk", "d_in": 8, "d_sae": 64, "k": 4}
LINES = [
    {"step": i, "rows": 100 * i, "seconds": 0.1 * i, "fvu": 1 / i, "held_out_fvu": 1.1 / i, "l0": 4.0, "dead": 0, "lr": 0.01}
    for i in range(1, 5)
]


def leave_run(path: Path) -> None:
    path.mkdir(parents=True)
    for name, content in (("run.json", RUN), ("summary.json", SUMMARY), ("cfg.json", CONFIG)):
        (path / name).write_bytes(encoded(content))
    (path / "metrics.jsonl").write_bytes(b"".join(encoded(line) + b"\n" for line in LINES))


FILES = ("run.json", "summary.json", "cfg.json", "metrics.jsonl")


def runs(folder: Path) -> Prepared:
    """A run beside a sound one."""
    for name in ("one", "two"):
        leave_run(folder / name)
    tree = Tree(folder / "one", FILES)

    def one(data: bytes) -> None:
        tree.write(data)
        found, lacking = read_runs([folder / "one", folder / "two"])
        json.dumps(compare.as_json(found, lacking), allow_nan=False)
        compare.page(found, lacking).encode(errors="replace")
        compare.print_comparison(
            Console(file=io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors="backslashreplace"), width=100), found
        )
        seen, _ = read_run("one", folder / "one")
        _before_last_solve(folder / "one", seen)
        drawn = [(line.get("rows"), line.get("held_out_fvu")) for line in read_lines(folder / "one" / "metrics.jsonl")]
        lines("a", Axis("x", "log"), Axis("y", "log"), [Series("s", thinned(drawn))])

    return Prepared([tree.seed(), tree.seed(**{"summary.json": None}), tree.seed(**{"run.json": None})], one)


def sweep(folder: Path) -> Prepared:
    out = folder / "sweep"
    for name in ("k=4", "k=8"):
        leave_run(out / name)
    told = {
        "state": "begun",
        "started": RUN["started"],
        "members": {"k=4": {"settings": SETTINGS}, "k=8": {"settings": SETTINGS}},
        "store": "/x",
    }
    (out / "sweep.json").write_bytes(encoded(told))
    tree = Tree(out, ["sweep.json", "k=4/run.json"])

    def one(data: bytes) -> None:
        tree.write(data)
        try:
            begun(out)
            check_is_sweep(out)
            ended(out, ())
            if is_begun(out / "k=4"):
                resumed(out / "k=4", {**RUN, "ranks": 1})
        finally:
            read_runs([out])

    return Prepared([tree.seed()], one)


def served(folder: Path) -> Prepared:
    """The same files, and a store's, as the service's catalogue and its pages see them."""
    from splinterp.service import models

    leave_run(folder / "root" / "run")
    make(folder / "root" / "acts.zarr")
    root = Root.at(folder / "root")
    run, held = Tree(folder / "root" / "run", FILES), Tree(folder / "root" / "acts.zarr", ["zarr.json", "h/acts/zarr.json"])
    swept = folder / "root" / "swept"
    swept.mkdir()
    (swept / "sweep.json").write_bytes(encoded({"members": {"a": {"settings": {}}}, "state": "finished", "site": "h"}))
    sweep = Tree(swept, ["sweep.json"])

    def one(data: bytes) -> None:
        tree = next((tree for tree in (held, sweep) if f'"{tree.names[-1]}"'.encode() in data), run)
        for other in (run, held, sweep):
            other.restore()
        tree.write(data)
        catalogue._parsed.cache_clear()
        progress._last_lines.cache_clear()
        seen = catalogue.Catalogue(root)
        for store in seen.stores():
            models.StoreOut.model_validate(vars(store)).model_dump_json()
        for found in seen.runs():
            models.RunOut.model_validate(vars(found)).model_dump_json()
        lines, offset = follow.lines_from(run.folder / "metrics.jsonl", 0)
        json.dumps(lines, allow_nan=False).encode()
        follow.lines_from(run.folder / "metrics.jsonl", max(0, offset - 7))
        progress.run_progress(run.folder)
        for name in ("run", "swept"):
            curves.curve(root, name)
        progress.run_progress(swept)
        progress._harvest(held.folder)

    return Prepared([run.seed(), held.seed(), sweep.seed()], one)


def plots(folder: Path) -> Prepared:
    """Points as JSON: [[x, y], ...], on linear and logarithmic axes."""

    def one(data: bytes) -> None:
        try:
            told = json.loads(data)
        except (ValueError, RecursionError):
            return
        points = (
            [
                (float(p[0]), float(p[1]))
                for p in told
                if isinstance(p, list) and len(p) == 2 and all(type(v) is float for v in p)
            ]
            if isinstance(told, list)
            else []
        )
        for scales in (("linear", "log"), ("log", "linear")):
            plot("a", Axis("x", scales[0]), Axis("y", scales[1]), [Series("s", points), Series("t", points[:1], [0.1])])

    return Prepared([b"[[1.0, 0.5], [2.0, 0.25], [1e10, 1e-10]]", b"[[-1.5, 0.0], [1e300, 5e-324]]"], one)


TARGETS = (
    Target("runs", "run.json, summary.json, metrics.jsonl and cfg.json, as compare and report read them", runs),
    Target("sweep directory", "sweep.json and a member's run.json, as --resume, --force and compare read them", sweep),
    Target("catalogue", "stores, runs and sweeps as the service shows them", served),
    Target("plots", "points of a plot", plots),
)
