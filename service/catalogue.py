"""The stores and runs under the root, by their JSON files alone."""

from __future__ import annotations

import json
import math
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from time import monotonic
from typing import Any, Literal

from ..quantities import json_safe
from . import locks
from .paths import Root

DEEPEST, MOST = 5, 5_000  # levels below the root that are looked at, and directories
FRESH = 2.0  # seconds
_ITEMSIZE = {"uint16": 2, "float16": 2, "float32": 4, "uint32": 4}
_CRC = 4

Health = Literal["whole", "being written", "unfinished", "damaged"]


@dataclass(frozen=True)
class StoreSeen:
    """A store as it is now. `health` is by the presence and size of its files (`splinterp verify --full` reads them); `trouble` says more."""

    name: str
    rows: int
    sites: dict[str, int]
    dtype: str
    model: str | None
    dataset: str | None
    bytes: int
    health: Health
    trouble: str = ""


@dataclass(frozen=True)
class RunFound:
    """A run, or a sweep, as it is now; figures on held-out rows, of a finished one."""

    name: str
    kind: Literal["run", "sweep", "sae"]
    state: Literal["finished", "unfinished", "diverged"]
    store: str | None = None
    site: str | None = None
    started: str | None = None
    figures: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    members: tuple[str, ...] = ()
    changed: float = 0.0


class Catalogue:
    """What is there, looked up again where it is older than FRESH; safe to use from several threads."""

    def __init__(self, root: Root) -> None:
        self.root = root
        self._lock = threading.Lock()
        self._at = -math.inf
        self._found: tuple[list[Path], list[Path]] = [], []

    def stores(self) -> list[StoreSeen]:
        return [seen for path in self._look()[0] if (seen := store_at(self.root, path))]

    def runs(self) -> list[RunFound]:
        """The latest first."""
        found = [seen for path in self._look()[1] if (seen := run_at(self.root, path))]
        return sorted(found, key=lambda run: -run.changed)

    def _look(self) -> tuple[list[Path], list[Path]]:
        with self._lock:
            if monotonic() - self._at > FRESH:
                stores, runs = list[Path](), list[Path]()
                for path, kind in _walk(self.root.path):
                    (stores if kind == "store" else runs).append(path)
                self._found, self._at = (sorted(stores), sorted(runs)), monotonic()
            return self._found


def _walk(root: Path) -> Iterator[tuple[Path, str]]:
    """Stores and runs below the root. Links to directories are not followed, nor are hidden ones looked into."""
    todo, seen = [(root, 0)], 0
    while todo and seen < MOST:
        folder, depth = todo.pop()
        seen += 1
        try:
            entries = list(os.scandir(folder))
        except OSError:
            continue
        names = {entry.name for entry in entries}
        if "zarr.json" in names:
            yield folder, "store"
            continue
        if names & {"run.json", "sweep.json"} or {"cfg.json", "sae_weights.safetensors"} <= names:
            yield folder, "run"
            if "sweep.json" not in names:
                continue
        if depth < DEEPEST:
            todo += [
                (Path(e.path), depth + 1) for e in entries if not e.name.startswith(".") and e.is_dir(follow_symlinks=False)
            ]


def store_at(root: Root, path: Path) -> StoreSeen | None:
    """The store at `path`; None where there is none of ours."""
    told = read(path / "zarr.json").get("attributes", {})
    told = told.get("splinterp") if isinstance(told, dict) else None
    if not isinstance(told, dict) or not isinstance(told.get("sites"), dict):
        return None
    size, trouble = _files(path, told)
    status = told.get("status")
    health: Health = "whole"
    if status != "complete":
        health = "being written" if locks.is_seen(path / ".lock") else "unfinished"
    elif trouble:
        health = "damaged"
    dataset = told.get("dataset")
    return StoreSeen(
        root.name(path), int(told.get("rows") or 0), {str(k): int(v) for k, v in told["sites"].items()}, str(told.get("dtype")),
        told.get("model"), ", ".join(map(str, dataset)) if isinstance(dataset, list) else dataset, size, health,
        trouble if status == "complete" else "",
    )  # fmt: skip


def _files(path: Path, told: dict[str, Any]) -> tuple[int, str]:
    """(bytes of the chunk files, what is wrong with them in a sentence)."""
    total, trouble = 0, ""
    arrays = [f"{site}/acts" for site in told["sites"]] + [str(column) for column in told.get("columns", ())]
    for array in arrays:
        _shape, expected, size = _array(path / array)
        try:
            sizes = {e.name: e.stat().st_size for e in os.scandir(path / array) if e.name.startswith("c.")}
        except OSError:
            sizes = {}
        total += sum(sizes.values())
        if expected is None:
            trouble = trouble or f"{array} has no readable zarr.json."
            continue
        lacking = expected - len(sizes)
        if lacking > 0:
            trouble = trouble or f"{array} lacks {lacking:,} of {expected:,} chunks."
        elif size is not None and any(one != size for one in sizes.values()):
            trouble = trouble or f"{array} has chunks of the wrong size."
    return total, trouble


def _array(path: Path) -> tuple[list[int], int | None, int | None]:
    """(shape, chunks, bytes of a chunk file; None of an archive's, which differ)."""
    told = read(path / "zarr.json")
    try:
        shape, chunk = told["shape"], told["chunk_grid"]["configuration"]["chunk_shape"]
        plain = all(codec["name"] in ("bytes", "crc32c") for codec in told["codecs"])
        size = math.prod(chunk) * _ITEMSIZE[told["data_type"]] + _CRC if plain else None
        return shape, -(-shape[0] // chunk[0]), size
    except (KeyError, TypeError, IndexError, ZeroDivisionError):
        return [], None, None


def run_at(root: Root, path: Path) -> RunFound | None:
    """The run or sweep at `path`; None where there is none."""
    sweep = read(path / "sweep.json")
    if isinstance(sweep.get("members"), dict):
        members = tuple(root.name(path / name) for name in sweep["members"] if Path(name).name == name)
        state = "finished" if sweep.get("state") == "finished" else "unfinished"
        return RunFound(
            root.name(path), "sweep", state, _store_name(root, sweep.get("store")), sweep.get("site"), sweep.get("started"),
            members=members, changed=_changed(path, "sweep.json"),
        )  # fmt: skip
    run, config = read(path / "run.json"), read(path / "cfg.json")
    if not run and not config:
        return None
    summary = read(path / "summary.json")
    settings = run.get("settings") if isinstance(run.get("settings"), dict) else {}
    names = ("fvu", "l0", "dead_fraction", "explained_variance", "rows_trained", "rows_per_second", "n_rows")
    figures = {name: summary[name] for name in names if isinstance(summary.get(name), int | float)}
    kind = "run" if run else "sae"
    state = "diverged" if "diverged" in run else "finished" if summary or kind == "sae" else "unfinished"
    return RunFound(
        root.name(path), kind, state, _store_name(root, run.get("store")), run.get("site"), run.get("started"), json_safe(figures),
        json_safe(settings), changed=_changed(path, "summary.json", "metrics.jsonl", "run.json", "cfg.json"),
    )  # fmt: skip


def _store_name(root: Root, store: Any) -> str | None:
    """What a run says of its store's path, relative where it lies inside the root."""
    if not isinstance(store, str):
        return None
    path = Path(store)
    return root.name(path) if path.is_relative_to(root.path) and path != root.path else path.name


def _changed(path: Path, *names: str) -> float:
    for name in names:
        try:
            return (path / name).stat().st_mtime
        except OSError:
            continue
    return 0.0


def read(path: Path) -> dict[str, Any]:
    """A file's JSON object; empty where there is none, or it is damaged."""
    try:
        found = path.stat()
        return _parsed(path, found.st_mtime_ns, found.st_size)
    except (OSError, ValueError):
        return {}


@lru_cache(maxsize=2048)
def _parsed(path: Path, changed: int, size: int) -> dict[str, Any]:
    if size > 2**24:
        return {}
    found = json.loads(path.read_bytes())
    return found if isinstance(found, dict) else {}
