"""The stores and runs under the root, by their JSON files alone."""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from time import monotonic
from typing import Any, Literal, TypeGuard

from ..names import is_plain
from ..quantities import is_count, is_figure, json_safe, parse_json
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
    told = store_attributes(path)
    if not told:
        return None
    sites, columns, rows = told.get("sites"), told.get("columns", []), told.get("rows")
    if not (_by_name(sites, is_count) and isinstance(columns, list) and all(map(is_plain, columns)) and is_count(rows)):
        return StoreSeen(root.name(path), 0, {}, "", None, None, 0, "damaged", "zarr.json does not describe a store.")
    size, trouble = _files(path, [f"{site}/acts" for site in sites] + columns)
    status = told.get("status")
    health: Health = "whole"
    if status != "complete":
        health = "being written" if locks.is_seen(path / ".lock") else "unfinished"
    elif trouble:
        health = "damaged"
    dataset = told.get("dataset")
    return StoreSeen(
        root.name(path), rows, sites, str(told.get("dtype")),
        _text(told.get("model")), ", ".join(map(str, dataset)) if isinstance(dataset, list) else _text(dataset), size, health,
        trouble if status == "complete" else "",
    )  # fmt: skip


def store_attributes(path: Path) -> dict[str, Any]:
    """What the store at `path` says of itself; empty where there is none of ours, or it is damaged."""
    attributes = read(path / "zarr.json").get("attributes")
    told = attributes.get("splinterp") if isinstance(attributes, dict) else None
    return told if isinstance(told, dict) else {}


def _by_name(value: object, fits: Callable[[object], bool]) -> TypeGuard[dict[str, int]]:
    return isinstance(value, dict) and all(is_plain(name) and fits(one) for name, one in value.items())


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _files(path: Path, arrays: Sequence[str]) -> tuple[int, str]:
    """(bytes of the arrays' chunk files, what is wrong with them in a sentence)."""
    total, trouble = 0, ""
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
        if not all(is_count(n) for n in (*shape, *chunk)):
            return [], None, None
        plain = all(codec["name"] in ("bytes", "crc32c") for codec in told["codecs"])
        size = math.prod(chunk) * _ITEMSIZE[told["data_type"]] + _CRC if plain else None
        return shape, -(-shape[0] // chunk[0]), size
    except (KeyError, TypeError, IndexError, ZeroDivisionError):
        return [], None, None


def run_at(root: Root, path: Path) -> RunFound | None:
    """The run or sweep at `path`; None where there is none."""
    sweep = read(path / "sweep.json")
    if isinstance(sweep.get("members"), dict):
        members = tuple(root.name(path / name) for name in sweep["members"] if is_plain(name))
        state = "finished" if sweep.get("state") == "finished" else "unfinished"
        return RunFound(
            root.name(path), "sweep", state, _store_name(root, sweep.get("store")), _text(sweep.get("site")), _text(sweep.get("started")),
            members=members, changed=_changed(path, "sweep.json"),
        )  # fmt: skip
    run, config = read(path / "run.json"), read(path / "cfg.json")
    if not run and not config:
        return None
    summary = read(path / "summary.json")
    settings = run.get("settings") if isinstance(run.get("settings"), dict) else {}
    names = ("fvu", "l0", "dead_fraction", "explained_variance", "rows_trained", "rows_per_second", "n_rows")
    figures = {name: summary[name] for name in names if is_figure(summary.get(name))}
    kind = "run" if run else "sae"
    state = "diverged" if "diverged" in run else "finished" if summary or kind == "sae" else "unfinished"
    return RunFound(
        root.name(path), kind, state, _store_name(root, run.get("store")), _text(run.get("site")), _text(run.get("started")), json_safe(figures),
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
    found = parse_json(path.read_bytes())
    return found if isinstance(found, dict) else {}
