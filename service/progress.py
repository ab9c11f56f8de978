"""How far a job has come and what is left, by the files that it writes; nothing is asked of the job itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from statistics import median
from time import time
from typing import Any

from ..names import is_plain
from ..quantities import is_count, is_figure, parse_json
from .catalogue import read, store_attributes
from .jobs import Job
from .paths import Root
from .schedule import Slots

METRICS, RUN, SWEEP = "metrics.jsonl", "run.json", "sweep.json"
SHOWN = ("fvu", "held_out_fvu", "l0", "dead", "loss", "lr")
_TAIL = 8192
_RECENT = 5


@dataclass(frozen=True)
class Progress:
    """Rows done, of how many, at how many a second; seconds that are left; and the latest figures. None: not known."""

    done: int | None = None
    total: int | None = None
    rate: float | None = None
    left: float | None = None
    figures: dict[str, float] | None = None

    @property
    def share(self) -> float | None:
        return min(1.0, self.done / self.total) if self.done is not None and self.total else None


def progress_of(root: Root, job: Job) -> Progress:
    """The progress of a job that runs; empty where its command tells none."""
    if job.work.out is None:
        return Progress()
    out = root.path / job.work.out
    return _harvest(out) if job.work.command == "harvest" else run_progress(out)


def run_progress(out: Path) -> Progress:
    """Of a training run, or the first run of a sweep, by its directory."""
    members = read(out / SWEEP).get("members")
    if isinstance(members, dict) and members and is_plain(first := next(iter(members))):
        out = out / first
    settings = read(out / RUN).get("settings")
    total = settings.get("rows") if isinstance(settings, dict) else None
    lines = last_lines(out / METRICS)
    if not lines or not is_count(total):
        return Progress(total=total if is_count(total) else None)
    last, first = lines[-1], lines[max(0, len(lines) - _RECENT)]
    rows, seconds = last["rows"] - first["rows"], last["seconds"] - first["seconds"]
    rate = rows / seconds if seconds > 0 else (last["rows"] / last["seconds"] if last["seconds"] > 0 else None)
    left = (total - last["rows"]) / rate if rate else None
    return Progress(
        int(last["rows"]), total, rate, left, {name: float(last[name]) for name in SHOWN if is_figure(last.get(name))}
    )


def last_lines(path: Path) -> list[dict[str, Any]]:
    """The last whole lines of a metrics.jsonl, those within its last few KiB; empty where there are none."""
    try:
        found = path.stat()
        return list(_last_lines(path, found.st_size, found.st_mtime_ns))
    except OSError:
        return []


@lru_cache(maxsize=512)
def _last_lines(path: Path, size: int, changed: int) -> tuple[dict[str, Any], ...]:
    with path.open("rb") as file:
        file.seek(max(0, size - _TAIL))
        pieces = file.read(_TAIL).split(b"\n")
    found = []
    for piece in pieces[(1 if size > _TAIL else 0) : -1]:
        try:
            line = parse_json(piece)
        except ValueError:
            continue  # overwritten just now, by a run that goes on from a checkpoint
        if isinstance(line, dict) and is_count(line.get("rows")) and is_figure(line.get("seconds")):
            found.append(line)
    return tuple(found)


def _harvest(out: Path) -> Progress:
    """Of a store that is being written: chunks committed, of those planned."""
    told = store_attributes(out)
    rows, planned = told.get("chunk_rows"), told.get("planned_rows")
    if not (is_count(rows) and is_count(planned)):
        return Progress()
    if told.get("status") == "complete":
        return Progress(planned, planned)
    try:
        found = (out / "log.jsonl").stat()
        done = min(planned, rows * _count_lines(out / "log.jsonl", found.st_size))
        seconds = time() - (out / "zarr.json").stat().st_mtime
    except OSError:
        return Progress(0, planned)
    rate = done / seconds if seconds > 0 else None
    return Progress(done, planned, rate, (planned - done) / rate if rate else None)


@lru_cache(maxsize=64)
def _count_lines(path: Path, size: int) -> int:
    with path.open("rb") as file:
        return sum(block.count(b"\n") for block in iter(lambda: file.read(2**20), b""))


def waiting_times(
    active: Sequence[tuple[Job, float | None]], queued: Sequence[Job], expected: dict[str, float | None], slots: Slots
) -> dict[int, float | None]:
    """Seconds until each queued job may begin, were all as long as jobs of their command have been; None where that is not known.

    A rough figure: it takes jobs in their turn on as many lanes as there are slots, and knows nothing of their sizes and files.

    Args:
        active: jobs that run, with the seconds that are left of each. expected: by command, the usual seconds of a job.
    """
    lanes: list[float | None] = [left for _, left in active]
    threads = max((job.threads for job in queued), default=1)
    count = slots.most if slots.scheduler else len(slots.gpus) or max(1, slots.threads // threads)
    lanes += [0.0] * max(0, count - len(lanes))
    found: dict[int, float | None] = {}
    for job in queued:
        # A lane of unknown length is taken for the longest.
        first = min(range(len(lanes)), key=lambda i: float("inf") if (end := lanes[i]) is None else end)
        begins, takes = lanes[first], expected.get(job.work.command)
        found[job.id] = begins
        lanes[first] = None if begins is None or takes is None else begins + takes
    return found


def usual(durations: Sequence[float]) -> float | None:
    """The usual duration, by those that were."""
    return median(durations) if durations else None
